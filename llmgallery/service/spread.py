"""From what one call asks to the requests that are run: the model's settings under the request's own, and copies. Pure."""

from __future__ import annotations

from collections.abc import Container
from typing import Any, NamedTuple

import msgspec

from llmgallery.backends.base import BackendSpec
from llmgallery.catalog.registry import Entry
from llmgallery.config.merge import config_sampling, merge_sampling, merge_stops
from llmgallery.config.model import Parameters
from llmgallery.core.errors import InvalidField
from llmgallery.core.messages import ImagePart, Message, RawPart
from llmgallery.core.requests import CompletionRequest, Request
from llmgallery.core.sampling import Sampling
from llmgallery.service.demands import FEATURES, GENERATION_CONFIG, IMAGES, PROMPT_LOGPROBS, Wish, is_elsewhere

MOST_ANSWERS = 512
MOST_COPIED = 256 * 1024 * 1024
"""Bytes of a call's copies, each of which goes to the worker whole."""


class Ask(msgspec.Struct, frozen=True):
    """What a dialect understood of one call. `prompts`: one request each; every one is answered `copies` times, which are the
    best of `best_of`. `unsaid`: of "n", "echo", "logprobs", "top_logprobs" those that are left to the model's YAML.
    `token`: the bearer token, which may name the model when no API key is configured."""

    model: str | None
    prompts: tuple[Request, ...]
    copies: int = 1
    wishes: tuple[Wish, ...] = ()
    stream: bool = False
    token: str | None = None
    best_of: int | None = None
    unsaid: frozenset[str] = frozenset()


class Spread(NamedTuple):
    """All requests, the copies of a prompt together. Of `copies` each, `choices` are given; `logprobs`: the client wants them."""

    requests: list[Request]
    copies: int
    choices: int
    logprobs: bool


def spread(ask: Ask, entry: Entry, features: Container[str] = FEATURES, spec: BackendSpec | None = None) -> Spread:
    """Raises InvalidField. `features`: what the model can do; nothing else is asked of it. `spec`: its backend's, if that is
    known. Copies of a seeded request count its seed up, or they would all say the same."""
    choices = entry.config.parameters.n or 1 if "n" in ask.unsaid else ask.copies
    copies = _copies(ask, choices) if "best_of" in features else choices
    if len(ask.prompts) * copies > MOST_ANSWERS:
        field = "n" if copies == choices else "best_of"
        raise InvalidField(f"a request may ask for {MOST_ANSWERS} answers at most: prompts x {field}", field=field)
    if copies > 1 and (size := len(msgspec.msgpack.encode(ask.prompts))) * copies > MOST_COPIED:
        field = "n" if copies == choices else "best_of"
        raise InvalidField(f"{field}: {copies} answers to {size:,} bytes are too much at once: ask for fewer", field=field)
    merged = [_merged(request, ask, entry, features, spec) for request in ask.prompts]
    wanted = any(request.logprobs is not None for request in merged)
    if copies > choices and not wanted:
        merged = [msgspec.structs.replace(request, logprobs=0) for request in merged]
    return Spread([_copy(request, copy) for request in merged for copy in range(copies)], copies, choices, wanted)


def _copies(ask: Ask, choices: int) -> int:
    copies = choices if ask.best_of is None else ask.best_of
    if copies < choices:
        raise InvalidField(f"best_of: must be at least n, which is {choices}", field="best_of")
    if copies > choices and ask.stream:
        raise InvalidField("best_of: the best answers are known at their end and cannot be streamed", field="best_of")
    return copies


def _merged(request: Request, ask: Ask, entry: Entry, features: Container[str], spec: BackendSpec | None) -> Request:
    parameters, elsewhere = entry.config.parameters, is_elsewhere(spec)
    logprobs = _logprobs(request, ask, parameters) if "logprobs" in features else None
    request = msgspec.structs.replace(
        request,
        sampling=_asked(request, entry) if elsewhere else _sampling(request, entry, spec),
        stop=merge_stops(request.stop, entry.config),
        logprobs=logprobs,
        extra=request.extra if elsewhere else {},
    )
    if isinstance(request, CompletionRequest):
        echo = bool(parameters.echo) if "echo" in ask.unsaid else request.echo
        echo = echo and (logprobs is None or PROMPT_LOGPROBS in features)
        return msgspec.structs.replace(request, echo=echo, suffix=request.suffix if "suffix" in features else None)
    if elsewhere:
        return request
    messages = tuple(_readable(message, IMAGES in features) for message in request.messages)
    return msgspec.structs.replace(request, messages=messages, tools=request.tools if "tools" in features else ())


def _asked(request: Request, entry: Entry) -> Sampling:
    """What request and YAML say, and no more: what holds otherwise is the endpoint's own."""
    asked = request.sampling.over(config_sampling(entry.config))
    return msgspec.structs.replace(asked, max_tokens=None) if asked.max_tokens == -1 else asked


def _sampling(request: Request, entry: Entry, spec: BackendSpec | None) -> Sampling:
    sampling = request.sampling
    if spec is not None and spec.parameters:
        own = {name: value for name, value in request.extra.items() if name in spec.parameters and value is not None}
        extra = {**sampling.extra, **generation_config(request.extra.get(GENERATION_CONFIG)), **own}
        sampling = msgspec.structs.replace(sampling, extra=extra)
    return merge_sampling(sampling, entry.config, Sampling())


def generation_config(value: Any) -> dict[str, Any]:
    """Parameters of the backend's own: an object, or the text of one; None = none. Raises InvalidField."""
    if value is None:
        return {}
    try:
        found = msgspec.json.decode(value) if isinstance(value, str) else value
    except (msgspec.DecodeError, RecursionError) as exc:
        raise InvalidField(f"{GENERATION_CONFIG} is not valid JSON: {exc}", field=GENERATION_CONFIG) from exc
    if not isinstance(found, dict):
        raise InvalidField(f"{GENERATION_CONFIG}: expected an object, or the JSON of one", field=GENERATION_CONFIG)
    return {name: given for name, given in found.items() if given is not None}


def _readable(message: Message, sees: bool) -> Message:
    """Without what no model here reads; images only for a model that `sees`."""
    unread = RawPart if sees else RawPart | ImagePart
    if not message.extra and not any(isinstance(part, unread) for part in message.parts):
        return message
    parts = tuple(part for part in message.parts if not isinstance(part, unread))
    return msgspec.structs.replace(message, parts=parts, extra={})


def _logprobs(request: Request, ask: Ask, parameters: Parameters) -> int | None:
    top = parameters.top_logprobs
    if "logprobs" not in ask.unsaid:
        own = request.logprobs
        return top if own is not None and top is not None and "top_logprobs" in ask.unsaid else own
    if not parameters.logprobs:
        return None
    return top if top is not None else int(parameters.logprobs) if parameters.logprobs is not True else 0


def _copy(request: Request, copy: int) -> Request:
    seed = request.sampling.seed
    if copy == 0 or seed is None or seed < 0:
        return request
    return msgspec.structs.replace(request, sampling=msgspec.structs.replace(request.sampling, seed=seed + copy))
