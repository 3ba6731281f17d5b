"""Configs as files: YAML in, `a.b=c` on top, every error names the key, what was found and what is valid."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from dpsw_ray.errors import UserError

__all__ = ["explain_mistakes", "load_model", "make_config", "put_value", "read_values", "shown"]

C = TypeVar("C", bound=BaseModel)


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
    for key in _sections(model) & values.keys():
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
        values = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = f" line {line + 1}" if line is not None else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        hint = "; indent with spaces, never with tabs" if r"\t" in problem else ""
        raise UserError(f"{where}{at} is not valid YAML: {problem}{hint}.") from None
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{where} must hold `key: value` lines, found {shown(values)}.")
    overridden = [_apply(values, override) for override in overrides]
    return values, where, overridden


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice, where YAML's usual reading drops the first in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} is there twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _read(path: Path, folder: str) -> tuple[str, str]:
    if path.is_dir():
        raise UserError(f"{path} is a folder, where a YAML config file was expected.")
    if path.exists():
        try:
            return path.read_text(encoding="utf-8-sig"), str(path)
        except UnicodeDecodeError:
            raise UserError(f"{path} is not a text file, where a YAML config was expected.") from None
    shipped = resources.files("dpsw_ray.configs").joinpath(folder)
    names = sorted(
        entry.name.removesuffix(".yaml") for entry in shipped.iterdir() if entry.name.endswith(".yaml")
    )
    if str(path) in names or (
        path.name.removesuffix(".yaml") in names and path.parent.name in ("", folder or "configs")
    ):
        name = path.name.removesuffix(".yaml")
        return (shipped / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml (shipped)"
    raise UserError(f"Config file {path} does not exist; the shipped ones are: {', '.join(names)}.")


def _apply(values: dict[str, Any], override: str) -> str:
    """Puts one `key=value` into `values`; returns the key."""
    key, sep, raw = override.partition("=")
    key = key.strip()
    *sections, last = (part.strip() for part in key.split("."))
    if not sep or not all((*sections, last)):
        raise UserError(f"--set takes key=value, such as privacy.epsilon=1, found {override!r}.")
    try:
        value = yaml.load(raw, _Loader)
    except (yaml.YAMLError, ValueError):
        raise UserError(f"--set {key}: the value {raw!r} is not valid YAML; put text in quotes.") from None
    put_value(values, key, value)
    return key


def put_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Puts the value of `section.key` into values that `make_config` takes.

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
                f"--set {key}: {'.'.join(sections[:depth])} is a single value, it has no key {last}."
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
    in_file: list[str] = []
    in_options: list[str] = []
    for item in error.errors():
        key, sentence = _sentence(item, model)
        by_option = any(f"{key}.".startswith(f"{option}.") for option in overridden)
        (in_options if by_option else in_file).append(sentence)
    return " ".join(
        ([f"{where}:", *in_file] if in_file else []) + [f"--set {sentence}" for sentence in in_options]
    )


def _sentence(item: Mapping[str, Any], model: type[BaseModel]) -> tuple[str, str]:
    """The key of a mistake and a sentence about it, full stop included."""
    location = [str(part) for part in item["loc"] if part not in ("float", "literal['auto']", "[key]")]
    key = ".".join(location)
    kind, found, limits = str(item["type"]), shown(item["input"]), item.get("ctx", {})
    if kind == "extra_forbidden":
        return key, f"{key} is an unknown key; {_known_keys(location, model)}."
    if kind == "value_error":
        problem = str(limits["error"])
        return key, f"{key} {problem}." if problem.startswith("must") else f"{problem}."
    if kind == "string_pattern_mismatch":
        return key, f"{key} must consist of letters, digits and . _ - only, found {found}."
    for prefix, wanted in _WANTED.items():
        if kind.startswith(prefix):
            return key, f"{key} must be {wanted.format(**limits)}, found {found}."
    if kind == "model_type":
        return key, f"{key} must be a section with keys of its own, found {found}."
    return key, f"{key or 'the config'} is not valid ({str(item['msg']).lower()}), found {found}."


_WANTED = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "greater than {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "none_required": "null",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text (in quotes where it looks like something else)",
    "path": "a path",
    "list": "a list, such as [a, b]",
    "dict": "a section with keys of its own",
    "tuple": "a pair [low, high]",
    "too_": "a pair [low, high]",
    "missing": "a pair [low, high]",
}
"""What would be right, by the beginning of pydantic's error type; the longer beginning first."""


def shown(value: Any) -> str:
    """A config's value as its author wrote it, more or less."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a section of keys"
    text = repr(value) if isinstance(value, str | list | tuple | int | float) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _known_keys(location: list[str], model: type[BaseModel]) -> str:
    *sections, wrong = location
    known = _keys(model, ".".join(sections))
    close = difflib.get_close_matches(wrong, known, n=1)
    prefix = "".join(f"{section}." for section in sections)
    if close:
        return f"did you mean {prefix}{close[0]}"
    everywhere = [f"{section}.{key}" for section in sorted(_sections(model)) for key in _keys(model, section)]
    elsewhere = [key for key in everywhere if key.endswith(f".{wrong}")]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}"
    return f"{f'{prefix[:-1]} has' if sections else 'a config has'} {', '.join(known)}"


def _keys(model: type[BaseModel], section: str) -> list[str]:
    """The keys of a section, or of the config as a whole."""
    found: Any = model.model_fields[section].annotation if section else model
    return list(found.model_fields)


def _sections(model: type[BaseModel]) -> set[str]:
    return {
        name
        for name, field in model.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
