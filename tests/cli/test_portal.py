"""An event loop in another thread: results, errors, early ends and Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading

import pytest

from llmgallery.cli.portal import Portal


async def count(log: list[str], up_to: int = 3):
    try:
        for number in range(up_to):
            yield number
            await asyncio.sleep(0)
    finally:
        log.append("closed")


def test_results_and_errors_come_back():
    async def work(fail: bool) -> str:
        if fail:
            raise ValueError("no")
        return threading.current_thread().name

    with Portal() as portal:
        assert portal.run(work(False)) == "event loop"
        with pytest.raises(ValueError, match="no"):
            portal.run(work(True))


def test_each_gives_all_items_and_closes():
    log: list[str] = []
    with Portal() as portal:
        assert list(portal.each(count(log))) == [0, 1, 2]
    assert log == ["closed"]


def test_leaving_early_closes_the_generator():
    log: list[str] = []
    with Portal() as portal:
        items = portal.each(count(log))
        assert next(items) == 0
        items.close()
        assert log == ["closed"]


def test_ctrl_c_cancels_the_work_and_waits_for_its_end():
    log: list[str] = []
    main = threading.main_thread().ident or 0

    async def work() -> None:
        while sys._current_frames()[main].f_code.co_name != "wait":  # noqa: ASYNC110 - nothing tells when a thread waits
            await asyncio.sleep(0)
        signal.pthread_kill(main, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            log.append("cleaned up")

    with Portal() as portal:
        with pytest.raises(KeyboardInterrupt):
            portal.run(work())
        assert log == ["cleaned up"]


def test_what_still_runs_is_cancelled_at_the_end():
    log: list[str] = []

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("cancelled")

    async def start() -> asyncio.Task[None]:
        task = asyncio.ensure_future(forever())
        await asyncio.sleep(0)
        return task

    with Portal() as portal:
        portal.run(start())
    assert log == ["cancelled"]


@pytest.mark.parametrize("handed_over", [True, False])
def test_ctrl_c_in_the_moment_of_the_handover(monkeypatch, handed_over: bool):
    """The work may have been taken already: it must have ended before anybody closes what it works on."""
    log: list[str] = []
    with Portal() as portal:
        hand_over = portal._loop.call_soon_threadsafe

        def interrupted(callback, *args):
            monkeypatch.undo()
            if handed_over:
                hand_over(callback, *args)
            raise KeyboardInterrupt

        items = portal.each(count(log, up_to=100))
        assert next(items) == 0
        monkeypatch.setattr(portal._loop, "call_soon_threadsafe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(items)
        assert log == ["closed"]
