"""One answer's text becomes events: stop strings end it, the model file's keys cut it, and calls of functions are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from llmgallery.chat.calls.reader import CallReader
from llmgallery.chat.cutting import Cutter
from llmgallery.chat.rules import Allowance
from llmgallery.chat.stops import StopFilter
from llmgallery.config.model import ModelConfig
from llmgallery.core.events import ToolCallDelta


class Stage(Protocol):
    """What changes an answer on its way: takes text, gives out what nothing that follows can change, and at the end the rest."""

    def feed(self, text: str) -> str: ...
    def finish(self) -> str: ...


class Piece(NamedTuple):
    """More of an answer. `text` is to be shown; `written` characters of what the model wrote are decided by it."""

    text: str
    written: int


class AnswerParser:
    """The state of one answer. `stopped` is the stop string that ended it; after that nothing more comes out.

    `config`: the model's, whose keys cut answers. `tools`: names of the functions that may be called; their `calls` are known
    at the end. `fault`: why its rules could not be followed to the end; "" = they were.
    """

    def __init__(
        self,
        stops: Sequence[str] = (),
        config: ModelConfig | None = None,
        tools: Sequence[str] = (),
        *,
        parallel: bool = True,
    ) -> None:
        self._filter = StopFilter(stops)
        self._allowance = Allowance()
        self._stages: list[Stage] = []
        self._reader: CallReader | None = None
        if config is not None and Cutter.is_needed(config):
            self._stages.append(Cutter(config, self._allowance))
        if config is not None and tools:
            self._reader = CallReader(config.function, tools, self._allowance, parallel=parallel)
            self._stages.append(self._reader)

    @property
    def stopped(self) -> str | None:
        return self._filter.matched

    @property
    def changes(self) -> bool:
        """What is shown may differ from what was written, and its end takes time to make out."""
        return bool(self._stages)

    @property
    def calls(self) -> tuple[ToolCallDelta, ...]:
        """Known once the answer has been finished."""
        return self._reader.calls if self._reader is not None else ()

    @property
    def fault(self) -> str:
        return self._allowance.fault

    def begin(self, text: str) -> str:
        """What the answer begins with before anything that the model writes; no stop string is looked for in it. What may be
        shown of it now."""
        for stage in self._stages:
            text = stage.feed(text)
        return text

    def feed(self, text: str) -> Piece:
        """More text, in whole characters."""
        written = self._filter.feed(text)[0]
        return Piece(self.begin(written), len(written))

    def finish(self) -> Piece:
        """What was held back. Ask `stopped` again afterwards: a match may have hung on the text's end."""
        written = text = self._filter.flush()
        for stage in self._stages:
            text = stage.feed(text) + stage.finish()
        return Piece(text, len(written))
