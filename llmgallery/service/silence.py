"""Tells when nothing has come for a while."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Silence:
    """Calls `wake` once nothing has been heard for `pause` seconds. One timer serves a whole stream: a token every few
    milliseconds would set and cancel one each."""

    def __init__(self, pause: float, wake: Callable[[], None]) -> None:
        self._pause = pause
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._since = self._loop.time()
        self._timer = self._loop.call_later(pause, self._tick)

    def broken(self) -> None:
        """Something was heard or said: it begins anew."""
        self._since = self._loop.time()

    @property
    def is_long(self) -> bool:
        return self._loop.time() >= self._since + self._pause

    def end(self) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        if self.is_long:
            self._timer = self._loop.call_later(self._pause, self._tick)
            self._wake()
        else:
            self._timer = self._loop.call_at(self._since + self._pause, self._tick)
