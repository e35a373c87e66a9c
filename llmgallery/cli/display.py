"""What the terminal shows while a model is on its way: a bar, or plain lines where nobody watches."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from llmgallery.core.events import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

STEP = 0.25  # of a plain line's phase
DELAY = 0.3  # seconds; what is over before that needs no bar


class Display:
    """`show` what a model is doing, None = it is ready. stdout stays clean: everything goes to `stream`."""

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self._name = name
        self._stream = stream or sys.stderr
        self._said: tuple[str, int] | None = None
        self._bars: Bars | None = None
        self._task: tuple[str, TaskID] | None = None
        self._began = time.monotonic()
        self._drawing = threading.RLock()
        self._later: threading.Timer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.show(None)

    def show(self, progress: Progress | None) -> None:
        if progress is not None and not has_bars(self._stream):
            if progress.phase != "queued":
                self._say(progress)
            return
        with self._drawing:
            if self._later is not None:
                self._later.cancel()
                self._later = None
            if progress is None:
                self._end_bars()
            elif self._bars is None and not progress.fraction and (left := self._began + DELAY - time.monotonic()) > 0:
                self._draw_in(left, progress)
            else:
                self._draw(progress)

    def _draw_in(self, seconds: float, progress: Progress) -> None:
        """Unless something else is shown before: a model that is ready is queued for a moment too."""

        def draw() -> None:
            with self._drawing:
                if self._later is timer:
                    self._draw(progress)

        self._later = timer = threading.Timer(seconds, draw)
        timer.daemon = True
        timer.start()

    def _say(self, progress: Progress) -> None:
        """A line at the start of a phase and at each quarter of a download."""
        quarter = int((progress.fraction or 0) / STEP) if progress.phase == "downloading" else 0
        if self._said == (progress.phase, quarter):
            return
        self._said = (progress.phase, quarter)
        share = f" {progress.fraction:.0%}" if progress.fraction else ""
        total = f" of {size(progress.total_bytes)}" if share and progress.total_bytes else ""
        print(f"{progress.phase} {self._name}{share}{total}", file=self._stream, flush=True)

    def _draw(self, progress: Progress) -> None:
        bars = self._started_bars()
        text = f"{progress.phase} {self._name}"
        if self._task is None or self._task[0] != text:
            if self._task is not None:
                bars.remove_task(self._task[1])
            self._task = (text, bars.add_task(text, total=None))
        if progress.total_bytes:
            bars.update(self._task[1], completed=progress.done_bytes, total=progress.total_bytes)
        elif progress.fraction is not None:
            bars.update(self._task[1], completed=progress.fraction, total=1.0)

    def _started_bars(self) -> Bars:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bars

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            self._bars = Bars(*columns, console=Console(file=self._stream), transient=True)
            self._bars.start()
        return self._bars

    def _end_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None


def has_bars(stream: TextIO) -> bool:
    """Somebody watches, at a terminal that can move its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def counted(count: int, noun: str) -> str:
    """1 model, 2 models."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(count: int) -> str:
    """Bytes for people: 4.9 MB, 7.2 GB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
