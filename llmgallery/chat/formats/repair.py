"""What a Jinja template insists on, found out by trying it, and conversations put in the way that it takes."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llmgallery.core.errors import TemplateError
from llmgallery.templates.jinja import Limits, check, compile_template

JOINT = "\n\n"
"""Between texts that become one message."""

_PROBING = Limits(steps=200_000, chars=1_000_000, seconds=3)  # a busy machine must not look like a refusal
_NEEDLE = "quartz sphinx"

MERGED = "the system message became part of the user message that follows it"
JOINED = "adjacent messages of one role became one"
PARTED = "texts were handed over as lists of parts"

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Caps:
    """What a template takes. `system`: where it lets system messages stand. `alternating`: whether user and assistant must take
    turns. `parts`: whether it prints texts only from lists of parts."""

    system: Literal["anywhere", "first", "never"] = "anywhere"
    alternating: bool = False
    parts: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """What is done to conversations because of it, for people."""
        where = {"anywhere": "", "first": "after the first message ", "never": ""}[self.system]
        return (
            *(
                (f"a system message {where}becomes part of the user message that follows it",)
                if self.system != "anywhere"
                else ()
            ),
            *(("adjacent messages of one role become one",) if self.alternating else ()),
            *(("texts are handed over as lists of parts",) if self.parts else ()),
        )


@functools.lru_cache(maxsize=64)
def caps_of(source: str) -> Caps:
    """What the template of `source` takes; tried once for the last 64 texts. One that does not even take a single question,
    or does not parse, is believed to take everything: rendering tells what is wrong with it."""
    if check(source) is not None:
        return Caps()
    alone = _try(source, [_user("1")])
    if alone is None:
        return Caps()
    in_parts = _NEEDLE not in alone and _NEEDLE in (_try(source, [_parted(_user("1"))]) or "")

    def takes(*messages: dict[str, Any]) -> bool:
        return _try(source, [_parted(message) for message in messages] if in_parts else messages) is not None

    system = _said("system", "s")
    later = takes(_user("1"), _said("assistant", "2"), system, _user("3"))
    first = takes(system, _user("1"))
    return Caps("never" if not first else "anywhere" if later else "first", not takes(_user("1"), _user("2")), in_parts)


def repair(messages: Messages, caps: Caps) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The messages as a template of such `caps` takes them, and what was done; messages that it takes stay as they are."""
    result, done = [dict(message) for message in messages], []
    if caps.system != "anywhere" and any(message["role"] == "system" for message in result[caps.system == "first" :]):
        result = _merge_system(result, leads=caps.system == "first")
        done.append(MERGED)
    if caps.alternating and any(_may_join(*pair) for pair in itertools.pairwise(result)):
        result = _join_turns(result)
        done.append(JOINED)
    if caps.parts:
        result = [_parted(message) for message in result]
        done.append(PARTED)
    return result, tuple(done)


def _merge_system(messages: list[dict[str, Any]], leads: bool) -> list[dict[str, Any]]:
    """System messages in the user message that follows at once, else as a user message of their own. `leads`: those at the
    beginning stay there, as one."""
    head = list(itertools.takewhile(_is_system, messages)) if leads else []
    result = [_as_one(head)] if head else []
    waiting: list[dict[str, Any]] = []
    for message in messages[len(head) :]:
        if _is_system(message):
            waiting.append(message)
            continue
        if waiting and message["role"] == "user":
            message = _joint(_as_user(waiting), message)
        elif waiting:
            result.append(_as_user(waiting))
        waiting = []
        result.append(message)
    return [*result, _as_user(waiting)] if waiting else result


def _as_user(messages: list[dict[str, Any]]) -> dict[str, Any]:
    return {**_as_one(messages), "role": "user"}


def _as_one(messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first, *others = messages
    for other in others:
        first = _joint(first, other)
    return first


def _is_system(message: Mapping[str, Any]) -> bool:
    return bool(message["role"] == "system")


def _join_turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    for message in messages:
        if result and _may_join(result[-1], message):
            result[-1] = _joint(result[-1], message)
        else:
            result.append(message)
    return result


def _may_join(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Calls of tools stay messages of their own, as their results refer to them."""
    role = first["role"]
    return role == second["role"] and role in ("user", "assistant") and not (first.get("tool_calls") or second.get("tool_calls"))


def _joint(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two messages as one: the first one's role, both contents, and what else they have."""
    one, other = first["content"], second["content"]
    if isinstance(one, list) or isinstance(other, list):
        content: Any = [*_parts(one), *([_text(JOINT)] if one and other else []), *_parts(other)]
    else:
        content = JOINT.join(text for text in (one, other) if text)
    return {**first, **second, "role": first["role"], "content": content}


def _parted(message: Mapping[str, Any]) -> dict[str, Any]:
    return {**message, "content": _parts(message["content"])} if isinstance(message["content"], str) else dict(message)


def _parts(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    return [_text(content)] if content else []


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": f"{_NEEDLE} {text}"}


def _user(text: str) -> dict[str, Any]:
    return _said("user", text)


def _try(source: str, messages: Messages) -> str | None:
    variables = {
        "messages": messages,
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        "bos_token": "",
        "eos_token": "",
    }
    try:
        return compile_template(source).render(variables, _PROBING)
    except TemplateError:
        return None
