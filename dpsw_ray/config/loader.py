"""YAML as configs are written in it: text stays text, a number is a plain decimal, and nothing grows without end."""

from __future__ import annotations

import itertools
import re
import unicodedata
from typing import Any

import yaml

from dpsw_ray.base.errors import one_line

__all__ = ["MOST_BYTES", "YamlMistake", "read_yaml"]

MOST_BYTES = 1 << 20
"""Of a config file: bounds for ten thousand columns fit in."""

_MOST_NODES = 100_000
_DEEPEST = 32
_TEXT, _MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class YamlMistake(ValueError):
    """What is wrong with a text, in words, and in which line (from 1, None where that cannot be said)."""

    def __init__(self, problem: str, line: int | None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line


def read_yaml(text: str) -> Any:
    """Reads one YAML document.

    Keys are text. Plain scalars are text too, unless they are `null`, `true`, `false`, `.inf` or a plain decimal that
    YAML 1.1 takes for a number; what else people write as a number (`1e-5`) is left to the fields that want one. Dates,
    sexagesimal, octal, hexadecimal numbers and `yes` are text, so that whatever PyYAML writes is read back as it was.

    Raises:
        YamlMistake: no YAML, a key that is written twice or is no text, a tag, text that cannot be printed, an anchor
            that contains itself, or, with anchors written out, more than `_MOST_NODES` values or more than `_DEEPEST`
            within each other.
    """
    if len(text) > MOST_BYTES:
        raise YamlMistake(f"more than {MOST_BYTES:,} characters are no config", None)
    try:
        return _copied(yaml.load(text, _Loader))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        raise YamlMistake(f"the character U+{error.character:04X} is not allowed", line) from None
    except yaml.MarkedYAMLError as error:
        problem = error.problem or "cannot be parsed"
        if problem.startswith("but ") and error.context:
            problem = f"{error.context}, {problem}"
        if r"\t" in problem:
            problem += "; indent with spaces, never with tabs"
        mark = error.problem_mark or error.context_mark
        raise YamlMistake(one_line(problem, 160), None if mark is None else mark.line + 1) from None


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 (as the class above declares it)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._count = 0

    def scan_to_next_token(self) -> None:
        """Skips what separates tokens: a tab too, unless it could be taken for indentation."""
        super().scan_to_next_token()
        while self.peek() == "\t" and (self.flow_level or not self.allow_simple_key):
            self.forward()
            super().scan_to_next_token()

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) not in (None, "!", _TEXT):
            raise _mistake("a tag such as !!int has no place in a config", event.start_mark)
        self._depth += 1
        self._count += 1
        if self._depth > _DEEPEST:
            raise _mistake(f"more than {_DEEPEST} sections or lists within each other", event.start_mark)
        if self._count > _MOST_NODES:
            raise _mistake(f"more than {_MOST_NODES:,} values", event.start_mark)
        node: Any = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and any(
            unicodedata.category(c) in ("Cc", "Cs") for c in node.value
        ):
            raise _mistake("text with a character that cannot be printed", event.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Makes all keys text, and refuses one that is written twice: YAML's usual reading drops the first silently."""
        node: Any = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _mistake("a key must be text; put text that has braces in quotes", key.start_mark)
            if key.tag == _MERGE:
                continue
            key.tag = _TEXT
            if key.value in seen:
                raise _mistake(f"the key {one_line(key.value, 60)} is there twice", key.start_mark)
            seen.add(key.value)
        return node

    def get_single_node(self) -> Any:
        node: Any = super().get_single_node()
        if node is not None:
            _measure(node, {}, set())
        return node

    def construct_plain_float(self, node: Any) -> float | str:
        """Text, where float64 could only hold infinity."""
        text: str = node.value
        value = float(text.replace(".i", "i").replace(".I", "I"))
        return value if "f" in text.lower() or abs(value) < float("inf") else text


def _measure(node: Any, known: dict[int, tuple[int, int]], within: set[int]) -> tuple[int, int]:
    """Size and depth of a node with its anchors written out: a few lines of aliases can stand for billions."""
    if isinstance(node, yaml.ScalarNode):
        return 1, 1
    if id(node) in within:
        raise _mistake("an anchor contains itself", node.start_mark)
    if id(node) not in known:
        within.add(id(node))
        parts = (
            node.value
            if isinstance(node, yaml.SequenceNode)
            else list(itertools.chain.from_iterable(node.value))
        )
        measured = [_measure(part, known, within) for part in parts]
        within.remove(id(node))
        size, depth = 1 + sum(size for size, _ in measured), 1 + max((d for _, d in measured), default=0)
        if size > _MOST_NODES or depth > _DEEPEST:
            raise _mistake(
                f"more than {_MOST_NODES:,} values, or {_DEEPEST} within each other, with anchors written out",
                node.start_mark,
            )
        known[id(node)] = size, depth
    return known[id(node)]


def _copied(value: Any) -> Any:
    """Without anything in it twice: a change of one value must not change another."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _mistake(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"0|-?[1-9][0-9]{0,17}", list("-0123456789")),
    ("float", r"-?(0|[1-9][0-9]*)\.[0-9]+([eE][-+][0-9]+)?|-?\.(inf|Inf|INF)", list("-.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_plain_float)
