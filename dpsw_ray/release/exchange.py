"""The door, on the driver's side: charge, ask, store, commit. The driver sees no true sum.

    pending.json   the release's random id is durable before anything else
    noise secret   made by shard 0 on the private side, durable, tied to this plan and these latents
    charge         the ledger's entry is durable, and so is the private side's receipt of it, before the first noisy
                   number exists; a ledger that lacks a charge which there is a receipt of is refused
    questions      each is durable before it is asked, each reply before the next; messages are masked modulo 2^64, and
                   their sum is the noisy answer
    release/       written atomically, the manifest last
    commit         the noise secret is destroyed

Whoever starts again in the middle finds one of three states: a whole release (free), a charged one whose
secret still exists (free: the retry gives the same bits), or anything else, which begins anew under a new id and
is charged. A secret is made before its charge only, so there is at most one noise for every charge and question.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import UserError
from dpsw_ray.base.files import DamagedFile, read_arrays, read_json, read_manifest, write_arrays, write_json
from dpsw_ray.cluster.groups import WorkerDied, WorkerGroup
from dpsw_ray.privacy.events import Event
from dpsw_ray.privacy.ledger import Ledger, LedgerEntry, Receipt
from dpsw_ray.privacy.noise import SAMPLER
from dpsw_ray.release.masks import unmask
from dpsw_ray.release.place import place, weakest
from dpsw_ray.release.plan import Plan
from dpsw_ray.release.preflight import check_disk, check_release_whole
from dpsw_ray.release.question import Question, canonical
from dpsw_ray.release.released import Released

__all__ = [
    "Exchange",
    "ask_all",
    "begin_release",
    "charge",
    "draw_release",
    "end_release",
    "is_charged",
    "keep_receipt",
    "noisy_answer",
    "release_once",
    "reserve_release",
]

T = TypeVar("T")
P = TypeVar("P", bound=Plan)

_ATTEMPTS = 5
_QUESTION, _REPLY = "question-{release_id}-{number}.npz", "reply-{release_id}-{number}.npz"


R = TypeVar("R", bound=Released[Any])


class Exchange(Generic[P]):
    """A conversation of T questions under a plan that is charged, or is going to be with others.

    Attributes:
        plan: what is asked, and what all questions cost.
        number: of the question that comes next, from 0.
        computed_in: where the private sums are, earlier attempts included (`release.place`).
    """

    def __init__(self, shards: WorkerGroup, plan: P, folder: Path, noise_seed: int | None = None) -> None:
        """Goes on with what `folder` holds of this conversation.

        Args:
            shards: the private side's workers.
            plan: its noise secret is durable, and so is its charge.
            folder: where questions and replies are stored.
            noise_seed: reproducible noise, or None.
        """
        self.plan = plan
        self._shards, self._folder, self._seed = shards, folder, noise_seed
        noted = read_json(self._pending) if _pending_id(self._pending) == plan.release_id else {}
        self.number = int(noted.get("forgotten", 0))
        self.computed_in = self._noted_place(noted)
        self._note()

    @property
    def _pending(self) -> Path:
        return self._folder / "pending.json"

    def _noted_place(self, noted: Mapping[str, Any]) -> str:
        """A note that does not say where an attempt was is of an earlier version, and could have been anywhere."""
        places = [place(_persist(self._shards, lambda: self._shards.call("process")))]
        before = noted.get("computed_in", "unknown") if noted else None
        return weakest(places if before is None else [*places, str(before)])

    def _note(self) -> None:
        note = {"release_id": self.plan.release_id, "computed_in": self.computed_in, "forgotten": self.number}
        write_json(self._pending, note)

    def ask(self, question: Question | None = None) -> NDArray[np.int64]:
        """The noisy answer to the next question; a stored one where there is one.

        Where this number was asked before, what was asked then is asked again, whatever `question` says: under the same
        noise another one would show the difference of two exact answers.

        Args:
            question: arrays by name, made from what was answered before; None where the plan says everything.

        Returns:
            Array of size `plan.shape(number)`.

        Raises:
            UserError: the question holds a NaN, a stored file is damaged, or the private side refuses.
            RuntimeError: all questions are asked.
        """
        number = self.number
        if number >= self.plan.questions:
            raise RuntimeError(f"all {self.plan.questions} questions of this plan are asked")
        stored, replied = self._file(_QUESTION, number), self._file(_REPLY, number)
        if question and not stored.exists():
            write_arrays(stored, canonical(question))
        if stored.exists():
            question = read_arrays(stored)
        if replied.exists():
            reply = read_arrays(replied)["reply"]
        else:
            reply = self._asked(number, question or {})
            if self.plan.questions > 1:
                write_arrays(replied, {"reply": reply})
        self.number += 1
        return reply

    def go_to(self, number: int) -> None:
        """Sets the number of the next question, for a learner whose checkpoint holds what came of those before.

        Raises:
            UserError: a question that is not forgotten has no stored reply.
        """
        missing = [n for n in range(self.number, number) if not self._file(_REPLY, n).exists()]
        if missing or number < self.number:
            raise UserError(
                f"{self._folder} lacks the reply to question {(missing or [number])[0] + 1}: restore it from a copy, "
                "or give another --output, which is charged again."
            )
        self.number = number

    def forget(self, before: int) -> None:
        """Removes questions and replies of smaller numbers, once a durable checkpoint holds what came of them."""
        now, self.number = self.number, before
        self._note()
        self.number = now
        for kind in (_QUESTION, _REPLY):
            for number in range(before):
                self._file(kind, number).unlink(missing_ok=True)

    def commit(self) -> None:
        """Destroys the noise secret and all stored answers: nothing is asked under this id any more."""
        _commit(self._shards, self.plan.release_id, self._pending)

    def _file(self, name: str, number: int | str) -> Path:
        return self._folder / name.format(release_id=self.plan.release_id, number=number)

    def _asked(self, number: int, question: Question) -> NDArray[np.int64]:
        # Repeated as a whole, under fresh masks: the noise secret outlives the worker that made it, so the answer
        # has the same bits.
        return _persist(
            self._shards, lambda: noisy_answer(self._shards, self.plan, number, question, self._seed)
        )


def noisy_answer(
    shards: WorkerGroup,
    plan: Plan,
    number: int = 0,
    question: Question = MappingProxyType({}),
    noise_seed: int | None = None,
) -> NDArray[np.int64]:
    """Asks the private side's workers one question, once: the sum of their masked messages, array of `plan.shape`.

    Raises:
        WorkerDied: one of them is gone; asked again, the others say the same.
        UserError: the question is refused.
    """
    size = shards.size
    chunks = shards.call("can_repeat", (plan, noise_seed))[0] or size
    assignment = tuple(tuple(range(rank, chunks, size)) for rank in range(size))
    given = shards.call("answer", (plan, number, question, assignment, noise_seed))
    hashes = {chunk: value for _, own in given for chunk, value in own.items()}
    return unmask(shards.call("contribute", (number, hashes, [public for public, _ in given])))


def ask_all(exchange: Exchange[Any]) -> NDArray[np.int64]:
    """The answers to all questions of a plan that says everything itself, one after the other."""
    replies = [exchange.ask() for _ in range(exchange.number, exchange.plan.questions)]
    return replies[0] if len(replies) == 1 else np.concatenate(replies)


def release_once(
    kind: type[R],
    shards: WorkerGroup,
    make_plan: Callable[[str], P],
    folder: Path,
    *,
    ledger: Ledger,
    account: str,
    run_id: str,
    noise_seed: int | None,
    manifest: Callable[[P], Mapping[str, Any]],
    prepaid: bool = False,
    converse: Callable[[Exchange[P]], NDArray[Any]] = ask_all,
) -> R:
    """Returns the stored release of `folder`, or makes and pays for it.

    Args:
        kind: of release.
        shards: the private side's workers, what they hold in place.
        make_plan: from a release id to the plan.
        folder: where the release lives.
        ledger: who is charged, at `account`.
        account: name of the registered data set.
        run_id: for the ledger's entry.
        noise_seed: reproducible noise, for plans of `gaussian` noise only, or None.
        manifest: what the stored release says of itself, called after the charge.
        prepaid: it was reserved by `reserve_release` and charged with others; it is never charged again.
        converse: asks the plan's questions; what it returns becomes the release (`kind.from_plan`). Whoever resumes
            calls it again: it is given the stored replies first.

    Raises:
        UserError: the ledger refuses the charge, the stored release is not in it or not whole, a prepaid one is lost,
            or the disk has no room for it.
    """
    if os.path.lexists(folder / "manifest.json"):
        release = kind.load(folder)
        release_id = str(release.manifest["release_id"])
        _check_charged(ledger, account, release_id, folder, make_plan if prepaid else None)
        _commit(shards, release_id, folder / "pending.json")
        return release
    plan = _charged_plan(shards, make_plan, folder, ledger, account, run_id, noise_seed, prepaid)
    return draw_release(
        kind, shards, plan, folder, noise_seed=noise_seed, manifest=manifest, converse=converse
    )


def _charged_plan(
    shards: WorkerGroup,
    make_plan: Callable[[str], P],
    folder: Path,
    ledger: Ledger,
    account: str,
    run_id: str,
    noise_seed: int | None,
    prepaid: bool,
) -> P:
    """The plan of a release that is charged and whose secret is durable: one that was begun, or a new one."""
    pending = folder / "pending.json"
    check_release_whole(folder)
    plan = _begun(shards, make_plan, pending, ledger, account, noise_seed)
    if plan is not None:  # whoever charged it may have died before there was a receipt
        entry = ledger.find_charge(plan.release_id)
        assert entry is not None
        keep_receipt(shards, ledger, entry)
    elif prepaid:
        raise _lost(folder)
    else:
        plan = _new_plan(shards, make_plan, pending, noise_seed)
        try:
            charge(shards, ledger, account, [plan.event], run_id, release_id=plan.release_id)
        except UserError:  # refused: nothing was released, and the secret must not stay behind
            _commit(shards, plan.release_id, pending)
            raise
    return plan


def charge(
    shards: WorkerGroup,
    ledger: Ledger,
    account: str,
    events: Sequence[Event],
    run_id: str,
    note: str = "",
    *,
    release_id: str,
) -> LedgerEntry:
    """Charges `events`, and returns once the ledger's entry and the private side's receipt of it are durable.

    Args:
        shards: the private shards, who keep the receipts.
        ledger: who is charged, at `account`.
        account: name of the registered data set.
        events: everything the release does.
        run_id: whose charge it is.
        note: for the reader of the ledger.
        release_id: of the release.

    Raises:
        UserError: the ledger refuses the charge, or lacks one that there is a receipt of.
    """
    receipts = _receipts(shards, account)
    ledger.charge(account, events, run_id, note, release_id=release_id, receipts=receipts)
    entry = ledger.find_charge(release_id)
    assert entry is not None, "the ledger has read it back"
    _keep(shards, entry, receipts)
    return entry


def keep_receipt(shards: WorkerGroup, ledger: Ledger, entry: LedgerEntry) -> None:
    """Makes the private side's receipt of an earlier charge durable, where whoever charged it died before.

    Raises:
        UserError: the ledger lacks another charge that there is a receipt of.
    """
    receipts = _receipts(shards, entry.dataset)
    ledger.check_receipts(receipts)
    _keep(shards, entry, receipts)


def _keep(shards: WorkerGroup, entry: LedgerEntry, instead: Sequence[Receipt]) -> None:
    if entry.publishable:  # research promises nothing, and may be charged to whatever ledger
        shards.call("keep_receipt", (Receipt.of(entry), instead), retry=True)


def _receipts(shards: WorkerGroup, account: str) -> tuple[Receipt, ...]:
    return tuple(shards.call("receipts", (account,), retry=True)[0])


def is_charged(ledger: Ledger, folder: Path) -> bool:
    """Whether what `folder` holds, or began, was charged already: going on with it costs nothing, as a rule."""
    if os.path.lexists(folder / "manifest.json"):
        return True
    begun = _pending_id(folder / "pending.json")
    return begun is not None and ledger.find_charge(begun) is not None


def reserve_release(
    shards: WorkerGroup,
    make_plan: Callable[[str], P],
    folder: Path,
    *,
    ledger: Ledger,
    account: str,
    noise_seed: int | None,
) -> P | None:
    """Readies a release that is going to be charged with others, before any of them is drawn.

    Its id and its noise secret are durable when this returns, so that whoever dies between the charge and the
    release can repeat it with the same bits.

    Args:
        shards: the private shards, latents in place.
        make_plan: from a release id to the plan.
        folder: where the release is going to live.
        ledger: who is going to be charged, at `account`.
        account: name of the registered data set.
        noise_seed: reproducible noise, or None.

    Returns:
        The plan to charge under its `release_id`; None where that was done before.

    Raises:
        UserError: it was charged, and can no longer be repeated; or what is stored was charged for another plan.
    """
    pending = folder / "pending.json"
    if os.path.lexists(folder / "manifest.json"):
        _check_charged(
            ledger, account, str(read_manifest(folder / "manifest.json")["release_id"]), folder, make_plan
        )
        return None
    check_release_whole(folder)
    if _begun(shards, make_plan, pending, ledger, account, noise_seed) is not None:
        return None
    begun = _pending_id(pending)
    if begun is not None and ledger.find_charge(begun) is not None:
        raise _lost(folder)  # a second charge would pass what the whole was planned to cost
    return _new_plan(shards, make_plan, pending, noise_seed)


def begin_release(shards: WorkerGroup, make_plan: Callable[[str], P], folder: Path) -> P:
    """Readies a release of which nobody outside the private side is going to know unless it is chosen.

    What it costs must be charged already, under another id, for whatever is chosen. A release that was begun in
    `folder` is gone on with: the same bits.
    """
    pending = folder / "pending.json"
    begun = _pending_id(pending)
    if begun is not None:
        plan = make_plan(begun)
        if shards.call("can_repeat", (plan, None))[0]:
            return plan
    return _new_plan(shards, make_plan, pending, None)


def draw_release(
    kind: type[R],
    shards: WorkerGroup,
    plan: P,
    folder: Path,
    *,
    noise_seed: int | None,
    manifest: Callable[[P], Mapping[str, Any]],
    converse: Callable[[Exchange[P]], NDArray[Any]] = ask_all,
) -> R:
    """Draws and stores a release that is charged and whose noise secret is durable, then destroys the secret.

    Args and errors are those of `release_once`.
    """
    exchange = Exchange(shards, plan, folder, noise_seed)
    learnt = converse(exchange)
    told = {**manifest(plan), "computed_in": exchange.computed_in, "sampler": SAMPLER}
    release = kind.from_plan(plan, learnt, told)
    release.save(folder)
    exchange.commit()
    return release


def end_release(shards: WorkerGroup, folder: Path) -> None:
    """Destroys the noise secret of a release that was begun in `folder` and not committed: it is never drawn again."""
    pending = folder / "pending.json"
    begun = _pending_id(pending)
    if begun is not None:
        _commit(shards, begun, pending)


def _new_plan(shards: WorkerGroup, make_plan: Callable[[str], P], pending: Path, noise_seed: int | None) -> P:
    """A plan under a new id, which is durable with its noise secret, and not charged yet."""

    def prepared() -> P:
        # Another id for every attempt: what became of the secret that a lost worker was making, nobody knows.
        release_id = secrets.token_hex(16)
        plan = make_plan(release_id)
        check_disk(plan, pending.parent)
        write_json(pending, {"release_id": release_id, "computed_in": None})  # nothing is summed yet
        shards.call("prepare", (plan, noise_seed))
        return plan

    return _persist(shards, prepared)


def _check_charged(
    ledger: Ledger,
    account: str,
    release_id: str,
    folder: Path,
    make_plan: Callable[[str], Plan] | None = None,
) -> None:
    """Refuses a release of elsewhere, which this ledger's totals would not know; with a plan, one of another plan."""
    entry = ledger.find_charge(release_id)
    if entry is None or entry.dataset != account:
        raise UserError(
            f"The release stored in {folder} is not charged to {account} in the ledger {ledger.path}: use the "
            "ledger it was charged to (paths.ledger), give another --output, or draw more samples from it "
            "with the `generate` command."
        )
    if make_plan is not None and entry.events != (make_plan(release_id).event,):
        raise UserError(
            f"The release stored in {folder} was charged for another mechanism or another epsilon than this config's: "
            "go on with the config it was made with, or give another --output."
        )


def _begun(
    shards: WorkerGroup,
    make_plan: Callable[[str], P],
    pending: Path,
    ledger: Ledger,
    account: str,
    noise_seed: int | None,
) -> P | None:
    """The plan of a release that was charged and begun here and may be repeated for free, if there is one."""
    release_id = _pending_id(pending)
    if release_id is None:
        return None
    entry = ledger.find_charge(release_id)
    plan = make_plan(release_id)
    if entry is None:
        shards.call("commit", (release_id,))  # never charged: its secret, if there is one, protects nothing
        return None
    # Charged to somebody else, for something else, or for noise of another kind: no retry of that charge.
    if entry.dataset != account or entry.events != (plan.event,):
        return None
    return plan if shards.call("can_repeat", (plan, noise_seed))[0] else None


def _pending_id(pending: Path) -> str | None:
    """The id of a release that was begun; None where none was.

    Raises:
        UserError: the file is damaged, and nobody can say that its release was not charged.
    """
    if not os.path.lexists(pending):
        return None
    try:
        return str(read_json(pending)["release_id"])
    except KeyError:
        raise DamagedFile.of(pending, "is damaged (it names no release)") from None


def _lost(folder: Path) -> UserError:
    return UserError(
        f"The release that was paid for in {folder} cannot be repeated: its noise secret, the plan or the latents are "
        "not those of the charge; begin anew in another --output, which is charged again."
    )


def _persist(shards: WorkerGroup, action: Callable[[], T]) -> T:
    """Repeats `action` on fresh workers when one dies, a few times."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return action()
        except WorkerDied:
            with contextlib.suppress(WorkerDied):  # dying again: the next attempt sees it
                shards.rebuild()
    return action()


def _commit(shards: WorkerGroup, release_id: str, pending: Path) -> None:
    shards.call("commit", (release_id,))
    for kind in (_QUESTION, _REPLY):
        for part in pending.parent.glob(kind.format(release_id=release_id, number="*")):
            part.unlink()
    pending.unlink(missing_ok=True)
