"""The rules of a conversation: each question is answered once, and each test attacks one of them."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counter import CELLS, CounterPlan, Learnt, learn
from test_release import ledger, shards, store  # noqa: F401

from dpsw_ray.base.errors import PrivateSideError, UserError
from dpsw_ray.cluster import WorkerDied
from dpsw_ray.privacy.discrete import NoiseTable
from dpsw_ray.privacy.ledger import Ledger
from dpsw_ray.private.keys import KeyStore
from dpsw_ray.release.exchange import Exchange, noisy_answer, release_once
from dpsw_ray.release.form import Form
from dpsw_ray.release.masks import unmask
from dpsw_ray.release.question import question_digest

# ruff: noqa: F811 (the fixture)

ID = "c0ffee"
WEIGHTS = {"weights": np.ones(CELLS)}
OTHERS = {"weights": np.full(CELLS, 0.5)}


def begun(private: Path, plan: CounterPlan, size: int = 2) -> Any:
    group = shards(private, size)
    group.call("prepare", (plan,))
    return group


@pytest.fixture
def private(tmp_path: Path) -> Path:
    return store(tmp_path / "private", 60)


def converse(group: Any, plan: CounterPlan, folder: Path, questions: int) -> list[np.ndarray]:
    exchange = Exchange(group, plan, folder)
    return [exchange.ask({"weights": np.full(CELLS, 1.0 + n)}) for n in range(questions)]


def test_a_conversation_is_charged_once_and_the_same_for_any_number_of_workers(
    private: Path, tmp_path: Path, ledger: Ledger
) -> None:
    made = []
    for size in (1, 3):
        release = release_once(
            Learnt, shards(private, size), CounterPlan, tmp_path / str(size), ledger=ledger, account="d", run_id="t",
            noise_seed=5, manifest=lambda plan: {"release_id": plan.release_id}, converse=lambda e: learn(e, 1),
        )  # fmt: skip
        made.append(release.replies)
    assert made[0].shape == (20, CELLS) and np.array_equal(*made)
    assert ledger.total("d").charges == 2
    assert not list((private / "said").iterdir()) and not list((private / "asked").iterdir())
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == ["learnt.npz", "manifest.json"]


def test_a_driver_with_other_weights_asks_what_was_asked_and_is_told_what_was_told(
    private: Path, tmp_path: Path
) -> None:
    plan = CounterPlan(ID)
    first = converse(begun(private, plan), plan, tmp_path / "run", 5)
    again = Exchange(shards(private, 3), plan, tmp_path / "run")  # with other workers, too
    for told in first:
        assert np.array_equal(again.ask(OTHERS), told)
    (tmp_path / "run" / f"reply-{ID}-4.npz").unlink()  # died between the answer and its storage
    again = Exchange(shards(private, 1), plan, tmp_path / "run")
    assert np.array_equal([again.ask(OTHERS) for _ in range(5)], first)


def test_another_question_under_a_number_that_was_answered_is_refused(private: Path) -> None:
    group = begun(private, CounterPlan(ID))
    told = noisy_answer(group, CounterPlan(ID), 0, WEIGHTS)
    with pytest.raises(PrivateSideError, match="another question was answered under this number"):
        noisy_answer(group, CounterPlan(ID), 0, OTHERS)
    assert np.array_equal(noisy_answer(group, CounterPlan(ID), 0, WEIGHTS), told)


def test_a_part_that_has_answered_refuses_another_question_before_anything_was_sent(private: Path) -> None:
    group = begun(private, CounterPlan(ID))
    group.call("answer", (CounterPlan(ID), 0, WEIGHTS, ((0, 2), (1, 3))))
    with pytest.raises(PrivateSideError, match="another question was answered under this number"):
        noisy_answer(group, CounterPlan(ID), 0, OTHERS)
    noisy_answer(group, CounterPlan(ID), 0, WEIGHTS)


@pytest.mark.parametrize("number", [-1, 0, 1, 4, 20])
def test_a_number_out_of_turn_is_refused(number: int, private: Path, tmp_path: Path) -> None:
    plan = CounterPlan(ID)
    group = begun(private, plan)
    converse(group, plan, tmp_path, 3)
    with pytest.raises(PrivateSideError, match="it has answered 3 of 20"):
        noisy_answer(group, plan, number, WEIGHTS)


def test_after_forget_nothing_forgotten_is_answered_again(private: Path, tmp_path: Path) -> None:
    plan = CounterPlan(ID)
    group = begun(private, plan)
    exchange = Exchange(group, plan, tmp_path / "run")
    told = [exchange.ask(WEIGHTS) for _ in range(4)]
    exchange.forget(3)
    assert sorted(path.name for path in (tmp_path / "run").glob("*.npz")) == [
        f"question-{ID}-3.npz",
        f"reply-{ID}-3.npz",
    ]
    resumed = Exchange(group, plan, tmp_path / "run")
    assert resumed.number == 3 and np.array_equal(resumed.ask(OTHERS), told[3])
    for number in range(3):
        with pytest.raises(PrivateSideError, match="it has answered 4 of 20"):
            noisy_answer(group, plan, number, WEIGHTS)
    with pytest.raises(UserError, match="lacks the reply to question 1"):
        Exchange(group, plan, tmp_path / "run").go_to(0)


def test_a_checkpoint_goes_on_where_it_was_and_not_where_a_reply_is_missing(
    private: Path, tmp_path: Path
) -> None:
    plan = CounterPlan(ID)
    told = converse(begun(private, plan), plan, tmp_path, 4)
    exchange = Exchange(shards(private), plan, tmp_path)
    exchange.go_to(3)
    assert np.array_equal(exchange.ask(OTHERS), told[3])
    with pytest.raises(UserError, match="lacks the reply to question 5"):
        Exchange(shards(private), plan, tmp_path).go_to(6)


def test_a_private_folder_restored_from_a_backup_is_refused(private: Path, tmp_path: Path) -> None:
    plan = CounterPlan(ID)
    group = begun(private, plan)
    converse(group, plan, tmp_path / "run", 2)
    shutil.copytree(private, tmp_path / "backup")
    converse(group, plan, tmp_path / "run", 5)
    shutil.rmtree(private)
    shutil.copytree(tmp_path / "backup", private)
    with pytest.raises(
        PrivateSideError, match=r"question 6 .* it has answered 2 of 20\. Go on with the newest"
    ):
        exchange = Exchange(shards(private), plan, tmp_path / "run")
        exchange.go_to(5)
        exchange.ask(WEIGHTS)


def test_noise_is_not_used_twice_even_where_driver_and_private_side_are_restored(
    private: Path, tmp_path: Path
) -> None:
    """Nobody can notice; another question has other noise, so that nothing can be subtracted."""
    plan = CounterPlan(ID, parts=4)
    begun(private, plan)
    shutil.copytree(private, tmp_path / "backup")
    told = [noisy_answer(shards(private), plan, 0, WEIGHTS)]
    for question in (WEIGHTS, {"weights": np.full(CELLS, 1 + 1e-12)}):
        shutil.rmtree(private)
        shutil.copytree(tmp_path / "backup", private)
        told.append(noisy_answer(shards(private), plan, 0, question))
    assert np.array_equal(told[0], told[1])
    assert (np.abs(told[2] - told[0]) > 1000).all()  # the exact answers are a few units apart


@pytest.mark.parametrize("lost", ["000000.npz", "000003.npz"])
def test_a_part_whose_file_is_lost_does_not_answer_anew(lost: str, private: Path, tmp_path: Path) -> None:
    plan = CounterPlan(ID)
    group = begun(private, plan)
    converse(group, plan, tmp_path, 2)
    (private / "said" / ID / lost).unlink()
    for number, question in ((1, {"weights": np.full(CELLS, 2.0)}), (2, WEIGHTS)):
        with pytest.raises(PrivateSideError, match=r"lacks what a part has said"):
            noisy_answer(group, plan, number, question)


def test_a_damaged_memory_is_refused(private: Path, tmp_path: Path) -> None:
    plan = CounterPlan(ID)
    group = begun(private, plan)
    converse(group, plan, tmp_path, 2)
    path = private / "said" / ID / "000001.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(PrivateSideError, match="missing or damaged"):
        noisy_answer(group, plan, 2, WEIGHTS)


def test_all_that_was_said_lost_together_gives_no_second_answer(private: Path, tmp_path: Path) -> None:
    plan = CounterPlan(ID)
    group = begun(private, plan)
    converse(group, plan, tmp_path, 1)
    shutil.rmtree(private / "said")
    with pytest.raises(PrivateSideError, match="lacks what a part has said"):
        noisy_answer(group, plan, 0, {"weights": np.ones(CELLS)})
    shutil.rmtree(private / "asked")
    (private / "asked").mkdir()
    (private / "keys" / f"{ID}.json").unlink()  # what knows that it was asked, and its key
    with pytest.raises(PrivateSideError, match="committed, or never prepared"):
        noisy_answer(group, plan, 0, WEIGHTS)


@pytest.mark.parametrize(
    "assignment",
    [
        ((0, 2), (1,)),
        ((0, 2), (1, 3, 3)),
        ((0, 1, 2, 3), (1, 3)),
        ((0, 2), (1, 4)),
        ((0, 1, 2, 3),),
        ((), ()),
    ],
)
def test_a_missing_or_doubled_chunk_is_refused(
    assignment: tuple[tuple[int, ...], ...], private: Path
) -> None:
    group = begun(private, CounterPlan(ID))
    with pytest.raises(PrivateSideError):
        group.call("answer", (CounterPlan(ID), 0, WEIGHTS, assignment))


def test_workers_that_were_told_different_maps_unmask_nothing(private: Path) -> None:
    """Each map is whole by itself; together they would leave parts out."""
    group = begun(private, CounterPlan(ID))
    told = noisy_answer(group, CounterPlan(ID), 0, WEIGHTS)
    maps = [((0, 1), (2, 3)), ((0, 1, 2), (3,))]
    given = group.call("answer", [(CounterPlan(ID), 0, WEIGHTS, divided) for divided in maps])
    hashes = {chunk: value for _, own in given for chunk, value in own.items()}
    with pytest.raises(PrivateSideError, match="a chunk's message is missing"):
        group.call("contribute", (0, hashes, [public for public, _ in given]))
    given = group.call("answer", [(CounterPlan(ID), 0, WEIGHTS, divided) for divided in maps])
    hashes = {0: "", 1: "", 2: "", 3: ""} | {chunk: value for _, own in given for chunk, value in own.items()}
    hashes[2] = group.call("answer", (CounterPlan(ID), 0, WEIGHTS, ((0, 1), (2, 3))))[1][1][2]
    given = group.call("answer", [(CounterPlan(ID), 0, WEIGHTS, divided) for divided in maps])
    messages = group.call("contribute", (0, hashes, [public for public, _ in given]))
    assert (np.abs(unmask(messages).astype(float) - told) > 2**40).all()


def test_a_message_that_is_not_the_one_of_before_is_refused(private: Path) -> None:
    group = begun(private, CounterPlan(ID))
    noisy_answer(group, CounterPlan(ID), 0, WEIGHTS)
    given = group.call("answer", (CounterPlan(ID), 0, WEIGHTS, ((0, 2), (1, 3))))
    hashes = {chunk: value for _, own in given for chunk, value in own.items()}
    with pytest.raises(PrivateSideError, match="a message is not the one that was answered before"):
        group.call("contribute", (0, hashes | {1: hashes[3]}, [public for public, _ in given]))


def test_one_id_is_one_plan(private: Path) -> None:
    group = begun(private, CounterPlan(ID))
    noisy_answer(group, CounterPlan(ID), 0, WEIGHTS)
    for other in (CounterPlan(ID, questions=21), CounterPlan(ID, noise_std=1e6), CounterPlan(ID, parts=2)):
        with pytest.raises(PrivateSideError, match="no noise secret of this plan"):
            noisy_answer(group, other, 1, WEIGHTS)
        with pytest.raises(PrivateSideError):
            group.call("prepare", (other,))


def test_nothing_is_asked_after_the_commit(private: Path, tmp_path: Path) -> None:
    plan = CounterPlan(ID)
    group = begun(private, plan)
    kept = {path: path.read_bytes() for folder in ("keys", "asked") for path in (private / folder).glob("*")}
    exchange = Exchange(group, plan, tmp_path)
    exchange.ask(WEIGHTS)
    exchange.commit()
    for path, content in kept.items():  # brought back from a backup
        path.write_bytes(content)
    for number in (0, 1):
        with pytest.raises(PrivateSideError, match="committed, or never prepared"):
            noisy_answer(group, plan, number, WEIGHTS)
    with pytest.raises(PrivateSideError):
        group.call("prepare", (plan,))


def test_a_commit_between_answer_and_contribute_sends_nothing(private: Path) -> None:
    group = begun(private, CounterPlan(ID))
    given = group.call("answer", (CounterPlan(ID), 0, WEIGHTS, ((0, 2), (1, 3))))
    group.call("commit", (ID,))
    hashes = {chunk: value for _, own in given for chunk, value in own.items()}
    with pytest.raises(PrivateSideError, match="its noise secret is destroyed"):
        group.call("contribute", (0, hashes, [public for public, _ in given]))


def test_a_message_beyond_the_plans_form_is_not_sent(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import counter

    group = begun(private, CounterPlan(ID))
    bound = CounterPlan(ID).form.mass
    for wrong in (np.full(CELLS, bound), np.full(CELLS, 0.5), np.zeros(CELLS + 1, np.int64)):
        monkeypatch.setattr(counter, "message", lambda *_, wrong=wrong: (wrong, None))
        with pytest.raises(PrivateSideError, match="failed while answering"):
            noisy_answer(group, CounterPlan(ID), 0, WEIGHTS)
    assert not (private / "said" / ID).exists()


def test_a_worker_that_dies_in_the_middle_gives_the_same_answer(private: Path, tmp_path: Path) -> None:
    plan = CounterPlan(ID)

    class Dying:
        """Each question's first sending is lost with its worker; the others are replaced as well, by more of them."""

        def __init__(self, group: Any) -> None:
            self.group, self.size, self.lost = group, group.size, {}

        def call(self, method: str, args: Any = (), **kwargs: Any) -> Any:
            results = self.group.call(method, args, **kwargs)
            if method == "contribute" and args[0] not in self.lost:
                self.lost[args[0]] = unmask(results)
                raise WorkerDied(0, self.size, method)
            return results

        def rebuild(self) -> None:
            self.group = shards(private, self.size % 4 + 1)
            self.size = self.group.size

    dying = Dying(begun(private, plan))
    told = converse(dying, plan, tmp_path, 20)
    assert len(dying.lost) == 20 and all(np.array_equal(told[n], total) for n, total in dying.lost.items())


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ({"weights": np.array([1.0, np.nan])}, r"weights holds a value that is not a number \(NaN\)"),
        ({"weights": np.array(["a"])}, "weights must be an array of numbers"),
        ({"weights": np.array([object()])}, "weights must be an array of numbers"),
        ({"weights": np.ones(3, np.longdouble)}, "weights must be an array of numbers"),
    ],
)
def test_a_question_without_a_canonical_form_is_refused(
    question: dict[str, np.ndarray], sentence: str, private: Path, tmp_path: Path
) -> None:
    exchange = Exchange(begun(private, CounterPlan(ID)), CounterPlan(ID), tmp_path)
    with pytest.raises(UserError, match=sentence):
        exchange.ask(question)


def test_the_digest_is_of_names_types_shapes_and_values_whatever_the_memory_looks_like() -> None:
    values = np.arange(6.0).reshape(2, 3)
    digest = question_digest({"a": values, "b": np.array(1)})
    assert question_digest({"b": np.array(1), "a": values}) == digest
    assert question_digest({"a": np.asfortranarray(values), "b": np.array(1)}) == digest
    assert question_digest({"a": values.astype(">f8"), "b": np.array(1)}) == digest
    for other in (
        {"a": values}, {"a": values, "c": np.array(1)}, {"a": values.reshape(3, 2), "b": np.array(1)},
        {"a": values.astype(np.float32), "b": np.array(1)}, {"a": values, "b": np.array(1, np.int32)},
        {"a": values + 1e-15, "b": np.array(1)},
    ):  # fmt: skip
        assert question_digest(other) != digest


def two_drivers(first: Any, second: Any) -> list[Any]:
    """What two drivers are told, the second of whom asks when the first one is about to make something durable."""
    told: list[Any] = [None, None]

    def drive(place: int, ask: Any) -> None:
        with contextlib.suppress(UserError):
            told[place] = ask()

    other = threading.Thread(target=drive, args=(1, second))

    def interrupted(save: Any) -> Any:
        def saved(*args: Any, **kwargs: Any) -> Any:
            if other.ident is None:
                other.start()
                other.join(1)  # it waits for the first one, or is done
            return save(*args, **kwargs)

        return saved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeyStore, "ask", interrupted(KeyStore.ask))
        drive(0, first)
        other.join()
    return told


@pytest.mark.parametrize("parts", [None, 4])
def test_two_drivers_at_the_same_time_get_one_answer(parts: int | None, private: Path) -> None:
    """Each with a folder of its own and another question, on workers of its own."""
    plan = CounterPlan(ID, parts=parts)
    begun(private, plan)
    asks = [
        lambda question=question: noisy_answer(shards(private), plan, 0, question)
        for question in (WEIGHTS, OTHERS)
    ]
    assert sum(each is not None for each in two_drivers(*asks)) == 1
    again = [noisy_or_none(shards(private), plan, question) for question in (WEIGHTS, OTHERS)]
    assert sum(each is not None for each in again) <= 1


def noisy_or_none(group: Any, plan: CounterPlan, question: Any) -> Any:
    with contextlib.suppress(UserError):
        return noisy_answer(group, plan, 0, question)


def test_a_commit_while_another_driver_asks_leaves_one_answer(private: Path) -> None:
    plan = CounterPlan(ID, questions=1, parts=None)
    begun(private, plan)

    def finish() -> Any:
        told = noisy_answer(shards(private), plan, 0, WEIGHTS)
        shards(private).call("commit", (ID,))
        return told

    told = two_drivers(lambda: noisy_answer(shards(private), plan, 0, OTHERS), finish)
    assert sum(each is not None for each in told) == 1


@pytest.mark.parametrize("parts", [None, 4])
def test_without_the_record_of_what_was_asked_nothing_is_answered(parts: int | None, private: Path) -> None:
    plan = CounterPlan(ID, parts=parts)
    group = begun(private, plan)
    noisy_answer(group, plan, 0, WEIGHTS)
    shutil.rmtree(private / "asked")
    shutil.rmtree(private / "said", ignore_errors=True)
    with pytest.raises(PrivateSideError, match="lacks what it was last asked"):
        noisy_answer(group, plan, 0, OTHERS)


def test_a_message_whose_squares_overflow_is_not_within_a_form() -> None:
    form = Form((2,), 2**40, 2**33, signed=True)
    assert form.refusal(np.array([2**20, 0])) is None
    for wrong in ([2**32, 0], [-(2**32), 0], [2**20, 1], [2**32, 2**32]):
        assert form.refusal(np.array(wrong)) == "too large"
    with pytest.raises(ValueError, match="64 bits"):
        Form((2,), 2**62, 2**62)


def test_hashes_do_not_tell_that_two_questions_have_the_same_exact_answer(private: Path) -> None:
    group = begun(private, CounterPlan(ID, parts=None))
    divided = ((0,), (1,))
    hashes = [
        group.call("answer", (CounterPlan(ID, parts=None), 0, {"weights": weights}, divided))[0][1][0]
        for weights in (np.ones(CELLS), np.ones(CELLS), np.full(CELLS, 1 + 1e-15))
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_a_drawn_table_of_noise_answers_what_its_plan_asks_and_nothing_else(private: Path) -> None:
    """Its noise cannot follow the question: with a restored folder two answers would be apart by the exact ones."""
    plan = CounterPlan(ID, questions=1, noise="discrete_gaussian", parts=None)
    group = begun(private, plan)
    with pytest.raises(PrivateSideError, match="a drawn table of noise"):
        noisy_answer(group, plan, 0, WEIGHTS)
    assert group.call("answer", (plan, 0, {}, ((0,), (1,))))


def test_a_mechanism_sees_the_question_as_it_was_hashed(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import counter

    seen = []
    monkeypatch.setattr(
        counter, "message", lambda _, q, *__: (seen.append(q), (np.zeros(CELLS, int), None))[1]
    )
    asked = np.asfortranarray(np.arange(6.0).reshape(2, 3)).astype(">f8", order="K")
    noisy_answer(begun(private, CounterPlan(ID), 1), CounterPlan(ID), 0, {"b": asked, "a": np.array(1)})
    assert list(seen[0]) == ["a", "b"] and seen[0]["a"].shape == ()
    assert seen[0]["b"].flags.c_contiguous and seen[0]["b"].dtype.str == "<f8"
    assert question_digest({"a": np.array(1)}) != question_digest({"a": np.array([1])})


def test_an_id_is_pinned_to_all_that_its_plan_promises(private: Path) -> None:
    """Also to what a plan's own digest leaves out, as where another version of the code reads the same numbers."""
    plan = CounterPlan(ID)
    group = begun(private, plan)
    for name, value in (("noise_on", "messages"), ("noise", "other"), ("mechanism", "counter2")):
        with pytest.raises(PrivateSideError, match="no noise secret of this plan"):
            noisy_answer(group, dataclasses.replace(plan, **{name: value}), 0, WEIGHTS)


def test_a_stored_question_is_asked_also_by_a_driver_that_has_none(private: Path, tmp_path: Path) -> None:
    plan = CounterPlan(ID)
    exchange = Exchange(begun(private, plan), plan, tmp_path)
    told = exchange.ask(WEIGHTS)
    (tmp_path / f"reply-{ID}-0.npz").unlink()
    assert np.array_equal(Exchange(shards(private), plan, tmp_path).ask(), told)


@pytest.mark.parametrize("late", [0, 2])
def test_a_worker_that_wakes_late_neither_lowers_nor_replaces_what_a_part_has_said(
    late: int, private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken for lost between computing a part's answer and storing it."""
    import counter

    plan, original, asleep, awake = CounterPlan(ID), counter.message, threading.Event(), threading.Event()

    def slow(*args: Any) -> Any:
        message, state = original(*args)
        if threading.current_thread() is sleeper:
            asleep.set()
            awake.wait()
            message = message + 1  # as floating point has it
        return message, state

    group = begun(private, plan)
    monkeypatch.setattr(counter, "message", slow)
    one = {"weights": np.full(CELLS, 1.0)}
    call = ("answer", (plan, 0, one, ((0, 1, 2, 3),)))

    def sleep() -> None:
        with contextlib.suppress(UserError):
            shards(private, 1).call(*call)

    sleeper = threading.Thread(target=sleep)
    sleeper.start()
    asleep.wait()
    told = converse(group, plan, tmp_path, 1 + late)
    awake.set()
    sleeper.join()
    if not late:
        assert np.array_equal(noisy_answer(group, plan, 0, one), told[0])
    assert np.array_equal(converse(group, plan, tmp_path, 2 + late)[: 1 + late], told)


def test_a_group_of_holders_may_answer_anything_under_every_relation() -> None:
    form = Form((3,), 100, 30, signed=True)
    for relation in ("replace_one", "zero_out", "add_remove"):
        assert form.sensitivity_sq(relation, grouped=True) == 400
    assert [form.sensitivity_sq(r) for r in ("replace_one", "zero_out")] == [400, 100]


def test_hashes_of_messages_have_a_key_that_no_guess_of_the_exact_sum_gives_away(
    private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A noisy sum less a guess is the drawn table; a key made of that would tell whether the guess is right."""
    import dpsw_ray.private.keys as module

    table = NoiseTable.draw((1000.0, CELLS))
    monkeypatch.setattr(module, "draw_secret", lambda plan: table)
    hashes = []
    for release_id in ("a", "b"):
        plan = CounterPlan(release_id, questions=1, parts=None, noise="discrete_gaussian", noise_std=1000.0)
        group = begun(private, plan)
        hashes += [group.call("answer", (plan, 0, {}, ((0,), (1,))))[0][1][0] for _ in range(2)]
    assert hashes[0] == hashes[1] and hashes[2] == hashes[3] != hashes[0]


def test_a_mechanism_that_workers_lack_is_found_out_before_the_charge(
    private: Path, tmp_path: Path, ledger: Ledger
) -> None:
    with pytest.raises(
        UserError, match="mechanism no_such_module cannot be imported where the private records are"
    ):
        release_once(
            Learnt, shards(private), lambda release_id: CounterPlan(release_id, mechanism="no_such_module"),
            tmp_path / "run", ledger=ledger, account="d", run_id="t", noise_seed=None, manifest=lambda plan: {},
        )  # fmt: skip
    assert ledger.total("d").charges == 0 and not list((private / "keys").glob("*"))
