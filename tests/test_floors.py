"""The floors of the house: no import makes a circle, and none runs upwards.

The graph is drawn from the sources. Imports inside functions count, those under TYPE_CHECKING do not. A room is a
package below `dpsw_ray`; every method is a room of its own, on the floor of the methods.
"""

from __future__ import annotations

import ast
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

import dpsw_ray

SOURCE = Path(dpsw_ray.__file__).parent
FLOORS = (
    ("base",),
    ("config",),
    ("privacy", "slicing"),
    ("cluster", "data"),
    ("release",),
    ("encoders", "tables"),
    ("flow",),
    ("generator", "evaluation"),
    ("private",),
    ("methods",),
    ("pipeline",),
    ("experiment", "audit"),
    ("federated", "tune"),
    ("commands",),
    ("entry",),
)
"""From the ground up. A room imports from floors below its own; `entry` is what starts a program: `cli`, `__main__`."""


def floor(room: str) -> int:
    name = room.partition(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def room(module: str) -> str:
    """In which room a module lies, such as `methods.dpswflow`."""
    parts = module.split(".")[1:]
    if not parts or parts[0] == "cli" or parts[-1] == "__main__":
        return "entry"
    return ".".join(parts[: 2 if parts[0] == "methods" else 1])


def modules() -> dict[str, Path]:
    found = {}
    for place, _, names in os.walk(SOURCE, followlinks=True):
        for name in names:
            path = Path(place, name)
            if path.suffix == ".py":
                parts = path.relative_to(SOURCE.parent).with_suffix("").parts
                found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(source: str, known: Iterable[str]) -> Iterator[str]:
    """The modules, of those that are known, that a source imports when it runs."""
    for node in running(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in known or node.module in known:
                    yield inner if inner in known else node.module


def running(node: ast.AST) -> Iterator[ast.AST]:
    """All of a tree but what only type checkers read."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield from running(other)
        else:
            yield from running(child)


def graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    return {module: {*imported(source, sources)} - {module} for module, source in sources.items()}


def upward(imports: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """Imports from a room on the same floor or above."""
    return sorted(
        (module, other)
        for module, others in imports.items()
        for other in others
        if room(module) != room(other) and not below(room(other), room(module))
    )


def below(lower: str, upper: str) -> bool:
    """Whether a room may be imported from another: within the methods, the graph of rooms decides (`circles`)."""
    return floor(lower) < floor(upper) or (floor(lower) == floor(upper) == floor("methods"))


def circles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups that are reached from each other (Tarjan's strongly connected components of more than one)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            at = stack.index(node)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(edges):
        if node not in number:
            visit(node)
    return found


def rooms(imports: Mapping[str, set[str]]) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = defaultdict(set)
    for module, others in imports.items():
        edges[room(module)] |= {room(other) for other in others} - {room(module)}
    return dict(edges)


@pytest.fixture(scope="module")
def house() -> dict[str, set[str]]:
    return graph({module: path.read_text() for module, path in modules().items()})


def test_every_room_has_a_floor(house: dict[str, set[str]]) -> None:
    named = {name for names in FLOORS for name in names}
    assert {room(module).partition(".")[0] for module in house} == named


def test_no_import_runs_upwards(house: dict[str, set[str]]) -> None:
    assert not [f"{module} imports {other}" for module, other in upward(house)]


def test_no_import_makes_a_circle(house: dict[str, set[str]]) -> None:
    assert not circles(house), "modules"
    assert not circles(rooms(house)), "rooms"


def test_the_folders_at_the_top_are_imported_by_one_name(house: dict[str, set[str]]) -> None:
    """`import tune` from a checkout would load every module a second time."""
    root = Path(__file__).parents[1]
    paths = [*modules().values(), *(root / "tests").rglob("*.py"), *(root / "benchmarks").rglob("*.py")]
    for path in paths:
        found = {*imported(path.read_text(), TopLevel())}
        assert not found, f"{path} imports {sorted(found)}"


class TopLevel:
    """What begins with the name of a folder at the top."""

    def __contains__(self, module: object) -> bool:
        return str(module).partition(".")[0] in ("tune", "federated", "configs")


def test_what_breaks_the_order_is_named() -> None:
    sources = {
        "dpsw_ray.base.files": "from dpsw_ray.base import errors\n",
        "dpsw_ray.base.errors": "def late():\n    from dpsw_ray.private.shard import Shard\n",
        "dpsw_ray.private.shard": "import dpsw_ray.base.files\n",
        "dpsw_ray.methods.one.plan": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import dpsw_ray.cli\n",
        "dpsw_ray.cli": "from dpsw_ray.private import shard",
    }  # fmt: skip
    found = graph(sources)
    assert found["dpsw_ray.methods.one.plan"] == set()
    assert upward(found) == [("dpsw_ray.base.errors", "dpsw_ray.private.shard")]
    assert circles(found) == [["dpsw_ray.base.errors", "dpsw_ray.base.files", "dpsw_ray.private.shard"]]
    assert circles(rooms(found)) == [["base", "private"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})
