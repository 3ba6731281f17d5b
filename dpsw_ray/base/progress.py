"""What a person sees of a run: bars with rate and time left in a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.progress import Task as BarState
from rich.text import Text

__all__ = ["Progress", "Task"]


class _Rate(ProgressColumn):
    def render(self, task: BarState) -> Text:
        return Text(_rate(task.speed or 0.0), style="dim")


class Task:
    """A piece of work under way; made by `Progress.task`."""

    def __init__(self, title: str, total: int | None, clock: Callable[[], float]) -> None:
        self.title = title
        self.total = total
        self.done = 0
        self.note = ""
        self._clock = clock
        self._start = clock()
        self._changed: Callable[[Task], None] = lambda task: None

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Counts finished units.

        Args:
            amount: how many.
            note: a few words shown beside the count, such as a loss; it stays until the next one.
        """
        self.done += amount
        self.note = note or self.note
        self._changed(self)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return max(self._clock() - self._start, 1e-9)

    def line(self) -> str:
        """The state in one line of text."""
        rate = self.done / self.elapsed
        parts = [f"{self.title}: {self.done:,}" + (f" of {self.total:,}" if self.total else "")]
        if self.total and 0 < self.done < self.total:
            parts.append(f"{_rate(rate)}, {_duration((self.total - self.done) / rate)} left")
        return ", ".join([*parts, *filter(None, [self.note])])

    def summary(self) -> str:
        """The end in one line of text."""
        count = f"{self.done:,} in {_duration(self.elapsed)}"
        return ", ".join(
            [f"{self.title}: {count}", _rate(self.done / self.elapsed), *filter(None, [self.note])]
        )


class Progress:
    """Messages and running tasks on one stream.

    >>> import sys
    >>> progress = Progress(stream=sys.stdout)
    >>> progress.say("Reading digits")
    Reading digits
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        stream: TextIO | None = None,
        interval: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Chooses bars or lines by what the stream is.

        Args:
            quiet: print nothing at all.
            stream: where to; standard output if not given.
            interval: seconds between two plain lines of one task.
            clock: seconds, for tests.
        """
        self._console = Console(file=stream or sys.stdout, quiet=quiet, highlight=False, soft_wrap=True)
        self._interval = interval
        self._clock = clock
        self._bars: Bars | None = None

    def say(self, message: str) -> None:
        """Prints one message, above any bar."""
        self._console.print(escape(message))
        self._console.file.flush()  # the log of a submitted job is read while it grows

    @contextlib.contextmanager
    def task(self, title: str, total: int | None = None) -> Iterator[Task]:
        """Shows a task while the `with` block runs, and one line about it afterwards.

        Args:
            title: what is being done, such as "Training encoder".
            total: how many units there are at most, if known.

        Yields:
            The task, whose `advance` counts its units.
        """
        task = Task(title, total, self._clock)
        with self._bar(task) if self._console.is_terminal else self._lines(task):
            try:
                yield task
            except BaseException:
                self.say(f"{task.line()}, stopped")
                raise
        self.say(task.summary())

    @contextlib.contextmanager
    def _lines(self, task: Task) -> Iterator[None]:
        last = 0.0

        def changed(task: Task) -> None:
            nonlocal last
            if task.elapsed - last >= self._interval:
                last = task.elapsed
                self.say(task.line())

        task._changed = changed
        self.say(f"{task.title} …")
        yield

    @contextlib.contextmanager
    def _bar(self, task: Task) -> Iterator[None]:
        outermost = self._bars is None
        if self._bars is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Rate(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[note]}", style="dim", markup=False),
            )
            self._bars = Bars(*columns, console=self._console, transient=True)
            self._bars.start()
        bars = self._bars
        bar: TaskID = bars.add_task(escape(task.title), total=task.total, note="")
        task._changed = lambda task: bars.update(bar, completed=task.done, note=task.note)
        try:
            yield
        finally:
            bars.remove_task(bar)
            if outermost:
                bars.stop()
                self._bars = None


def _rate(per_second: float) -> str:
    if per_second <= 0.0:
        return "–/s"
    if per_second < 1.0:
        return f"{1.0 / per_second:.3g} s each"
    return f"{per_second:,.0f}/s" if per_second >= 100.0 else f"{per_second:.3g}/s"


def _duration(seconds: float) -> str:
    if seconds < 10.0:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
