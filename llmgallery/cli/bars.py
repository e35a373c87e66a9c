"""What the terminal shows while models are installed: a bar for each file and one for all, or plain lines."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from llmgallery.cli.display import counted, has_bars, size
from llmgallery.core.installs import Install

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

QUARTERS = 4
WHOLE = ""
"""In the place of a file's name: the bar of all files."""


def name_of(job: Install) -> str:
    """The model's, or what was asked for until that is known."""
    return job.name or job.asked


class InstallBars:
    """`show` where an install is, as often as it changes. stdout stays clean: everything goes to `stream`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._said: dict[str, tuple[str, int]] = {}
        self._bars: Bars | None = None
        self._tasks: dict[tuple[str, str], TaskID] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bars is not None:
            self._bars.stop()

    def show(self, job: Install) -> None:
        if has_bars(self._stream):
            self._draw(job)
        elif not job.is_over and job.phase != "queued":
            self._say(job)

    # Plain lines

    def _say(self, job: Install) -> None:
        """A line at the start of a phase and at each quarter of a download."""
        quarter = int((job.fraction or 0) * QUARTERS) if job.phase == "downloading" else 0
        if self._said.get(job.id) == (job.phase, quarter):
            return
        is_first = self._said.get(job.id, ("", 0))[0] != job.phase
        self._said[job.id] = (job.phase, quarter)
        print(f"{job.phase} {name_of(job)}{_extent(job, is_first)}", file=self._stream, flush=True)

    # Bars

    def _draw(self, job: Install) -> None:
        """The whole first, its files below it; files that are here lose their bars, and with the job all go."""
        bars = self._started()
        self._bar(job, WHOLE, f"{job.phase} {name_of(job)}", job.done_bytes, job.total_bytes)
        for file in job.files if len(job.files) > 1 else ():
            is_here = file.total is not None and file.done >= file.total
            if file.done and not is_here:
                self._bar(job, file.name, f"  {file.name}", file.done, file.total)
            elif is_here:
                self._drop(job, file.name)
        if job.is_over:
            for id, name in [key for key in self._tasks if key[0] == job.id]:
                bars.remove_task(self._tasks.pop((id, name)))

    def _bar(self, job: Install, name: str, text: str, done: int, total: int | None) -> None:
        bars = self._started()
        key = (job.id, name)
        if key not in self._tasks:
            self._tasks[key] = bars.add_task(text, total=None)
        bars.update(self._tasks[key], description=text, completed=done, total=total)

    def _drop(self, job: Install, name: str) -> None:
        if (task := self._tasks.pop((job.id, name), None)) is not None:
            self._started().remove_task(task)

    def _started(self) -> Bars:
        if self._bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bars

            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._bars = Bars(*columns, console=Console(file=self._stream), transient=True)
            self._bars.start()
        return self._bars


def _extent(job: Install, is_first: bool) -> str:
    """What stands behind the name in a plain line of a download."""
    if job.phase != "downloading":
        return ""
    total = f" of {size(job.total_bytes)}" if job.total_bytes else ""
    share = f" {job.fraction:.0%}{total}" if job.fraction else ""
    if is_first and not share:
        return f" ({counted(len(job.files), 'file')}{f', {size(job.total_bytes)}' if job.total_bytes else ''})"
    return share
