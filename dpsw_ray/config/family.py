"""Configs that share sections and differ by method: which class reads a file, and whose key a foreign key is.

A config holds the shared sections and its own method's. A key that only other methods have is refused, with one
exception: where a base is turned to another method (`--set method=...`, `dpsw compare`, a sweep over `method`), keys of
the base that its own method or another of the grid's has are left out for those that have them not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, create_model

from dpsw_ray.base.errors import UserError, named
from dpsw_ray.config.file import explain_mistakes, make_config, read_values, sections_of
from dpsw_ray.config.run import RunConfig

__all__ = ["Family", "has_key"]

C = TypeVar("C", bound=RunConfig)

_WROTE = {
    "release": ("frames", "law", "directions", "bins", "smoothing", "expected_records", "class_conditional",
                "sampling", "batch", "epochs", "rate", "rounds"),
    "generator": ("noise_dim", "hidden", "steps", "batch_size", "learning_rate"),
}  # fmt: skip
"""What `config.yaml` of a run by an earlier version holds, whatever its method. No person writes all of it."""

_IDLE = ("release", "flow", "generator", "rows")


@dataclass(frozen=True)
class Family(Generic[C]):
    """Configs by method.

    Attributes:
        methods: names, in the order in which they are listed.
        config: from a name to the class.
        folder: of the shipped configs.
        beside: another family, for messages about keys that only it has.
    """

    methods: Iterable[str]
    config: Callable[[str], type[C]]
    folder: str = ""
    beside: Family[Any] | None = None

    def load(self, path: str | Path, overrides: Iterable[str] = ()) -> C:
        """Reads a YAML file (or the name of a shipped one) and applies `a.b=c` overrides.

        Raises:
            UserError: one sentence per wrong key, with what was found and what would be right.
        """
        given = list(overrides)
        own = self.method(read_values(path, (), self.folder)[0])
        values, where, overridden = read_values(path, given, self.folder)
        return self.make(values, where, overridden, base=(own,))

    def method(self, values: Mapping[str, Any]) -> str:
        """The method that values name, whether there is one of that name or not."""
        return str(values.get("method", RunConfig.model_fields["method"].default))

    def make(
        self,
        values: dict[str, Any],
        where: str,
        overridden: Iterable[str] = (),
        *,
        base: Iterable[str] = (),
        chosen: Iterable[str] | None = None,
    ) -> C:
        """Builds the config of the method that values name.

        Args:
            values: sections within each other; changed.
            where: they come from, for messages.
            overridden: keys that came from options.
            base: methods whose keys may stand in the values, and are left out where this method has none of them.
            chosen: keys that must be the method's own all the same; default: those overridden.

        Raises:
            UserError: one sentence per wrong key, with what was found and what would be right.
        """
        overridden = list(overridden)
        self._check_name(values, where, overridden)
        method, base = self.method(values), set(base) & set(self.methods)
        model, strict = self.config(method), set(overridden if chosen is None else chosen)
        written = _written_by_a_run(values)
        foreign: dict[tuple[bool, str, tuple[str, ...]], list[str]] = {}
        for key in list(_leaves(values)):
            section = key.partition(".")[0]
            if has_key(model, key):
                continue
            owners = self.owners(key)
            said = bool(strict & {key, section})
            empty = section == key and values.get(key) in (None, {})
            elsewhere = owners or (self.beside.owners(key) if self.beside is not None else [])
            idle = empty or (written and section in _IDLE)
            if not said and (base & set(owners) or (idle and elsewhere)):
                _take_out(values, key)
            elif elsewhere:
                by_option = bool({key, section} & set(overridden))
                foreign.setdefault((by_option, section, tuple(elsewhere)), []).append(key)
        if foreign:
            told = {place: _foreign(*place[1:], keys, model) for place, keys in sorted(foreign.items())}
            in_file = [sentence for (by_option, *_), sentence in told.items() if not by_option]
            options = [f"--set {sentence}" for (by_option, *_), sentence in told.items() if by_option]
            raise UserError(" ".join([*([f"{where}:"] if in_file else []), *in_file, *options]))
        return make_config(model, values, where, overridden)

    def owners(self, key: str) -> list[str]:
        """The methods that have a key."""
        return [name for name in self.methods if has_key(self.config(name), key)]

    def check_shared(self, keys: Iterable[str], methods: Iterable[str], option: str) -> None:
        """Refuses keys that none of some methods has, and others have.

        Args:
            keys: given for all of them.
            methods: of a grid.
            option: that gave them, for the message.

        Raises:
            UserError: naming the key, and who has it.
        """
        among = list(methods)
        for key in keys:
            owners = self.owners(key)
            if owners and not set(owners) & set(among):
                raise UserError(
                    f"{option} {named(key)} is a key of {_methods(owners)}, and none of {', '.join(among)} has it."
                )

    @property
    def shared(self) -> list[str]:
        """The keys that all runs have."""
        return list(keys_of(RunConfig))

    def all_keys(self) -> list[str]:
        """All keys that some method has, `section.key`."""
        return list(dict.fromkeys(key for name in self.methods for key in keys_of(self.config(name))))

    def _check_name(self, values: dict[str, Any], where: str, overridden: list[str]) -> None:
        if "method" in values and values["method"] not in tuple(self.methods):
            known: Any = Literal[tuple(self.methods)]
            model = create_model("Named", method=(known, Field(...)))
            try:
                model.model_validate({"method": values["method"]})
            except ValidationError as error:
                raise UserError(explain_mistakes(error, where, overridden, model)) from None


def has_key(model: type[BaseModel], key: str) -> bool:
    """Whether a config has `section.key`, or a key beside the sections."""
    section, _, rest = key.partition(".")
    if section not in model.model_fields:
        return False
    return (
        not rest
        or section not in sections_of(model)
        or rest in _fields(model.model_fields[section].annotation)
    )


def keys_of(model: type[BaseModel]) -> Iterator[str]:
    """`section.key` of a config, and keys beside the sections."""
    for name, field in model.model_fields.items():
        if name in sections_of(model):
            yield from (f"{name}.{key}" for key in _fields(field.annotation))
        else:
            yield name


def _foreign(section: str, owners: tuple[str, ...], keys: list[str], model: type[BaseModel]) -> str:
    """A sentence that says whose the keys of a section are, and what the method of the config has in their place."""
    found, name = model.model_fields.get(section), model.model_fields["method"].default
    if found is not None and section not in keys:
        has = f"{section} of method {name} has {', '.join(_fields(found.annotation))}"
    else:
        own = [field for field in model.model_fields if field not in RunConfig.model_fields]
        has = f"method {name} has {_listed(own)} in its place"
    are = "is a key" if len(keys) == 1 else "are keys"
    return f"{_listed([named(key) for key in keys])} {are} of {_methods(owners)}; {has}."


def _fields(section: Any) -> list[str]:
    return list(section.model_fields)


def _methods(names: Sequence[str]) -> str:
    return f"{'method' if len(names) == 1 else 'methods'} {_listed(names)}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _leaves(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from (f"{name}.{key}" for key in value)
        else:
            yield str(name)


def _take_out(values: dict[str, Any], key: str) -> None:
    section, _, rest = key.partition(".")
    if not rest:
        del values[section]
        return
    values[section] = {name: value for name, value in values[section].items() if name != rest}
    if not values[section]:
        del values[section]


def _written_by_a_run(values: Mapping[str, Any]) -> bool:
    return all(
        isinstance(values.get(section), dict) and set(keys) <= values[section].keys()
        for section, keys in _WROTE.items()
    )
