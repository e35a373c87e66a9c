"""KoboldCpp's chat completion adapters: what stands before and after each message. Named ones are data: kobold.toml.

Source: transform_genparams in koboldcpp.py of https://github.com/LostRuins/koboldcpp; the nested form is of its pull request 461.
"""

from __future__ import annotations

import difflib
import functools
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from types import MappingProxyType
from typing import Any, NamedTuple

from llmgallery.core.errors import InvalidField, TemplateError
from llmgallery.templates.jinja_guard import Limits

AUTO = "AutoGuess"
"""In place of a name: the adapter that fits the chat template of the weights."""

UNUSED_KEYS = ("add_sd_prompt", "add_sd_negative_prompt")
"""Keys of adapters that say how to ask for images, which nobody here makes."""

MOST_FAULTS = 20
"""More are not looked for: adapters come from clients."""

_NESTED = MappingProxyType({"system": "system", "user": "user", "assistant": "assistant", "tools": "tools", "tool": "tools"})
"""Roles of the nested form -> how the flat keys begin."""


@dataclass(frozen=True)
class Adapter:
    """The texts around the messages, with KoboldCpp's defaults. `chat_start` begins the prompt; `assistant_gen` ends it, else
    `assistant_start` does. `max_length`: tokens of an answer to a request that does not say; None = it does not matter."""

    chat_start: str = ""
    system_start: str = "\n### Instruction:\n"
    system_end: str = ""
    user_start: str = "\n### Instruction:\n"
    user_end: str = ""
    assistant_start: str = "\n### Response:\n"
    assistant_gen: str | None = None
    assistant_end: str = ""
    tools_start: str = ""
    tools_end: str = ""
    max_length: int | None = None

    @property
    def generation(self) -> str:
        """What the answer follows."""
        return self.assistant_start if self.assistant_gen is None else self.assistant_gen

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end an answer: how the user's and the assistant's next turns would begin."""
        starts = (self.user_start.strip(), self.assistant_start.strip())
        return tuple(dict.fromkeys(start for start in starts if start))

    def flat(self) -> dict[str, str | int]:
        """By KoboldCpp's flat keys, all that is not as KoboldCpp has it by default."""
        plain = asdict(Adapter())
        return {key: value for key, value in asdict(self).items() if value != plain[key]}


class Fault(NamedTuple):
    """What is wrong with an adapter. `key`: its dotted path below the adapter, "" = the whole."""

    key: str
    message: str
    suggestion: str = ""


class Guess(NamedTuple):
    """What AutoGuess found: KoboldCpp's name of the rule, and its adapter."""

    name: str
    adapter: Adapter


def read(adapter: Mapping[str, Any], field: str = "adapter") -> Adapter:
    """The adapter that these keys are: flat ones, the pull request's `templates.system.start`, or some of each.

    Raises InvalidField with the first key that is wrong, as a path below `field`.
    """
    found, faults = examine(adapter)
    for fault in faults:
        path = f"{field}.{fault.key}" if fault.key else field
        advice = f"; {fault.suggestion}" if fault.suggestion else ""
        raise InvalidField(f"{path}: {fault.message}{advice}", field=path)
    return found


def examine(adapter: Mapping[str, Any]) -> tuple[Adapter, list[Fault]]:
    """What of these keys can be used, and what is wrong with the others."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    faults: list[Fault] = []
    for path, key, value in _flattened(adapter, faults):
        if len(faults) >= MOST_FAULTS:
            break
        if fault := _fault(key, value):
            faults.append(Fault(path, *fault))
        elif key in values and values[key] != value:
            faults.append(Fault(path, f"{origins[key]} is set as well, to another text", "keep one of them"))
        elif key not in UNUSED_KEYS:
            values[key], origins[key] = value, path
    return Adapter(**values), faults


def check(adapter: Mapping[str, Any] | str) -> list[Fault]:
    """All that is wrong with an adapter's keys, or with its name."""
    if not isinstance(adapter, str):
        return examine(adapter)[1]
    if not is_auto(adapter):
        try:
            named(adapter)
        except InvalidField as error:
            return [Fault("", error.message.removeprefix("adapter: "))]
    return []


def adapters() -> Mapping[str, Adapter]:
    """The named ones, by KoboldCpp's names."""
    return _data()[0]


def named(name: str, field: str = "adapter") -> Adapter:
    """The adapter of this name, in any case and with or without .json, as KoboldCpp finds its files.

    Raises InvalidField with near names.
    """
    known = adapters()
    wanted = name.strip().lower().removesuffix(".json")
    for own in known:
        if own.lower() == wanted:
            return known[own]
    lower = {own.lower(): own for own in (*known, AUTO)}
    near = tuple(lower[match] for match in difflib.get_close_matches(wanted, lower, n=1))
    meant = f"did you mean {near[0]}?" if near else f"known: {', '.join((*known, AUTO))}"
    raise InvalidField(f"{field}: no KoboldCpp adapter is called {name!r}; {meant}", field=field, hints=near)


def is_auto(name: str) -> bool:
    """Whether this name asks for a guess."""
    return name.strip().lower().removesuffix(".json") == AUTO.lower()


def guess(chat_template: str | None) -> Guess | None:
    """The first rule whose texts all stand in the chat template of the weights."""
    if not chat_template:
        return None
    return next((found for search, found in _data()[1] if all(text in chat_template for text in search)), None)


def fill(prompt: str, adapter: Adapter) -> str:
    """A prompt with KoboldCpp's placeholders `{{[INPUT]}}`, `{{[OUTPUT]}}` and `{{[SYSTEM]}}` replaced. Where one of
    `{{[INPUT_END]}}` and `{{[OUTPUT_END]}}` stands, each is its own text; else a turn's beginning ends the turn before.
    At the end of the prompt, what begins an answer is written as `generation`. Raises TemplateError before the text is longer
    than what a render may write, beside the prompt itself."""
    start, generation = adapter.assistant_start, adapter.generation
    if generation and generation != start:
        for mark in filter(None, ("{{[OUTPUT]}}", start)):
            if prompt.rstrip().endswith(mark):
                before, _, after = prompt.rpartition(mark)
                prompt = before + generation + after
                break
    placeholders = _placeholders(prompt, adapter)
    added = sum(prompt.count(placeholder) * len(text) for placeholder, text in placeholders.items())
    if added > Limits().chars:
        raise TemplateError(f"the adapter adds {added:,} characters to this prompt, more than {Limits().chars:,}")
    for placeholder, text in placeholders.items():
        prompt = prompt.replace(placeholder, text)
    return prompt


def _placeholders(prompt: str, adapter: Adapter) -> dict[str, str]:
    ends = {
        "{{[INPUT_END]}}": adapter.user_end,
        "{{[OUTPUT_END]}}": adapter.assistant_end,
        "{{[SYSTEM_END]}}": adapter.system_end,
    }
    starts = {
        "{{[INPUT]}}": adapter.user_start,
        "{{[OUTPUT]}}": adapter.assistant_start,
        "{{[SYSTEM]}}": adapter.system_start,
    }
    if "{{[INPUT_END]}}" in prompt or "{{[OUTPUT_END]}}" in prompt:
        return {**starts, **ends}
    joined = {
        "{{[INPUT]}}": adapter.assistant_end + adapter.user_start,
        "{{[OUTPUT]}}": adapter.user_end + adapter.assistant_start,
    }
    return {**starts, **joined, **dict.fromkeys(ends, "")}


def _flattened(adapter: Mapping[str, Any], faults: list[Fault]) -> Iterator[tuple[str, str, Any]]:
    """(path as it is written, flat key, value)."""
    for key, value in adapter.items():
        if key != "templates":
            yield _brief(key), key, value
        elif isinstance(value, Mapping):
            yield from _nested(value, faults)
        else:
            faults.append(Fault(key, f"expected system, user and assistant, each with start and end, found {_shown(value)}"))


def _nested(templates: Mapping[str, Any], faults: list[Fault]) -> Iterator[tuple[str, str, Any]]:
    for role, texts in templates.items():
        if len(faults) >= MOST_FAULTS:
            return
        path = f"templates.{_brief(str(role))}"
        if role not in _NESTED:
            faults.append(Fault(path, "no such role in an adapter", _meant(str(role), [*_NESTED])))
        elif not isinstance(texts, Mapping):
            faults.append(Fault(path, f"expected start and end, found {_shown(texts)}"))
        else:
            for end, text in texts.items():
                yield f"{path}.{_brief(str(end))}", f"{_NESTED[role]}_{end}", text


def _fault(key: str, value: Any) -> tuple[str, str] | None:
    known = (*Adapter.__dataclass_fields__, *UNUSED_KEYS)
    if key not in known:
        return "no such key in an adapter", _meant(key, [*known])
    if key == "max_length":
        good = type(value) is int and value > 0
        return None if good else (f"expected a number of tokens, at least 1, found {_shown(value)}", "")
    return None if isinstance(value, str) else (f"expected text, found {_shown(value)}", "")


def _meant(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"


def _shown(value: Any) -> str:
    return _brief(json.dumps(value, ensure_ascii=False, default=str))


def _brief(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


@functools.cache
def _data() -> tuple[Mapping[str, Adapter], tuple[tuple[tuple[str, ...], Guess], ...]]:
    """The named adapters, and the rules of AutoGuess: what to search for, and what it means."""
    data = tomllib.loads((resources.files("llmgallery.templates") / "kobold.toml").read_text("utf-8"))
    own = {name: read(keys, name) for name, keys in data["adapters"].items()}
    rules = []
    for rule in data["autoguess"]:
        adapter = rule["adapter"]
        meant = own[adapter] if isinstance(adapter, str) else read(adapter, rule["name"])
        rules.append((tuple(rule["search"]), Guess(rule["name"], meant)))
    return MappingProxyType(own), tuple(rules)
