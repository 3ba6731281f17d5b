"""The release as a protocol: charge, sum under masks, write, commit. Runs on the driver, which sees no true sum.

    pending.json   the release's random id is durable before anything else
    noise secret   made by shard 0 on the private side, durable, tied to this plan and these latents
    charge         the ledger's entry is durable before the first noisy number exists
    messages       masked modulo 2^64; their sum is the noisy table (of a long release, a part of its rounds)
    release/       written atomically, the manifest last
    commit         the noise secret is destroyed

Whoever starts again in the middle finds one of three states: a whole release (free), a charged one whose
secret still exists (free: the retry gives the same bits), or anything else, which begins anew under a new id and
is charged. A secret is made before its charge only, so there is at most one noise for every charge.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.cluster.groups import WorkerDied, WorkerGroup
from dpsw_ray.errors import UserError
from dpsw_ray.files import atomic_path, write_json
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.private.masking import unmask
from dpsw_ray.release.moments import Moments, MomentsPlan
from dpsw_ray.release.plan import AnyPlan, ReleasePlan
from dpsw_ray.release.release import Release

__all__ = [
    "begin_release",
    "draw_release",
    "end_release",
    "is_charged",
    "release_moments_once",
    "release_once",
    "reserve_release",
]

T = TypeVar("T")
P = TypeVar("P", bound=AnyPlan)
P_contra = TypeVar("P_contra", bound=AnyPlan, contravariant=True)

_ATTEMPTS = 5
_PARTS = "part-{release_id}-{number}.npy"


class _Released(Protocol[P_contra]):
    """What noisy totals become: it is saved whole or not at all, `manifest.json` last."""

    @property
    def manifest(self) -> Mapping[str, Any]: ...

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder: Path) -> Self: ...

    @classmethod
    def from_plan(cls, plan: P_contra, counts: NDArray[np.int64], manifest: Mapping[str, Any], /) -> Self: ...


R = TypeVar("R", bound=_Released[Any])


def release_once(
    shards: WorkerGroup,
    make_plan: Callable[[str], ReleasePlan],
    folder: Path,
    *,
    ledger: Ledger,
    account: str,
    run_id: str,
    noise_seed: int | None,
    manifest: Callable[[ReleasePlan], Mapping[str, Any]],
    prepaid: bool = False,
) -> Release:
    """Returns the stored release of `folder`, or makes and pays for it.

    Args:
        shards: the private shards, latents in place.
        make_plan: from a release id to the plan.
        folder: where the release lives.
        ledger: who is charged, at `account`.
        account: name of the registered data set.
        run_id: for the ledger's entry.
        noise_seed: reproducible noise, for plans of `gaussian` noise only, or None.
        manifest: what the stored release says of itself, called after the charge.
        prepaid: it was reserved by `reserve_release` and charged with others; it is never charged again.

    Raises:
        UserError: the ledger refuses the charge, the stored release is not in it, or a prepaid one is lost.
    """
    return _once(
        Release, shards, make_plan, folder, ledger, account, run_id, noise_seed, manifest, prepaid=prepaid
    )


def release_moments_once(
    shards: WorkerGroup,
    make_plan: Callable[[str], MomentsPlan],
    folder: Path,
    *,
    ledger: Ledger,
    account: str,
    run_id: str,
    noise_seed: int | None,
    manifest: Callable[[MomentsPlan], Mapping[str, Any]],
) -> Moments:
    """The same for the moments of a private encoder; see `release_once`."""
    return _once(Moments, shards, make_plan, folder, ledger, account, run_id, noise_seed, manifest)


def _once(
    kind: type[R],
    shards: WorkerGroup,
    make_plan: Callable[[str], P],
    folder: Path,
    ledger: Ledger,
    account: str,
    run_id: str,
    noise_seed: int | None,
    manifest: Callable[[P], Mapping[str, Any]],
    *,
    prepaid: bool = False,
) -> R:
    pending = folder / "pending.json"
    if (folder / "manifest.json").exists():
        release = kind.load(folder)
        release_id = str(release.manifest["release_id"])
        _check_charged(ledger, account, release_id, folder, make_plan if prepaid else None)
        _commit(shards, release_id, pending)
        return release
    plan = _begun(shards, make_plan, pending, ledger, account, noise_seed, prepaid)
    if plan is None and prepaid:
        raise _lost(folder)
    if plan is None:
        plan = _new_plan(shards, make_plan, pending, noise_seed)
        try:
            ledger.charge(account, [plan.event], run_id, release_id=plan.release_id)
        except UserError:  # refused: nothing was released, and the secret must not stay behind
            _commit(shards, plan.release_id, pending)
            raise
    return _draw(kind, shards, plan, folder, noise_seed, manifest)


def is_charged(ledger: Ledger, folder: Path) -> bool:
    """Whether what `folder` holds, or began, was charged already: going on with it costs nothing, as a rule."""
    if (folder / "manifest.json").exists():
        return True
    begun = _pending_id(folder / "pending.json")
    return begun is not None and ledger.find_charge(begun) is not None


def reserve_release(
    shards: WorkerGroup,
    make_plan: Callable[[str], ReleasePlan],
    folder: Path,
    *,
    ledger: Ledger,
    account: str,
    noise_seed: int | None,
) -> ReleasePlan | None:
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
    if (folder / "manifest.json").exists():
        _check_charged(ledger, account, str(Release.load(folder).manifest["release_id"]), folder, make_plan)
        return None
    if _begun(shards, make_plan, pending, ledger, account, noise_seed, True) is not None:
        return None
    begun = _pending_id(pending)
    if begun is not None and ledger.find_charge(begun) is not None:
        raise _lost(folder)  # a second charge would pass what the whole was planned to cost
    return _new_plan(shards, make_plan, pending, noise_seed)


def begin_release(shards: WorkerGroup, make_plan: Callable[[str], ReleasePlan], folder: Path) -> ReleasePlan:
    """Readies a release of which nobody outside the private side is going to know unless it is chosen.

    What it costs must be charged already, under another id, for whatever is chosen. A release that was begun in
    `folder` is gone on with: the same bits.
    """
    pending = folder / "pending.json"
    begun = _pending_id(pending)
    if begun is not None:
        plan = make_plan(begun)
        if shards.call("can_repeat", (plan,))[0]:
            return plan
    return _new_plan(shards, make_plan, pending, None)


def draw_release(
    shards: WorkerGroup,
    plan: ReleasePlan,
    folder: Path,
    *,
    noise_seed: int | None,
    manifest: Callable[[ReleasePlan], Mapping[str, Any]],
) -> Release:
    """Draws and stores a release that is charged and whose noise secret is durable, then destroys the secret."""
    return _draw(Release, shards, plan, folder, noise_seed, manifest)


def _draw(
    kind: type[R],
    shards: WorkerGroup,
    plan: P,
    folder: Path,
    noise_seed: int | None,
    manifest: Callable[[P], Mapping[str, Any]],
) -> R:
    release = kind.from_plan(plan, _noisy_totals(shards, plan, folder, noise_seed), manifest(plan))
    release.save(folder)
    _commit(shards, plan.release_id, folder / "pending.json")
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
        write_json(pending, {"release_id": release_id})
        plan = make_plan(release_id)
        if noise_seed is None:
            shards.call("prepare", (plan,))
        return plan

    return _persist(shards, prepared)


def _check_charged(
    ledger: Ledger,
    account: str,
    release_id: str,
    folder: Path,
    make_plan: Callable[[str], AnyPlan] | None = None,
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
    prepaid: bool,
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
    if (
        noise_seed is not None
    ):  # the seed gives the same bits, but only a prepaid charge is known to be for it
        return plan if prepaid else None
    return plan if shards.call("can_repeat", (plan,))[0] else None


def _pending_id(pending: Path) -> str | None:
    try:
        return str(json.loads(pending.read_text())["release_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _lost(folder: Path) -> UserError:
    return UserError(
        f"The release that was paid for in {folder} cannot be repeated: its noise secret, the plan or the latents are "
        "not those of the charge; begin anew in another --output, which is charged again."
    )


def _noisy_totals(
    shards: WorkerGroup, plan: AnyPlan, folder: Path, noise_seed: int | None
) -> NDArray[np.int64]:
    """All rounds' noisy totals; those of a long release are stored as they come, and not asked for again."""
    if plan.messages == 1:
        return _noisy_total(shards, plan, 0, noise_seed)
    totals = []
    for number in range(plan.messages):
        part = folder / _PARTS.format(release_id=plan.release_id, number=number)
        if not part.exists():
            total = _noisy_total(shards, plan, number, noise_seed)
            with atomic_path(part) as aside, aside.open("wb") as stream:
                np.save(stream, total, allow_pickle=False)
        totals.append(np.load(part, allow_pickle=False))
    return np.concatenate(totals)


def _noisy_total(
    shards: WorkerGroup, plan: AnyPlan, number: int, noise_seed: int | None
) -> NDArray[np.int64]:
    def one_message() -> NDArray[np.int64]:
        public_keys = shards.call("announce")
        return unmask(shards.call("contribute", (plan, number, public_keys, noise_seed)))

    # Repeated as a whole, under fresh masks: the noise secret outlives the worker that made it, so the total
    # has the same bits.
    return _persist(shards, one_message)


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
    for part in pending.parent.glob(_PARTS.format(release_id=release_id, number="*")):
        part.unlink()
    pending.unlink(missing_ok=True)
