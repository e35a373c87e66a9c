"""An answer to a request with functions on offer: text that is no call goes out as it comes, calls are told at the end."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

from llmgallery.chat.calls.base import Found, is_text
from llmgallery.chat.calls.find import captured, find_calls, replaced, starts
from llmgallery.chat.cutting import SPACE
from llmgallery.chat.formats.localai_data import NO_ACTION
from llmgallery.chat.rules import Allowance
from llmgallery.chat.stops import StopFilter
from llmgallery.config.model import Function
from llmgallery.core.events import ToolCallDelta

_BLANK = SPACE + "\x1c\x1d\x1e\x1f["
"""What may stand between an opener and the call: brackets of an array, and all that `strip` takes for spaces."""
_OPENER = re.compile(r"(?:<[^<>\s]{0,64}>?|`{1,3}\w{0,16})\Z")
"""What may belong to a call that begins behind it: a tag, or the fence of a code block."""
_CLOSING = re.compile(r"(?:[\s\],;]|</?[^<>\s]{1,64}>|```)*")
_LONGEST_OPENER = 66


class CallReader:
    """The state of one answer. Nothing is lost: what is no call is text. `parallel`: more than one call may be told.

    Text goes out before a call can have begun, as far as the model file's rules let that be known; a file that rewrites
    answers before it looks for calls has them whole at the end.
    """

    def __init__(self, function: Function, tools: Sequence[str], allowance: Allowance, *, parallel: bool = True) -> None:
        """`tools`: the names of the functions on offer."""
        self._function = function
        self._tools = tools
        self._parallel = parallel
        self._allowance = allowance
        self._pieces: list[str] = []
        self._tail: list[str] = []
        self._released = 0
        """Characters that have gone out."""
        self._guard = self._new_guard()
        self.calls: tuple[ToolCallDelta, ...] = ()

    def _new_guard(self) -> StopFilter | None:
        function = self._function
        if function.replace_llm_results or function.replace_function_results or function.capture_llm_results:
            return None
        marks: list[str] | None = None
        with self._allowance.spending():
            marks = starts(function)
        return None if marks is None else StopFilter(marks)

    def feed(self, text: str) -> str:
        """What may go out."""
        self._pieces.append(text)
        if self._guard is None:
            return ""
        free, started = self._guard.feed(text)
        if started is not None:
            return ""  # what is held may belong to the call
        self._tail.append(free)
        if not free.strip(_BLANK):
            return ""  # what goes before it is held already, and more of these set nothing free
        tail = "".join(self._tail)
        opening = _opening(tail)
        self._tail = [tail[opening:]]
        self._released += opening
        return tail[:opening]

    def finish(self) -> str:
        """The rest of the text; from now on `calls` are known."""
        written = text = "".join(self._pieces)
        found: list[Found] = []
        with self._allowance.spending():
            if not self._allowance.is_spent:
                text = replaced(written, self._function.replace_llm_results)
                searched = replaced(text, self._function.replace_function_results)
                found = find_calls(searched, self._function)
        if not found:
            return text[self._released :]
        content = self._beside(written, text, searched, found)
        said, calls = self._without_answers(found)
        self.calls = tuple(
            ToolCallDelta(index, f"call_{secrets.token_hex(12)}", call.name, call.arguments)
            for index, call in enumerate(calls if self._parallel else calls[:1])
        )
        if found and not calls and not said and not content:
            return text[self._released :]
        return "\n".join(part for part in (content, *said) if part)[self._released :]

    def _beside(self, written: str, text: str, searched: str, found: Sequence[Found]) -> str:
        """The text of an answer that makes calls."""
        picked = None
        with self._allowance.spending():
            picked = captured(written, self._function.capture_llm_results)
        if picked is not None:
            return picked
        before = searched[: found[0].begin]
        before = before[: _opening(before)].rstrip()
        if len(before) < self._released:
            before = text[: self._released]
        if searched != text:  # made for calls, and no text to be shown
            return before if text.startswith(before) else ""
        return "\n".join([*([before] if before else []), *_between(searched, found)])

    def _without_answers(self, found: Sequence[Found]) -> tuple[list[str], list[Found]]:
        """LocalAI tells models of a function by which they call none: what its calls say, and all other calls."""
        name = self._function.no_action_function_name or NO_ACTION
        if self._function.disable_no_action or name in self._tools:
            return [], list(found)
        said = [_message(call.arguments) for call in found if call.name == name]
        return said, [call for call in found if call.name != name]


def _opening(text: str) -> int:
    """Where the end of the text begins that may belong to a call: spaces, brackets of an array, an opener before these."""
    at = len(text.rstrip(_BLANK))
    opener = _OPENER.search(text, max(0, at - _LONGEST_OPENER), at)
    return len(text[: opener.start() if opener else at].rstrip())


def _between(text: str, found: Sequence[Found]) -> list[str]:
    """What stands between the calls and behind them, without what closes and opens them."""
    ends = [*(call.begin for call in found[1:]), len(text)]
    pieces = []
    for call, end in zip(found, ends, strict=True):
        piece = text[call.end : end]
        piece = piece[_end_of_closing(piece) :]
        piece = piece[: _opening(piece)].strip() if end < len(text) else piece.strip()
        pieces += [piece] if piece else []
    return pieces


def _end_of_closing(text: str) -> int:
    match = _CLOSING.match(text)
    return match.end() if match else 0


def _message(arguments: str) -> str:
    """What the model wants to say: the argument `message`, which it was told of, or the only one."""
    try:
        values: Any = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        return arguments
    if not isinstance(values, dict):
        return arguments
    message = values.get("message", next(iter(values.values())) if len(values) == 1 else None)
    return message if isinstance(message, str) and is_text(message) else arguments
