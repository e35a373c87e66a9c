"""Whoever waits hears of silence, and of silence only."""

from __future__ import annotations

import asyncio

from llmgallery.service.silence import Silence


async def test_silence_wakes_again_and_again_and_a_sound_puts_it_off() -> None:
    woken: list[float] = []
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()

    def wake() -> None:
        woken.append(loop.time())
        heard.set()

    began = loop.time()
    silence = Silence(0.02, wake)
    sounds = [began]
    async with asyncio.timeout(20):
        for _ in range(5):
            silence.broken()
            sounds.append(loop.time())
            await asyncio.sleep(0)
        for _ in range(3):
            await heard.wait()
            heard.clear()
            assert silence.is_long
            assert woken[-1] - sounds[-1] >= 0.02
            silence.broken()
            assert not silence.is_long
            sounds.append(loop.time())
    silence.end()
    count = len(woken)
    await asyncio.sleep(0.05)
    assert len(woken) == count
