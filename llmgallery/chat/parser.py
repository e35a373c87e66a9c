"""One answer's text becomes events. Here reasoning and tool calls will be told apart from the answer."""

from __future__ import annotations

from collections.abc import Sequence

from llmgallery.chat.stops import StopFilter
from llmgallery.core.events import TextDelta


class AnswerParser:
    """The state of one answer. `stopped` is the stop string that ended it; after that nothing more comes out."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._filter = StopFilter(stops)

    @property
    def stopped(self) -> str | None:
        return self._filter.matched

    def feed(self, text: str) -> list[TextDelta]:
        """Events for more text, in whole characters."""
        return _deltas(self._filter.feed(text)[0])

    def finish(self) -> list[TextDelta]:
        """Events for what was held back. Ask `stopped` again afterwards: a match may have hung on the text's end."""
        return _deltas(self._filter.flush())


def _deltas(text: str) -> list[TextDelta]:
    return [TextDelta(text)] if text else []
