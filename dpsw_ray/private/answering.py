"""The private side of the door: questions come in, masked and noisy answers leave, each number is answered once.

    prepare      the release's secret is durable, tied to one plan and to what is held; then it is charged
    answer       every worker computes the messages of its chunks of holders, and hands out keyed hashes of them
    contribute   the chunk-0 worker makes durable what is asked and all hashes, draws the noise, and all send, masked
    commit       the secret is destroyed, and what was said with it; its id has none for ever

What is refused, whoever asks: a question out of turn, another question under a number that was answered, a message that
is not the one of before, chunks that are missing or come twice, another plan under the same id, anything after the
commit. A number that was answered is given again, bit for bit. Even where a file is lost, or a folder restored from an
older copy, noise is never used twice: its key depends on the question and on all messages.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dpsw_ray.base.errors import PrivateSideError, UserError
from dpsw_ray.privacy.noise import NoiseKey
from dpsw_ray.private.keys import Asked, KeyStore
from dpsw_ray.private.noise import NoiseSecret
from dpsw_ray.private.receipts import Receipts, ReceiptStore
from dpsw_ray.private.said import Answered, SaidStore, State
from dpsw_ray.private.sealing import sealed
from dpsw_ray.release.masks import MaskingKey
from dpsw_ray.release.place import PROCESS
from dpsw_ray.release.plan import Plan
from dpsw_ray.release.question import NO_QUESTION, Question, canonical, question_digest

__all__ = ["Answering", "Mechanism"]


class Mechanism(Protocol):
    """A module that answers, named by `Plan.mechanism`; its docstring is the Statement."""

    def message(
        self, held: Any, question: Question, number: int, state: State | None, plan: Plan
    ) -> tuple[NDArray[np.int64], State | None]:
        """PRIVATE: the message of one chunk of holders, array of size `plan.shape(number)`, and its new state.

        Within `plan.form` whatever is asked, where the holders are parts. Without parts a function of what is held, of
        the question and of the keys alone, in exact integers: it is computed again on a retry, to the same bits.
        The key of secret choices is the same for all chunks: what is drawn from it is indexed by holder.
        """

    def noise(self, secret: NoiseSecret, plan: Plan, number: int) -> NDArray[np.int64]:
        """The noise of a question's sum, of the same size: a function of the secret, the plan and the number."""


@dataclass(frozen=True)
class _Given:
    """What a worker has answered and not sent yet."""

    masking: MaskingKey
    plan: Plan
    secret: NoiseSecret = field(repr=False)
    seed: int | None
    number: int
    question: str
    assignment: tuple[tuple[int, ...], ...]
    messages: Mapping[int, NDArray[np.int64]] = field(repr=False)
    hashes: Mapping[int, str] = field(repr=False)


class Answering(Receipts):
    """A worker of the private side: some chunks of holders, and, with chunk 0, who adds the noise of a sum."""

    def __init__(self, rank: int, size: int, private_dir: Path, receipts_dir: Path, threads: int) -> None:
        """Points at the data; nothing is read yet.

        Args:
            rank: this worker's number, from 0.
            size: number of workers.
            private_dir: the data set's private folder.
            receipts_dir: where receipts of charges are kept.
            threads: threads to use.
        """
        self.rank, self.size, self.threads = rank, size, threads
        self.private_dir = Path(private_dir)
        self.keys = KeyStore(self.private_dir)
        self.said = SaidStore(self.private_dir)
        self.receipt_store = ReceiptStore(receipts_dir)
        self._given: _Given | None = None

    @abstractmethod
    def held(self, plan: Plan, chunk: int, chunks: int, choices: NoiseKey | None) -> Any:
        """PRIVATE: what one of so many chunks of holders holds, for the mechanism."""

    @abstractmethod
    def fingerprint(self) -> str:
        """PRIVATE: a hash of all that the holders hold."""

    @cached_property
    def _fingerprint(self) -> str:
        return self.fingerprint()

    def process(self) -> str:
        """In which process this worker sees private sums."""
        return PROCESS

    @sealed("drawing noise")
    def prepare(self, plan: Plan, noise_seed: int | None = None) -> None:
        """Rank 0 makes the release's secret durable: before a charge, once or again.

        Raises:
            UserError: this worker cannot import the mechanism, which would be found out after the charge.
        """
        _module(plan)
        if self.rank:
            return
        self.keys.make_folders()
        if self.keys.find(plan, self._fingerprint, noise_seed) is None:
            self.keys.create(plan, self._fingerprint, plan.parts or self.size, noise_seed)

    @sealed("looking for a noise secret")
    def can_repeat(self, plan: Plan, noise_seed: int | None = None) -> int:
        """On rank 0: in how many chunks this very release is answered; 0 where it is not begun, or committed."""
        if self.rank or self.keys.find(plan, self._fingerprint, noise_seed) is None:
            return 0
        return self.keys.chunks(plan.release_id)

    @sealed("answering a question")
    def answer(
        self,
        plan: Plan,
        number: int,
        question: Question,
        assignment: Sequence[Sequence[int]],
        noise_seed: int | None = None,
    ) -> tuple[bytes, dict[int, str]]:
        """Computes, or finds, the messages of this worker's chunks.

        Args:
            plan: of the release; it was prepared and charged before this call.
            number: of the question, from 0.
            question: what is asked.
            assignment: by rank the chunks of holders that a worker answers for; each chunk once.
            noise_seed: reproducible noise, for tests and papers; the release is marked.

        Returns:
            The public half of a fresh masking key, and a keyed hash of each message.

        Raises:
            PrivateSideError: the question is refused.
        """
        self._given = None
        chunks = assignment[self.rank] if len(assignment) == self.size else ()
        designated = 0 in chunks or plan.noise_on == "messages"
        secret = self.keys.find(plan, self._fingerprint if designated else None, noise_seed)
        if secret is None:
            raise _refused(
                number, "no noise secret of this plan and these latents: committed, or never prepared"
            )
        question = canonical(question)
        digest = question_digest(question)
        if digest != NO_QUESTION and not isinstance(secret, NoiseKey):
            raise _refused(
                number, "a drawn table of noise answers what the plan asks, and no question beside it"
            )
        asked = self.keys.asked(plan.release_id)
        if asked is None:
            raise _refused(
                number, "the private side lacks what it was last asked (a lost file, or an older copy)"
            )
        last = asked.number
        if not (0 <= number < plan.questions and last <= number <= last + 1):
            raise _refused(number, f"it has answered {last + 1} of {plan.questions}")
        if number == last and asked.question != digest:
            raise _refused(number, "another question was answered under this number")
        count, hashing = self.keys.chunks(plan.release_id), self.keys.hashing(plan.release_id)
        if len(assignment) != self.size or sorted(c for own in assignment for c in own) != list(range(count)):
            raise _refused(number, "a chunk of holders is missing, or comes twice")
        choices = _choices(secret, noise_seed, number, digest)
        mechanism = _module(plan)
        messages: dict[int, NDArray[np.int64]] = {}
        for chunk in chunks:
            held = self.held(plan, chunk, count, choices)
            if plan.parts is None:
                messages[chunk], _ = mechanism.message(held, question, number, None, plan)
            else:
                messages[chunk] = self._part(mechanism, held, question, digest, number, chunk, last, plan)
            if messages[chunk].shape != plan.shape(number):
                raise RuntimeError("the mechanism's message is not of the plan's shape")
        hashes = {
            chunk: _hash(hashing, plan, number, digest, chunk, message) for chunk, message in messages.items()
        }
        divided = tuple(tuple(own) for own in assignment)
        self._given = _Given(
            MaskingKey(), plan, secret, noise_seed, number, digest, divided, messages, hashes
        )
        return self._given.masking.public, hashes

    def _part(
        self,
        mechanism: Mechanism,
        held: Any,
        question: Question,
        digest: str,
        number: int,
        part: int,
        last: int,
        plan: Plan,
    ) -> NDArray[np.int64]:
        """A part's message: durable with the state after it before anybody sees it; a stored one where there is one."""
        answered = self.said.load(plan.release_id, part)
        done = -1 if answered is None else answered.number
        if done < last:
            raise _refused(
                number, "the private side lacks what a part has said (a lost file, or an older copy)"
            )
        if number == done + 1:
            before = None if answered is None else answered.state
            message, state = mechanism.message(held, question, number, before, plan)
            if plan.form is not None and plan.form.refusal(message) is not None:
                raise RuntimeError("the mechanism's message is not in the plan's form")
            new = Answered(plan.digest(), number, digest, message, state)
            answered = self.said.save(plan.release_id, part, new)
        if answered is None or answered.number != number:
            done = -1 if answered is None else answered.number
            raise _refused(number, f"a part has answered {done + 1} of {plan.questions}")
        if (answered.plan, answered.question) != (plan.digest(), digest):
            raise _refused(number, "another question was answered under this number")
        return answered.message

    @sealed("sending an answer")
    def contribute(
        self, number: int, hashes: Mapping[int, str], public_keys: Sequence[bytes]
    ) -> NDArray[np.uint64]:
        """The sum of this worker's messages, masked modulo 2^64; with chunk 0 the noise of the sum is in it.

        Args:
            number: of the question that `answer` answered; a worker answers and sends once.
            hashes: of all chunks' messages.
            public_keys: all workers' keys, in rank order.

        Returns:
            Array of size `plan.shape(number)`, uint64.

        Raises:
            PrivateSideError: a message is missing, or is not the one of before.
        """
        given, self._given = self._given, None
        if given is None or given.number != number:
            raise RuntimeError("contribute follows the answer to the same question")
        plan, count = given.plan, sum(map(len, given.assignment))
        if sorted(hashes) != list(range(count)) or not given.hashes.items() <= dict(hashes).items():
            raise _refused(number, "a chunk's message is missing, or is not what was answered")
        total = np.zeros(plan.shape(number), dtype=np.int64)
        for message in given.messages.values():
            total += message
        if 0 in given.messages:
            asked = Asked(number, given.question, tuple(hashes[chunk] for chunk in range(count)))
            self._ask(plan, asked, given.seed)
            if plan.noise_on == "sum":
                total += _module(plan).noise(_noise(given.secret, given.seed, asked), plan, number)
        context = (
            plan.release_id,
            plan.digest(),
            number,
            given.question,
            given.assignment,
            sorted(hashes.items()),
        )
        return given.masking.mask(total, self.rank, public_keys, repr(context).encode())

    def _ask(self, plan: Plan, asked: Asked, seed: int | None) -> None:
        """Makes durable what is going to be answered; asked again, by whichever driver, it must be the same."""
        with contextlib.ExitStack() as held:
            with contextlib.suppress(FileNotFoundError):
                held.enter_context(self.keys.locked(plan.release_id))
            if self.keys.find(plan, None, seed) is None:
                raise _refused(asked.number, "its noise secret is destroyed")
            before = self.keys.asked(plan.release_id)
            if before is not None and before.number == asked.number - 1:
                self.keys.ask(plan.release_id, asked)
            elif before != asked:
                raise _refused(asked.number, "a message is not the one that was answered before")

    @sealed("destroying a noise secret")
    def commit(self, release_id: str) -> None:
        """Destroys the release's secret and what was said: called when the release is durable."""
        if self.rank == 0:
            self.keys.destroy(release_id)
            self.said.destroy(release_id)


def _module(plan: Plan) -> Mechanism:
    try:
        return cast(Mechanism, importlib.import_module(plan.mechanism))
    except ImportError:
        raise UserError(
            f"The mechanism {plan.mechanism} cannot be imported where the private records are: install it on every "
            "machine of the cluster."
        ) from None


def _choices(secret: NoiseSecret, seed: int | None, number: int, digest: str) -> NoiseKey | None:
    """Key of secret choices, and of noise on messages: what a retry of the same question repeats.

    Under a seed the mechanism alone derives from it, by number, so that figures stay comparable.
    """
    if not isinstance(secret, NoiseKey):
        return None
    if seed is not None:
        return _seeded(seed, digest)
    return secret.derive(b"choices %d " % number + digest.encode())


def _noise(secret: NoiseSecret, seed: int | None, asked: Asked) -> NoiseSecret:
    """What the noise of a question's sum is drawn from: other messages, or another question, have other noise."""
    if not isinstance(secret, NoiseKey):
        return secret
    if seed is not None:
        return _seeded(seed, asked.question)
    return secret.derive(b"noise %d " % asked.number + " ".join((asked.question, *asked.messages)).encode())


def _seeded(seed: int, digest: str) -> NoiseKey:
    key = NoiseKey.from_seed(seed)
    return key if digest == NO_QUESTION else key.derive(digest.encode())


def _hash(key: bytes, plan: Plan, number: int, question: str, chunk: int, message: NDArray[np.int64]) -> str:
    """A hash of a message that tells nothing of it to whoever lacks the key, nor whether two questions have one."""
    digest = hashlib.blake2b(key=key, digest_size=32, person=b"dpsw message")
    digest.update(f"{plan.digest()} {number} {question} {chunk} {message.shape} ".encode())
    digest.update(np.ascontiguousarray(message, dtype="<i8").data)
    return digest.hexdigest()


def _refused(number: int, why: str) -> PrivateSideError:
    return PrivateSideError(
        f"The private side refuses question {number + 1} of this release: {why}. Go on with the newest copies of the "
        "run's folder and of paths.home, or begin anew in another --output, which is charged again."
    )
