"""What is going to be asked and what it costs: public, decided before any private record is read."""

from __future__ import annotations

from typing import Literal, Protocol

from dpsw_ray.base.errors import UserError
from dpsw_ray.privacy.discrete import MAX_DISCRETE_STD
from dpsw_ray.privacy.events import Event, NoiseKind
from dpsw_ray.privacy.noise import LOW_BITS, MAX_STD, low_bits
from dpsw_ray.release.form import Form

__all__ = ["Plan", "Summed", "checked_std"]


class Plan(Protocol):
    """A conversation of T questions with the private side, before it begins: public, picklable, charged as a whole.

    A release made once and for all has T = 1.
    """

    @property
    def release_id(self) -> str:
        """Random name of this release."""

    @property
    def mechanism(self) -> str:
        """Name of the module that answers; it is imported on the private side only (`private.answering.Mechanism`)."""

    @property
    def questions(self) -> int:
        """T."""

    @property
    def parts(self) -> int | None:
        """K, where the holders are K parts whose messages are answered, bounded and remembered one by one.

        Parts are cut by place, so that a record more would move others into another part: such a plan's event has no
        meaning under `add_remove`. None where a worker adds up the messages of all its holders: those answers are a
        pure function of what is held and of the question, to the same bits wherever they are computed, and again.
        """

    @property
    def form(self) -> Form | None:
        """Of one holder's whole message; None where the mechanism's Statement bounds what is computed instead."""

    @property
    def noise(self) -> str:
        """How the noise is sampled."""

    @property
    def noise_on(self) -> Literal["sum", "messages"]:
        """Where it is added: once to the sum, or by every holder to its own."""

    @property
    def noise_std(self) -> float:
        """Scale of the noise, in lattice units."""

    @property
    def cells(self) -> tuple[int, ...]:
        """Shape of what is released by all questions."""

    @property
    def stretches(self) -> tuple[tuple[float, int], ...]:
        """Scale of the noise and number of cells, of each stretch of a noise table that is drawn once."""

    @property
    def event(self) -> Event:
        """What all questions cost together, whatever is asked."""

    def shape(self, number: int) -> tuple[int, ...]:
        """Of the answer to question `number`."""

    def digest(self) -> str:
        """Hash of everything that decides the released numbers apart from the data and the noise secret."""


class Summed:
    """What plans share whose workers add up integers and answer once, with the noise on the sum."""

    @property
    def questions(self) -> int:
        """One."""
        return 1

    @property
    def parts(self) -> int | None:
        """None: integers are added up exactly, by whoever and in whatever order."""
        return None

    @property
    def noise_on(self) -> Literal["sum", "messages"]:
        """On the sum."""
        return "sum"


def checked_std(
    std: float,
    sensitivity: float,
    cells: int,
    epsilon: float,
    noise: NoiseKind = "gaussian",
    *,
    exact: bool = False,
) -> float:
    """Returns `std` where such noise can be drawn, and its low bits tell next to nothing beside what is charged.

    Args:
        std: in lattice units.
        sensitivity: in lattice units: of one round, where the noise is drawn anew in every round.
        cells: at most so many change.
        epsilon: that asked for it.
        noise: how it is sampled.
        exact: whether `discrete_gaussian` is a way out.

    Raises:
        UserError: there is no such noise, or its low bits tell too much.
    """
    if noise == "discrete_gaussian":
        possible = std <= MAX_DISCRETE_STD
    else:
        possible = std == 0 or (std <= MAX_STD and low_bits(std, cells) <= LOW_BITS * sensitivity / std)
    if not possible:
        way_out = ", or privacy.noise discrete_gaussian" if exact and noise == "gaussian" else ""
        raise UserError(
            f"privacy.epsilon {epsilon:g} needs more noise than can be drawn in double precision without its low bits "
            f"telling of a record: choose a larger epsilon, fewer release.frames{way_out}."
        )
    return std
