from __future__ import annotations

import io

import pytest

from dpsw_ray.base.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_come_at_intervals_with_rate_and_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream=stream, interval=10.0, clock=clock)
    with progress.task("Training encoder", total=30) as task:
        for _ in range(30):
            clock.now += 4.0
            task.advance(1, note="loss 0.02")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "Training encoder …"
    assert lines[1] == "Training encoder: 3 of 30, 4 s each, 1:48 left, loss 0.02"
    assert len(lines) == 2 + 10
    assert lines[-1] == "Training encoder: 30 in 2:00, 4 s each, loss 0.02"


def test_an_early_stop_and_an_unknown_total_count_what_was_done() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress(stream=stream, clock=clock)
    for total in (20_000, None):
        with progress.task("Flow", total=total) as task:
            clock.now += 2.0
            task.advance(5000)
    assert stream.getvalue().splitlines()[1::2] == ["Flow: 5,000 in 2.0 s, 2,500/s"] * 2


def test_an_error_leaves_a_line_saying_where_it_stopped() -> None:
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), Progress(stream=stream).task("Flow", total=9) as task:
        task.advance(2)
        raise KeyboardInterrupt
    assert stream.getvalue().splitlines()[-1].startswith("Flow: 2 of 9")
    assert stream.getvalue().endswith("stopped\n")


def test_a_terminal_gets_bars_and_keeps_one_line_per_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    progress = Progress(stream=stream)
    with progress.task("Outer [x]", total=2) as outer:
        with progress.task("Inner", total=4) as inner:
            inner.advance(4, note="[red]")
            progress.say("[a message]")
        outer.advance(1)
    text = stream.getvalue()
    assert ("━" in text and "1/2" in text.replace("\x1b[0m", "").replace("\x1b[32m", "")) or "0/2" in text
    assert "[a message]\n" in text and "Outer [x]: 1 in" in text and "[red]" in text


def test_quiet_says_nothing() -> None:
    stream = Terminal()
    progress = Progress(stream=stream, quiet=True)
    progress.say("hello")
    with progress.task("Flow", total=1) as task:
        task.advance()
    assert stream.getvalue() == ""
