"""Strange keys, options and stored files: one of each kind; `benchmarks/fuzz.py` tries all of them."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from fuzz import PARTS as EVERY_PART
from fuzz import Choice, causes, fuzz, told
from fuzz_support import Doing, compute, stop, wait
from fuzzing.case import Given
from fuzzing.doors import Ended, call, complaint
from fuzzing.harms import flip, harms_of
from fuzzing.options import COMMANDS, commands
from fuzzing.places import lay_hazards, state_of
from fuzzing.pool import Pool
from fuzzing.values import JSON_VALUES, leaves, replaced

PARTS = ("run", "sweep", "account", "option", "stored/digits")


def test_strange_inputs_are_refused_in_a_sentence_or_change_nothing(tmp_path: Path) -> None:
    tried = fuzz(Choice(PARTS, quick=True), tmp_path, 2, lambda outcome: None)
    counts = {part: dict(one.counts) for part, one in tried.items()}
    print(counts)
    assert all(sum(found.values()) >= 3 for found in counts.values())
    found = causes(outcome for one in tried.values() for outcome in one.outcomes)
    assert not found, told(found)


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("part", EVERY_PART)
def test_many_strange_inputs_of_every_part(part: str, tmp_path: Path) -> None:
    seed = random.randrange(1000)
    tried = fuzz(Choice((part,), share=0.1, seed=seed), tmp_path, 2, lambda outcome: None)
    assert sum(tried[part].counts.values()) >= 3
    found = causes(outcome for one in tried.values() for outcome in one.outcomes)
    assert not found, f"--seed {seed}: {told(found)}"


def test_every_command_has_a_valid_call() -> None:
    assert {name for name, _ in commands()} == set(COMMANDS)


def test_crashes_and_hangs_are_seen_and_the_next_case_is_tried(tmp_path: Path) -> None:
    cases = [Doing("stop", stop), Doing("compute", compute), Doing("wait", wait), Doing("done", os.getpid)]
    with Pool(tmp_path, 1) as pool:
        verdicts = {outcome.name: outcome.verdict for outcome in pool.run(cases)}
    assert verdicts == {"stop": "crash", "compute": "hang", "wait": "hang", "done": "accepted"}


@pytest.mark.parametrize(
    ("err", "part"),
    [
        ("Error: a.yaml: name must be text, found 3.\n", ""),
        ("Traceback (most recent call last):\n", "does not begin"),
        ("Error: one\ntwo.\n", "several lines"),
        ("Error: \x1b[31mred.\n", "unprintable"),
        ("Error: " + "x" * 1000 + ".\n", "longer"),
        ("Error: no sentence\n", "no sentence"),
    ],
)
def test_a_message_is_one_printable_sentence(err: str, part: str) -> None:
    found = complaint(Ended(2, "", err))
    assert part in found if part else not found


def test_what_changed_is_seen(tmp_path: Path) -> None:
    lay_hazards(tmp_path)
    before = state_of(tmp_path)
    assert {"hazards/fifo", "hazards/loop", "hazards/full"} <= before.keys()
    assert state_of(tmp_path) == before
    (tmp_path / "hazards" / "full").unlink()
    (tmp_path / "hazards" / "full").write_text("")
    flip(tmp_path / "hazards" / "file", 3)
    after = state_of(tmp_path)
    assert {path for path in before if before[path] != after[path]} == {"hazards/file", "hazards/full"}


def test_a_file_that_is_written_over_is_found(tmp_path: Path) -> None:
    subject, place = tmp_path / "subject", tmp_path / "place"
    subject.mkdir()
    register = ("ledger", "register", "a", "--relation", "replace_one", "--unit", "record", "--delta", "1e-5")
    assert call("dpsw", register, subject).code == 0
    # An export may replace an earlier one: here nobody allowed it.
    export = ("ledger", "export", "--out", "export.json")
    case = Given("export", "", "dpsw", export, (("export.json", b"{}"),), subject=subject)
    place.mkdir()
    attempt = case.attempt(place)
    assert attempt.verdict == "changed" and "export.json" in attempt.detail


def test_entries_are_replaced_one_at_a_time() -> None:
    values = {"a": 1, "b": {"c": [2, 3, 4]}}
    assert list(leaves(values)) == [("a",), ("b",), ("b", "c"), ("b", "c", 0), ("b", "c", 2)]
    assert '"c": [\n   2,\n   3,\n   NaN\n  ]' in replaced(values, ("b", "c", 2), JSON_VALUES["NaN"])


def test_harms_are_the_same_for_a_seed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, 2]}')
    names = [[name for name, _ in harms_of(path, "a.json", seed, {})] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    assert len(set(names[0])) == len(names[0])
