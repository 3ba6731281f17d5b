"""Selection policies: what each of them lets a sweep vary, what the whole sweep costs, and why something is refused.

* `reuse`: one release, trials vary what is computed from it. Costs that release.
* `split`: a release for every different mechanism in the space, all planned before the first is drawn; together
  they cost the target. Every release gets the same share.
* `private_selection`: a secret number of trials, of which the best alone is shown (`privacy.selection`).
* `nonprivate`: research. Every release costs the base run's epsilon by itself and choosing is not counted:
  epsilon is infinite.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dpsw_ray.base.errors import UserError
from dpsw_ray.config.run import RunConfig
from dpsw_ray.methods.registry import (
    METHODS,
    begins,
    decides_release,
    is_free,
    method_named,
    method_of,
    swept_keys,
)
from dpsw_ray.privacy.accountants import bound, compose_mu
from dpsw_ray.privacy.calibration import calibrate_gaussian_mu, calibrate_noise
from dpsw_ray.privacy.events import Event, GaussianEvent, PrivateSelectionEvent
from dpsw_ray.privacy.gaussian import AccountingError, gaussian_epsilon
from dpsw_ray.privacy.relations import Relation
from dpsw_ray.privacy.selection import MOST_TRIALS, NEGLIGIBLE, TrialsLaw
from dpsw_ray.tables.release import Release
from dpsw_ray.tune.config import SweepConfig
from dpsw_ray.tune.space import Space

__all__ = [
    "Selection",
    "check_sweep",
    "query_epsilon",
    "selection_event",
    "selection_trial_mu",
    "split_epsilon",
    "within_mu",
]

_SHRINK = 1 - 1e-9
_MOST_TRIES = 60


@dataclass(frozen=True)
class Selection:
    """What the whole sweep costs.

    Attributes:
        events: everything that is released, selection included.
        epsilon: of each release by itself, what its noise is calibrated to.
    """

    events: tuple[Event, ...]
    epsilon: float


def check_sweep(sweep: SweepConfig, space: Space, base: RunConfig, where: str) -> None:
    """Refuses a sweep whose policy fits neither its space, nor its searcher, nor its scheduler.

    Raises:
        UserError: with the reason, and what would be right.
    """
    selection, policy = sweep.selection, sweep.selection.policy
    if not space.keys:
        raise UserError(f"{where}: space is empty: name at least one key, such as flow.step_size.")
    for key in space.keys:
        if not decides_release(key) and not is_free(key):
            raise UserError(
                f"{where}: space.{key} is the same for all trials, or they would not compare or not add up; put it "
                f"under `set`. Swept are {', '.join(swept_keys()[:-1])} and {swept_keys()[-1]}."
            )
    if "encoder.seed" in space.keys:
        raise UserError(
            f"{where}: space.encoder.seed is the same for all trials: every encoder is trained from the base's public "
            "seed, and a release paid for each value would be the same mechanism; take it out."
        )
    mechanism = [key for key in space.keys if decides_release(key)]
    if policy == "reuse" and mechanism:
        raise UserError(
            f"{where}: selection.policy reuse makes one release and varies what is computed from it, but "
            f"space.{mechanism[0]} changes the release itself; choose selection.policy split or private_selection, or "
            "take it out."
        )
    if sweep.search.kind == "optuna" and mechanism and policy != "nonprivate":
        raise UserError(
            f"{where}: search.kind optuna chooses by the scores so far, but the releases of space.{mechanism[0]} must "
            "be planned and charged together before the first of them; choose search.kind random or grid."
        )
    if sweep.search.kind == "optuna" and mechanism:
        raise UserError(
            f"{where}: search.kind optuna varies what is computed from a release, found space.{mechanism[0]}; choose "
            "search.kind random or grid."
        )
    if sweep.search.kind == "optuna" and importlib.util.find_spec("optuna") is None:
        raise UserError("search.kind optuna needs the package optuna: pip install 'dpsw-ray[optuna]'.")
    if policy == "private_selection":
        _check_private_selection(sweep, space, base, where)
    unseen = [name for name in _methods(space, base) if not method_named(name).watched]
    if sweep.scheduler.kind != "fifo" and unseen:
        raise UserError(
            f"{where}: scheduler.kind {sweep.scheduler.kind} looks at flows while they run; method {unseen[0]} has "
            "none: choose scheduler.kind fifo."
        )
    if selection.score == "public" and base.data.public_fraction == 0.0:
        raise UserError(
            f"{where}: selection.score public compares with public records, and data.public_fraction 0 leaves none; "
            "choose selection.score validation_slices or noisy_query."
        )
    if selection.score == "validation_slices":
        whole = [
            name for name in _methods(space, base) if not issubclass(method_named(name).released, Release)
        ]
        if whole:
            raise UserError(
                f"{where}: selection.score validation_slices withholds released slices, and method {whole[0]} releases "
                f"none; choose selection.score {'public' if base.data.public_fraction else 'noisy_query'}."
            )
        others = ("encoder.", "method", *method_of(base).slice_keys(base))
        odd = [key for key in mechanism if begins(key, others)]
        if odd:
            raise UserError(
                f"{where}: selection.score validation_slices compares distances to slices of one kind, but "
                f"space.{odd[0]} changes what a slice is; choose selection.score "
                f"{'public' if base.data.public_fraction else 'noisy_query'}."
            )
    elif selection.score == "noisy_query" or selection.measure == "sliced_w2":
        named = "score noisy_query" if selection.score == "noisy_query" else "measure sliced_w2"
        if odd := [key for key in mechanism if key.startswith("encoder.")]:
            raise UserError(
                f"{where}: selection.{named} is a distance between latents, but space.{odd[0]} changes the latents; "
                "choose selection.score public and its measure fid, intended or logreg."
            )


def _check_private_selection(sweep: SweepConfig, space: Space, base: RunConfig, where: str) -> None:
    policy = f"{where}: selection.policy private_selection"
    if sweep.search.kind != "random":
        raise UserError(
            f"{policy} draws each trial from a fixed law, whatever the others gave; search.kind must be random, found "
            f"{sweep.search.kind}."
        )
    if sweep.scheduler.kind != "fifo":
        raise UserError(
            f"{policy} must not look at a trial before it has ended, nor stop it by what others gave; scheduler.kind "
            f"must be fifo, found {sweep.scheduler.kind}."
        )
    if sweep.selection.score == "noisy_query":
        raise UserError(
            f"{policy} counts a trial as one release; selection.score must be validation_slices or public, found "
            "noisy_query."
        )
    if odd := [key for key in space.keys if key.startswith("encoder.")]:
        raise UserError(
            f"{policy} hides what the other trials drew, but encoders are trained and kept in the open; take "
            f"space.{odd[0]} out."
        )
    if math.isinf(base.privacy.epsilon):
        raise UserError(f"{policy} needs a finite privacy.epsilon, found .inf.")
    if base.privacy.noise_seed is not None:
        raise UserError(f"{policy} keeps its draws secret; take privacy.noise_seed out.")
    selection = sweep.selection
    if TrialsLaw.with_mean(selection.eta, selection.mean_trials).tail > NEGLIGIBLE:
        raise UserError(
            f"{policy} must be able to make as many trials as its law may ask for, but with selection.mean_trials "
            f"{selection.mean_trials:g} and selection.eta {selection.eta:g} more than {MOST_TRIALS:,} of them are too "
            "likely; choose a smaller mean_trials or a larger eta."
        )


def _methods(space: Space, base: RunConfig) -> list[str]:
    """All that are swept; a value that names none is refused with the point that has it."""
    found = next((d.values for d in space.distributions if d.key == "method"), ())
    return [name for name in dict.fromkeys([base.method, *map(str, found)]) if name in METHODS]


def query_epsilon(sweep: SweepConfig, epsilon: float, delta: float) -> float:
    """Epsilon that the noisy query of a sweep is calibrated to: its share of the budget is one of mu squared."""
    if math.isinf(epsilon):
        return math.inf
    share = math.sqrt(sweep.selection.query_share)
    return gaussian_epsilon(share * calibrate_gaussian_mu(epsilon, delta), delta).lower


def split_epsilon(
    events: Callable[[float], Sequence[Event]],
    relation: Relation,
    epsilon: float,
    delta: float,
    besides: Sequence[Event] = (),
) -> float:
    """Epsilon that each of several releases may cost by itself, so that all of them together cost the target.

    Args:
        events: from the epsilon of one release to the events of all.
        relation: the data set's.
        epsilon: the target; infinity gives infinity.
        delta: at which both hold.
        besides: what else the target pays for, at a cost of its own.

    Returns:
        The largest such epsilon to six digits or better. The upper bound of `events(it)` and `besides` is at most
        `epsilon`.
    """
    if math.isinf(epsilon):
        return math.inf

    def fits(each: float) -> bool:
        return bound([*events(each), *besides], relation, delta).epsilon.upper <= epsilon

    if fits(epsilon):  # a single release
        return epsilon
    planned = events(epsilon)
    spent = compose_mu(besides, relation) if besides else 0.0
    if spent is not None and compose_mu(planned, relation) is not None:
        share = math.sqrt((calibrate_gaussian_mu(epsilon, delta) ** 2 - spent**2) / len(planned))
        each = gaussian_epsilon(share, delta).lower
        for _ in range(
            _MOST_TRIES
        ):  # calibration and rounding leave each release a hair above or below its share
            if fits(each):
                return each
            each *= _SHRINK
    low, high = 0.0, epsilon
    for _ in range(_MOST_TRIES):
        middle = math.sqrt(low * high) if low else high / 4
        low, high = (middle, high) if fits(middle) else (low, middle)
        if low and high / low < 1 + 1e-6:
            return low
    raise AccountingError(f"{len(planned)} releases cannot be brought down to epsilon {epsilon:g} together.")


def selection_trial_mu(sweep: SweepConfig, relation: Relation, epsilon: float, delta: float) -> float:
    """Mu of one trial under `private_selection`, the largest for which the whole costs at most `epsilon`."""
    level = calibrate_noise(
        lambda level: [selection_event(sweep, relation, 1 / level)], relation, epsilon, delta
    )
    return 1 / level


def selection_event(sweep: SweepConfig, relation: Relation, mu: float) -> PrivateSelectionEvent:
    """The event of a whole sweep under `private_selection`; every trial is a Gaussian mechanism of at most this mu."""
    law = TrialsLaw.with_mean(sweep.selection.eta, sweep.selection.mean_trials)
    trial = GaussianEvent("release of one trial", {relation: 1.0}, 1 / mu)
    return PrivateSelectionEvent((trial,), law.eta, law.gamma)


def within_mu(event: Callable[[float], Event], relation: Relation, mu: float, delta: float) -> float:
    """Epsilon to calibrate a Gaussian release to, so that its mu is at most this one.

    Args:
        event: from an epsilon to the event of the release.
        relation: the data set's.
        mu: not to be passed.
        delta: at which the epsilon holds.

    Raises:
        UserError: the release is no Gaussian mechanism.
    """
    epsilon = gaussian_epsilon(mu, delta).lower
    for _ in range(_MOST_TRIES):
        planned = event(epsilon)
        found = compose_mu([planned], relation)
        if found is None:
            raise UserError(
                f"selection.policy private_selection needs releases that are Gaussian mechanisms, found "
                f"{planned.label}: use method dpswflow-h with privacy.noise gaussian, or method dpswflow with "
                "release.law haar."
            )
        if found <= mu:
            return epsilon
        epsilon *= _SHRINK
    raise AccountingError(f"No noise keeps {planned.label} within mu {mu:g}.")
