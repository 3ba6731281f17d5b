"""Configs as files: YAML in, `a.b=c` on top, every error names the key, what was found and what is valid."""

from __future__ import annotations

import difflib
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from dpsw_ray.base.errors import UserError, named, one_line, shown
from dpsw_ray.base.paths import path_mistake
from dpsw_ray.config.loader import MOST_BYTES, YamlMistake, read_yaml

__all__ = [
    "explain_mistakes",
    "load_model",
    "make_config",
    "named",
    "parse_override",
    "put_value",
    "read_values",
    "sections_of",
    "shipped_config",
    "shown",
]

C = TypeVar("C", bound=BaseModel)

_MOST_MISTAKES = 5
"""Told at a time: whoever gives another kind of file has hundreds."""


def load_model(model: type[C], path: str | Path, overrides: Iterable[str] = (), folder: str = "") -> C:
    """Reads a YAML file (or the name of a shipped one) and applies `a.b=c` overrides.

    Args:
        model: what the file describes: a run, or one of another command.
        path: a file, or the name of a config shipped with the package, such as `digits`.
        overrides: strings `section.key=value`; values are read as YAML.
        folder: of the shipped configs in which a name is looked up.

    Raises:
        UserError: one sentence per wrong key, with what was found and what would be right.
    """
    return make_config(model, *read_values(path, overrides, folder))


def make_config(model: type[C], values: dict[str, Any], where: str, overridden: list[str]) -> C:
    """Builds a config of what `read_values` returned.

    Raises:
        UserError: one sentence per wrong key, with what was found and what would be right.
    """
    for key in sections_of(model) & values.keys():
        if values[key] is None:  # a section whose keys are all commented out
            del values[key]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(explain_mistakes(error, where, overridden, model)) from None


def read_values(
    path: str | Path, overrides: Iterable[str] = (), folder: str = ""
) -> tuple[dict[str, Any], str, list[str]]:
    """Reads a YAML file (or the name of a shipped one) and applies `a.b=c` overrides, without checking any key.

    Returns:
        The values, what to call the file in a message, and the overridden keys.

    Raises:
        UserError: no such file, no YAML, or no mapping.
    """
    text, where = _read(Path(path), folder)
    try:
        values = read_yaml(text)
    except YamlMistake as error:
        at = f" line {error.line}" if error.line is not None else ""
        raise UserError(f"{where}{at} is not valid YAML: {error.problem}.") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        # Not quoted: whoever gives a table in place of a config would see a record of it in a log.
        raise UserError(f"{where} must hold `key: value` lines, and it holds something else.")
    overridden = []
    for override in overrides:
        key, value = parse_override(override)
        put_value(values, key, value, f"--set {key}")
        overridden.append(key)
    return values, where, overridden


def shipped_config(path: Path, folder: str = "") -> str | None:
    """The file name of the shipped config that `path` names, such as `digits`; None where it names none."""
    name = path.name.removesuffix(".yaml")
    bare = path.name == str(path) or path.parent.name == (folder or "configs")
    return f"{name}.yaml" if bare and name in _shipped_names(folder) else None


def _shipped_names(folder: str) -> list[str]:
    entries = resources.files("dpsw_ray").joinpath("configs", folder).iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def _read(path: Path, folder: str) -> tuple[str, str]:
    if mistake := path_mistake(str(path)):
        raise UserError(f"The config file {mistake}.")
    path = path.expanduser()
    shipped = shipped_config(path, folder)
    if path.is_dir() and shipped is None:
        raise UserError(f"{path} is a folder, where a YAML config file was expected.")
    if path.exists() and not path.is_dir():
        try:
            return _read_file(path).decode("utf-8-sig"), str(path)
        except UnicodeDecodeError:
            raise UserError(f"{path} is not a text file, where a YAML config was expected.") from None
    if shipped is None:
        names = ", ".join(_shipped_names(folder))
        raise UserError(f"Config file {path} does not exist; the shipped ones are: {names}.")
    file = resources.files("dpsw_ray").joinpath("configs", folder, shipped)
    return file.read_text(encoding="utf-8"), f"{shipped} (shipped)"


def _read_file(path: Path) -> bytes:
    """The bytes of a regular file of bounded size; a pipe or a device would give none, or never end."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{path} is a pipe or a device, where a YAML config file was expected.")
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES:,} bytes, where a YAML config file was expected.")
    return content


def parse_override(override: str) -> tuple[str, Any]:
    """Key and value of `key=value`.

    Raises:
        UserError: it has another form, or its value is no YAML.
    """
    key, sep, raw = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not sep or not all(parts):
        raise UserError(f"--set takes key=value, such as privacy.epsilon=1, found {shown(override)}.")
    key = ".".join(parts)
    try:
        return key, read_yaml(raw)
    except YamlMistake as error:
        raise UserError(
            f"--set {named(key)}: the value {shown(raw)} is not valid YAML ({error.problem}); put text in quotes."
        ) from None


def put_value(values: dict[str, Any], key: str, value: Any, origin: str) -> None:
    """Puts the value of `section.key` into values that `make_config` takes.

    Args:
        values: sections within each other; changed.
        key: parts with dots between them.
        value: to be put there.
        origin: where it was written, for messages.

    Raises:
        UserError: a section on the way is a single value.
    """
    *sections, last = (part.strip() for part in key.split("."))
    node = values
    for depth, section in enumerate(sections, 1):
        child = node.setdefault(section, {})
        if child is None:
            child = node[section] = {}
        if not isinstance(child, dict):
            raise UserError(
                f"{one_line(origin, 160)}: {named('.'.join(sections[:depth]))} is a single value, it has no key "
                f"{named(last)}."
            )
        node = child
    node[last] = value


def explain_mistakes(
    error: ValidationError, where: str, overridden: Sequence[str], model: type[BaseModel]
) -> str:
    """One sentence per mistake; those of the file come first, after its name.

    Args:
        error: of validating a config.
        where: the file.
        overridden: keys that came from options.
        model: of the config, for the names of its keys.
    """
    mistakes = [item for item in error.errors() if item["type"] != "default_factory_not_called"]
    in_file: list[str] = []
    in_both: list[str] = []
    in_options: list[str] = []
    blamed: list[str] = []
    for item in mistakes[:_MOST_MISTAKES]:
        key, sentence = _sentence(item, model)
        mentioned = [option for option in overridden if _mentions(sentence, option)]
        if any(f"{key}.".startswith(f"{option}.") for option in overridden):
            in_options.append(f"--set {sentence}")
        elif item["type"] == "value_error" and mentioned:
            in_both.append(sentence)
            blamed += [named(option) for option in mentioned if named(option) not in blamed]
        else:
            in_file.append(sentence)
    if in_file:
        in_file.insert(0, f"{where}:")
    if in_both:
        in_both.insert(0, f"{where} with --set {', '.join(blamed)}:")
    more = len(mistakes) - _MOST_MISTAKES
    rest = [f"{more:,} more {'mistakes' if more > 1 else 'mistake'}."] if more > 0 else []
    return " ".join([*in_file, *in_both, *in_options, *rest])


def _mentions(sentence: str, key: str) -> bool:
    """Whether a sentence speaks of a key, or of one below it."""
    return re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", sentence) is not None


def _sentence(item: Mapping[str, Any], model: type[BaseModel]) -> tuple[str, str]:
    """The key of a mistake and a sentence about it, full stop included."""
    location = [part for part in item["loc"] if part not in ("float", "literal['auto']", "[key]")]
    kind, found, limits = str(item["type"]), shown(item["input"]), item.get("ctx", {})
    key = ".".join(map(str, location))
    name = named(key)
    if kind == "extra_forbidden":
        return key, f"{name} is an unknown key; {_known_keys([str(part) for part in location], model)}."
    if kind == "value_error":
        problem = str(limits["error"])
        return key, f"{name} {problem}." if problem.startswith("must") else f"{problem}."
    if kind == "string_pattern_mismatch":
        return key, f"{name} must consist of letters, digits and . _ - only, found {found}."
    if kind in ("too_short", "too_long"):
        bound = (
            f"at least {limits['min_length']:,}"
            if kind == "too_short"
            else f"at most {limits['max_length']:,}"
        )
        return key, f"{name} must have {bound} values, found {limits['actual_length']:,}."
    if kind == "missing":
        return key, f"{name} is missing."
    for prefix, wanted in _WANTED.items():
        if kind.startswith(prefix):
            limits = {name: _limit(value) for name, value in limits.items()}
            return key, f"{name} must be {wanted.format(**limits)}, found {found}."
    if kind == "model_type":
        return key, f"{name} must be a section with keys of its own, found {found}."
    return key, f"{name or 'the config'} is not valid ({str(item['msg']).lower()}), found {found}."


def _limit(value: Any) -> str:
    """A bound as people write it."""
    if isinstance(value, float) and math.isfinite(value) and (value != int(value) or abs(value) >= 1e15):
        return f"{value:g}"
    return f"{int(value)}" if isinstance(value, int | float) and math.isfinite(value) else str(value)


_WANTED = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "greater than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "none_required": "null",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string_too_short": "text of at least {min_length} character",
    "string_too_long": "text of at most {max_length} characters",
    "string": "text (in quotes where it looks like something else)",
    "path": "a path",
    "list": "a list, such as [a, b]",
    "dict": "a section with keys of its own",
    "tuple": "a list, such as [a, b]",
}
"""What would be right, by the beginning of pydantic's error type; the longer beginning first."""


def _known_keys(location: list[str], model: type[BaseModel]) -> str:
    *sections, wrong = location
    known = _keys(model, ".".join(sections))
    prefix = "".join(f"{section}." for section in sections)
    everywhere = [
        f"{section}.{key}" for section in sorted(sections_of(model)) for key in _keys(model, section)
    ]
    close = difflib.get_close_matches(wrong[:80], known, n=1, cutoff=0.7)
    elsewhere = [key for key in everywhere if key.endswith(f".{wrong}")]
    if elsewhere and not (close and sections):
        return f"did you mean {' or '.join(elsewhere)}"
    if close:
        return f"did you mean {prefix}{close[0]}"
    return f"{f'{prefix[:-1]} has' if sections else 'a config has'} {', '.join(known)}"


def _keys(model: type[BaseModel], section: str) -> list[str]:
    """The keys of a section, or of the config as a whole."""
    found: Any = model.model_fields[section].annotation if section else model
    return list(found.model_fields)


def sections_of(model: type[BaseModel]) -> set[str]:
    """The names of a config's sections."""
    return {
        name
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
