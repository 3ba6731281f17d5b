"""A kill at every line of charge and release, and in the middle of SQLite's commits: nothing noisy is ever unpaid.

The children are forked from a process of their own (this file as a script), which has no threads and is warm.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from counter import CounterPlan, Learnt, learn

from dpsw_ray.base import files
from dpsw_ray.methods.dpswflow_h.plan import HistogramPlan
from dpsw_ray.privacy import chain, filters
from dpsw_ray.privacy import ledger as ledger_module
from dpsw_ray.privacy.events import GaussianEvent
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.private import answering, keys, receipts, said
from dpsw_ray.release import exchange, question
from dpsw_ray.release.masks import unmask
from dpsw_ray.release.moments import Moments, MomentsPlan, moments_event
from dpsw_ray.slicing.grid import BinGrid
from dpsw_ray.tables import release as release_module
from dpsw_ray.tables.plan import SlicesPlan
from dpsw_ray.tables.release import Release

SEQUENCE = {
    str(Path(str(module.__file__)).resolve())
    for module in (
        exchange,
        answering,
        keys,
        receipts,
        said,
        question,
        ledger_module,
        chain,
        filters,
        release_module,
    )
} | {str(Path(files.__file__).resolve())}
HITS = 2  # of one line: the first two passes through it are points of their own
SECOND_KILLS = 0.15  # share of the points whose resumption is killed too
Point = tuple[str, int, int]


@dataclasses.dataclass(frozen=True)
class Work:
    """One release in a folder of its own, and everything that became visible of it."""

    folder: Path

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger.sqlite"

    def noise(self) -> Any:
        return (self.folder / "noise").read_text()

    def charges(self) -> int:
        with contextlib.closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM log WHERE kind = 'charge'").fetchone()[0])

    def saw(self, number: int, total: np.ndarray) -> None:
        line = f"{hashlib.sha256(total.tobytes()).hexdigest()} {self.charges()} {number}\n"
        descriptor = os.open(self.folder / "seen", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line.encode())
        os.close(descriptor)

    def seen(self) -> list[tuple[str, int, int]]:
        """Digest of every total that reached the driver, the charges there were at that moment, and the question."""
        path = self.folder / "seen"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(digest, int(charges), int(number)) for digest, charges, number in map(str.split, lines)]

    def make(self) -> None:
        """The sequence under attack."""
        from test_release import DIM, shards

        common: dict[str, Any] = {
            "ledger": Ledger(self.ledger),
            "account": "d",
            "run_id": "run",
            "noise_seed": None,
        }
        conversation = (
            self.noise() == "conversation"
        )  # resumed by other numbers of workers, with other weights
        resumed = (self.folder / "release" / "pending.json").exists()
        size = (
            secrets.randbelow(4) + 1 if conversation and resumed else 2
        )  # the points of all first runs are the same
        group: Any = Watching(shards(self.folder / "private", size), self)
        if conversation:
            exchange.release_once(
                Learnt,
                group,
                CounterPlan,
                self.folder / "release",
                manifest=lambda plan: {"release_id": plan.release_id},
                converse=lambda asking: learn(asking, secrets.randbits(32)),
                **common,
            )
            return
        if self.noise() == "moments":
            event = moments_event("replace_one", 1.0, 1e-5, 0.5, DIM)
            exchange.release_once(
                Moments,
                group,
                lambda release_id: MomentsPlan.of(event, DIM, release_id),
                self.folder / "release",
                manifest=lambda plan: {"release_id": plan.release_id, "publishable": True},
                **common,
            )
            return

        def make_plan(release_id: str) -> SlicesPlan:
            return HistogramPlan.make(
                release_id=release_id, dim=DIM, frames=3, grid=BinGrid(16, 0.5), classes=3, class_conditional=True,
                relation="replace_one", epsilon=1.0, delta=1e-5, seed=7, noise=self.noise(),
            )  # fmt: skip

        exchange.release_once(
            Release,
            group,
            make_plan,
            self.folder / "release",
            manifest=lambda plan: {"release_id": plan.release_id, "publishable": True},
            **common,
        )

    def problems(self, kills: int) -> Iterator[str]:
        """What must hold at any moment."""
        seen, charges = self.seen(), self.charges()
        known: dict[int, set[str]] = defaultdict(set)
        if seen and not any((self.folder / "private" / "receipts").glob("*.json")):
            yield "a total was seen of whose charge there is no receipt"
        for digest, paid, number in seen:
            known[number].add(digest)
            if len(known[number]) > paid:
                yield f"total {len(known[number])} was seen after {paid} charges"
        for noises in known.values():
            if len(noises) > charges:
                yield f"{len(noises)} noises for {charges} charges"
        if charges > 1 + kills:
            yield f"{charges} charges after {kills} kills"
        ledger = Ledger(self.ledger)
        if ledger.verify().entries != 1 + charges or len(ledger.entries("d")) != charges:
            yield "the ledger shows other charges than it holds"

    def final_problems(self) -> Iterator[str]:
        """What must hold when the release is made."""
        made: Release | Moments | Learnt
        if self.noise() == "conversation":
            made = Learnt.load(self.folder / "release")
            told = {number: digest for digest, _, number in self.seen()}
            if [hashlib.sha256(reply.tobytes()).hexdigest() for reply in made.replies] != [
                told[number] for number in range(len(made.replies))
            ]:
                yield "what was learnt from is not what was told"
            released = made.replies[-1]
        elif self.noise() == "moments":
            made = Moments.load(self.folder / "release")
            released = made.matrix[np.triu_indices(len(made.matrix))]
        else:
            made = Release.load(self.folder / "release")
            released = made.counts
        if hashlib.sha256(released.tobytes()).hexdigest() != self.seen()[-1][0]:
            yield "the release is not the last total seen"
        if Ledger(self.ledger).find_charge(made.manifest["release_id"]) is None:
            yield "the release is not charged"
        if any((self.folder / "private" / "keys").glob("*")):
            yield "a noise key was left behind"
        kept = receipts.ReceiptStore(self.folder / "private" / "receipts").of("d")
        if ledger_module.Receipt.of(Ledger(self.ledger).entries("d")[-1]) not in kept:
            yield "the last charge has no receipt"


class Watching:
    """A group of shards that notes the noisy total as soon as its parts have left the shards."""

    def __init__(self, group: Any, work: Work) -> None:
        self.group, self.size, self.work = group, group.size, work

    def call(self, method: str, args: Any = (), **kwargs: Any) -> Any:
        results = self.group.call(method, args, **kwargs)
        if method == "contribute":
            self.work.saw(args[0], unmask(results))
        return results

    def rebuild(self) -> None:
        pass


def traced(at: Callable[[Point], None]) -> Callable[[FrameType, str, Any], Any]:
    hits: Counter[tuple[str, int]] = Counter()

    def local(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            place = (frame.f_code.co_filename, frame.f_lineno)
            hits[place] += 1
            if hits[place] <= HITS:
                at((*place, hits[place]))
        return local

    return lambda frame, event, _: local if frame.f_code.co_filename in SEQUENCE else None


def forked(body: Callable[[], None]) -> int:
    """Runs `body` in a child; returns its exit status, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            body()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    deadline = time.monotonic() + 60
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError("a child hung")
        time.sleep(0.001)


def killed_at(work: Work, point: Point) -> bool:
    """Makes the release in a child that kills itself at `point`; False where it never got there."""

    def suicide(here: Point) -> None:
        if here == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def body() -> None:
        sys.settrace(traced(suicide))
        work.make()

    status = forked(body)
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the child ended with {status}")
    return status != 0


def points_of(work: Work) -> list[Point]:
    """All points of an undisturbed release."""
    found: list[Point] = []

    def body() -> None:
        sys.settrace(traced(found.append))
        work.make()
        sys.settrace(None)
        (work.folder / "points").write_text(json.dumps(found))

    if forked(body):
        raise RuntimeError("the undisturbed release failed")
    return [(file, line, hit) for file, line, hit in json.loads((work.folder / "points").read_text())]


def fresh(template: Path, folder: Path) -> Work:
    shutil.copytree(template, folder)
    return Work(folder)


def attack(template: Path, folder: Path, part: int, parts: int) -> dict[str, Any]:
    """Kills at every `parts`-th point from `part`, resumes, and lists what went wrong."""
    random_, problems, seconds = random.Random(part), [], 0
    points = points_of(fresh(template, folder / "count"))
    for number, point in enumerate(points):
        if number % parts != part:
            continue
        work, kills = fresh(template, folder / str(number)), 1
        if not killed_at(work, point):
            problems.append(f"{point}: never reached")
        found = list(work.problems(kills))
        if random_.random() < SECOND_KILLS and killed_at(work, random_.choice(points)):
            kills, seconds = 2, seconds + 1
            found += work.problems(kills)
        work.make()  # in this process, which was not killed
        found += [*work.problems(kills), *work.final_problems()]
        problems += [f"{Path(point[0]).name}:{point[1]} (hit {point[2]}): {problem}" for problem in found]
        shutil.rmtree(work.folder)
    files = sorted({Path(file).name for file, _, _ in points})
    return {"points": len(points), "files": files, "second kills": seconds, "problems": problems}


def redrawn() -> None:
    """Broken twin: noise drawn anew by whoever starts again."""
    answering._noise = lambda *_: NoiseKey(os.urandom(32))


def late() -> None:
    """Broken twin: charged when the release is stored, not before its noise is drawn."""
    charge, save, due = exchange.charge, Release.save, []

    def postpone(*args: Any, **kwargs: Any) -> None:
        due.append((args, kwargs))

    def pay(self: Release, folder: Path) -> None:
        while due:
            args, kwargs = due.pop()
            charge(*args, **kwargs)
        save(self, folder)

    exchange.charge, Release.save = postpone, pay  # type: ignore[assignment, method-assign]


def commits(folder: Path, kills: int) -> dict[str, Any]:
    """Kills a process that charges without end at random times; compares what it was told with the ledger."""
    path, acknowledged, random_, problems = folder / "ledger.sqlite", folder / "told", random.Random(0), []
    Ledger(path).register("d", "replace_one", "record", 1e-5)
    event = GaussianEvent("release", {"replace_one": 1.0}, 100.0)
    acknowledged.touch()

    def charge_on(turn: int) -> None:
        descriptor = os.open(acknowledged, os.O_WRONLY | os.O_APPEND)
        for number in range(10_000):
            release_id = f"{turn}-{number}"
            Ledger(path).charge("d", [event], "run", release_id=release_id)
            os.write(descriptor, f"{release_id}\n".encode())

    for turn in range(kills):
        child = os.fork()
        if child == 0:
            try:
                charge_on(turn)
            finally:
                os._exit(1)
        known = acknowledged.stat().st_size
        while acknowledged.stat().st_size == known:
            time.sleep(0.001)
        time.sleep(random_.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL:
            problems.append(f"turn {turn}: the writer ended by itself")
        told = acknowledged.read_text().split()
        held = [entry.release_id for entry in Ledger(path).entries("d")]
        if not set(told) <= set(held) or len(held) != len(set(held)):
            problems.append(f"turn {turn}: {len(told)} charges were told, {len(held)} are held")
        if len(held) - len(told) > turn + 1:
            problems.append(f"turn {turn}: {len(held) - len(told)} charges that nobody was told of")
        Ledger(path).verify()
    return {"told": len(acknowledged.read_text().split()), "problems": problems}


def main(folder: Path, what: str, part: int, parts: int) -> dict[str, Any]:
    from test_release import store

    if what == "commits":
        return commits(folder, 30)
    template = folder / "template"
    store(template / "private", 40)
    discrete = what == "discrete_gaussian"
    (template / "noise").write_text(
        what if what in ("discrete_gaussian", "moments", "conversation") else "gaussian"
    )
    Ledger(template / "ledger.sqlite").register(
        "d", "replace_one", "record", 1e-5, cap=5.0, filter="renyi" if discrete else "gaussian"
    )
    {"redrawn": redrawn, "late": late}.get(what, lambda: None)()
    warm = fresh(template, folder / "warm")
    warm.make()  # compiles, imports: every fork inherits it
    gc.freeze()
    return attack(template, folder, part, parts)


def run_script(folder: Path, what: str, part: int = 0, parts: int = 1) -> subprocess.Popen[str]:
    folder.mkdir()
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    return subprocess.Popen(
        [sys.executable, __file__, str(folder), what, str(part), str(parts)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=550)
    assert process.returncode == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_no_kill_in_charge_and_release_leaves_noise_unpaid(tmp_path: Path) -> None:
    check_gaussian(result(run_script(tmp_path / "gaussian", "gaussian", 0, 8)))


@pytest.mark.slow
def test_none_of_all_kills_in_charge_and_release_leaves_noise_unpaid(tmp_path: Path) -> None:
    both = [run_script(tmp_path / str(part), "gaussian", part, 2) for part in range(2)]
    for found in [result(process) for process in both]:
        check_gaussian(found)
        assert found["second kills"] > 10


def check_gaussian(found: dict[str, Any]) -> None:
    assert found["problems"] == []
    assert found["points"] > 200 and found["second kills"] > 0
    assert found["files"] == sorted(Path(file).name for file in SEQUENCE)


@pytest.mark.parametrize(
    ("twin", "sign"), [("redrawn", "2 noises for 1 charges"), ("late", "seen after 0 charges")]
)
def test_the_attack_finds_broken_twins(tmp_path: Path, twin: str, sign: str) -> None:
    found = result(run_script(tmp_path / twin, twin, 0, 25))
    assert any(sign in problem for problem in found["problems"]), found


def test_no_kill_leaves_drawn_tables_of_discrete_noise_unpaid(tmp_path: Path) -> None:
    found = result(
        run_script(tmp_path / "discrete", "discrete_gaussian", 0, 8)
    )  # the same points, every eighth
    assert found["problems"] == [] and found["points"] > 200


def test_no_kill_leaves_moments_of_a_private_encoder_unpaid(tmp_path: Path) -> None:
    found = result(run_script(tmp_path / "moments", "moments", 0, 8))
    assert found["problems"] == [] and found["points"] > 200


def test_no_kill_in_a_conversation_gives_a_question_two_noises(tmp_path: Path) -> None:
    """Twenty questions to parts that remember; whoever resumes has other weights and another number of workers."""
    parts = 2 if "DPSW_KILLS" in os.environ else 16
    both = [run_script(tmp_path / str(part), "conversation", part, parts) for part in range(2)]
    for found in [result(process) for process in both]:
        assert found["problems"] == []
        assert found["points"] > 300 and {"said.py", "question.py"} <= set(found["files"])


def test_no_kill_in_a_commit_loses_a_charge_or_the_ledger(tmp_path: Path) -> None:
    found = result(run_script(tmp_path / "commits", "commits"))
    assert found["problems"] == [] and found["told"] >= 30


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
