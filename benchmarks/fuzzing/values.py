"""Strange values as people write them: in a YAML file or after `--set`, in a JSON file, behind an option."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

__all__ = ["JSON_VALUES", "NUMBERS", "OPTION_VALUES", "STRUCTURES", "YAML_VALUES", "leaves", "replaced"]

NUMBERS = {
    "-1": "-1",
    "0": "0",
    "1": "1",
    "half": "0.5",
    "2^31": str(2**31),
    "2^53+1": str(2**53 + 1),
    "2^63": str(2**63),
    "2^64": str(2**64),
    "1e8": "100000000",
    "1e12": "1000000000000",
    "1e300": "1.0e+300",
    "-1e300": "-1.0e+300",
    "1e-300": "1.0e-300",
    "1e400": "1e400",
    "-1e400": "-1e400",
    "1.0e+400": "1.0e+400",
    "nan": "nan",
    "5,000 digits": "9" * 5000,
    "5,000 decimals": "0." + "3" * 5000,
    "017": "017",
    "1:30": "1:30",
    "0x1F": "0x1F",
    "1_000": "1_000",
    "superscript": "²",
    "other digits": "٣",
}

_TEXTS = {
    "nothing": "",
    "true": "true",
    "blanks": "' '",
    "long": "x" * 100_000,
    "tilde": "~nosuchuser/x",
    "dots": "../..",
    "slash": "a/b",
}

YAML_VALUES = {
    **NUMBERS,
    **_TEXTS,
    "null": "null",
    "empty text": "''",
    ".inf": ".inf",
    "-.inf": "-.inf",
    ".nan": ".nan",
    "NUL": r'"a\0b"',
    "escape code": r'"\e[31mred"',
    "line break": r'"a\nb"',
    "lone surrogate": r'"\ud800"',
    "right to left": r'"\u202eabc"',
    "no such date": "2024-13-45",
    "no such time": "2024-02-30T25:61:61Z",
    "date": "2024-02-28",
    "3,000 lists": "[" * 3000 + "]" * 3000,
    "3,000 mappings": "{a: " * 3000 + "}" * 3000,
    "cycle": "&a [*a]",
    "cyclic mapping": "&a {b: *a}",
    "no such anchor": "*nowhere",
    "braces": "{{ name }}",
    "list": "[1, 2]",
    "empty list": "[]",
    "list of nothing": "[null]",
    "list of nan": "[.nan, .inf]",
    "mapping": "{a: 1}",
    "mapping of lists": "{1: [2], [3]: 4}",
    "empty mapping": "{}",
    "python": "!!python/object/apply:os.getcwd []",
    "binary": "!!binary =",
    "set": "!!set {a}",
    "many": "[" + ", ".join(["1"] * 20_000) + "]",
}
"""Raw YAML by name, each on one line."""

OPTION_VALUES = {
    **NUMBERS,
    **_TEXTS,
    "inf": "inf",
    "blanks": " ",
    "null": "null",
    "escape code": "\x1b[31mred",
    "line break": "a\nb",
    "not UTF-8": "a\udcffb",
    "comma": ",",
    "commas": "1,,2,",
    "many": ",".join(map(str, range(1, 20_000))),
    "dash": "--",
    "equals": "=",
    "key": "privacy.epsilon=1e400",
    "no key": "..=1",
}
"""Arguments by name, as the system hands them over: without NUL, and what is not UTF-8 as lone surrogates."""

JSON_VALUES = {
    "null": "null",
    "true": "true",
    "text": '"x"',
    "number as text": '"3"',
    "-1": "-1",
    "0": "0",
    "half": "0.5",
    "2^31": str(2**31),
    "2^64": str(2**64),
    "1e300": "1e300",
    "1e400": "1e400",
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "5,000 digits": "9" * 5000,
    "3,000 lists": "[" * 3000 + "]" * 3000,
    "list": "[1, 2]",
    "empty list": "[]",
    "mapping": '{"a": 1}',
    "empty mapping": "{}",
    "lone surrogate": r'"\ud800"',
    "NUL": r'"a\u0000b"',
    "long": '"' + "x" * 100_000 + '"',
    "dots": '"../../x"',
}
"""Raw JSON by name."""


def _laughs(depth: int) -> bytes:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "\n".join([*lines, ""]).encode()


STRUCTURES: dict[str, bytes] = {
    "empty": b"",
    "blanks": b" \n \n",
    "comment": b"# nothing",
    "NUL": b"\0",
    "BOM": b"\xef\xbb\xbfname: bom\n",
    "UTF-16": "name: x\n".encode("utf-16"),
    "not UTF-8": b"name: \xff\xfe\n",
    "random bytes": bytes((i * 7919 + 13) % 256 for i in range(4096)),
    "number": b"3\n",
    "list": b"- a\n- b\n",
    "two documents": b"name: a\n---\nname: b\n",
    "unknown key": b"nmae: x\n",
    "unknown section": b"privcay: {epsilon: 1}\n",
    "doubled key": b"name: a\nname: b\n",
    "doubled section": b"privacy: {epsilon: 1}\nprivacy: {delta: 1e-5}\n",
    "doubled merge": b"a: &a {seed: 1}\nb: &b {seed: 2}\nprivacy:\n  <<: *a\n  <<: *b\n",
    "merge of a number": b"<<: 3\n",
    "merge of itself": b"a: &a {<<: *a}\n",
    "key of a list": b"[a, b]: 1\n",
    "key of nothing": b"null: 1\n? \n: 2\n",
    "key of a number": b"1: 2\n.nan: 3\n",
    "tab before": b"privacy:\n\tepsilon: 1\n",
    "tab after": b"privacy:\n  epsilon:\t1\n",
    "unclosed": b"name: [a, {b: c\n",
    "unclosed text": b"name: 'a\n",
    "3,000 lists": b"[" * 3000,
    "3,000 indents": b"".join(b" " * n + b"a:\n" for n in range(3000)),
    "billion laughs": _laughs(9),
    "billion laughs in a key": _laughs(9) + b"data: {classes: *a8}\n",
    "10 MB of keys": b"".join(b"key%07d: 1\n" % n for n in range(660_000)),
    "1,000 unknown keys": b"".join(b"key%d: 1\n" % n for n in range(1000)),
    "10 MB of text": b"name: " + b"x" * 10_000_000 + b"\n",
    "all wrong": b"".join(
        b"%s: [1]\n" % key for key in (b"name", b"seed", b"data", b"encoder", b"privacy", b"flow", b"paths")
    ),
    "directive": b"%YAML 9.9\n---\nname: x\n",
    "tag": b"!!python/object/apply:os.getcwd []\n",
    "escape codes": b'nmae: "\\e[31m"\n"\\e[31m": 1\n',
}
"""Whole YAML files by name."""


def leaves(values: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Paths of all sections, entries and single values of a tree of mappings and lists; of a long list its ends."""
    if path:
        yield path
    if isinstance(values, dict):
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    elif isinstance(values, list):
        for index in dict.fromkeys([0, len(values) - 1] if values else []):
            yield from leaves(values[index], (*path, index))


def replaced(values: Any, path: tuple[str | int, ...], raw: str) -> str:
    """JSON, which is YAML too, of `values` with raw text at `path`."""
    mark = "\ue000"

    def put(node: Any, rest: tuple[str | int, ...]) -> Any:
        if not rest:
            return mark
        copy = dict(node) if isinstance(node, dict) else list(node)
        copy[rest[0]] = put(node[rest[0]], rest[1:])  # type: ignore[index]
        return copy

    text = json.dumps(put(values, path), indent=1, ensure_ascii=False, default=str)
    return text.replace(f'"{mark}"', raw)
