"""The very prompt that a request would become, from whoever knows it soonest: nothing is loaded, installed or evicted for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple, TypeVar

from llmgallery.backends.base import Files
from llmgallery.backends.loader import specs
from llmgallery.catalog.index import Entry
from llmgallery.catalog.purpose import Cached
from llmgallery.config.model import Template
from llmgallery.core.errors import InvalidField, LoadError, UnsupportedField, WorkerDied
from llmgallery.core.rendering import Rendering
from llmgallery.core.requests import CompletionRequest, Request
from llmgallery.runtime.files import here
from llmgallery.runtime.handle import Handle
from llmgallery.runtime.keys import backend_of, load_key, vocabulary_key
from llmgallery.runtime.manager import Manager
from llmgallery.service.demands import features_of, is_elsewhere, settle
from llmgallery.service.spread import Ask, spread

T = TypeVar("T")


class Renderer:
    """A loaded model's worker renders in between its answers; else a light worker does, which holds the vocabulary."""

    def __init__(self, manager: Manager, cached: Cached) -> None:
        self._manager = manager
        self._cached = cached

    async def render(self, entry: Entry, ask: Ask) -> Rendering:
        """Of a call with one prompt; what the model cannot do is rendered all the same, and a warning says so. Raises
        RequestError, and LoadError where the weights are needed and are not here."""
        request, warnings = the_request(ask, entry)

        async def rendered(worker: Handle) -> Rendering:
            return (await worker.render(request, entry.config)).warned(*warnings)

        try:
            return await self.told(entry, rendered)
        except (LoadError, WorkerDied) as why:
            if not needs_no_weights(request, entry.config.template):
                raise
            if (field := needs_vocabulary(request)) is not None:
                told = f"{field}: only the model's vocabulary could tell the prompt, and it is not here: {why.message}"
                raise UnsupportedField(told, field=field) from why
            async with self._manager.light.worker("", entry.name, "", entry.config, Files()) as worker:
                return (await rendered(worker)).warned(why.message)

    async def told(self, entry: Entry, question: Callable[[Handle], Awaitable[T]]) -> T:
        """What a worker says that knows the model's vocabulary and templates. Raises LoadError, WorkerDied, and what `question`
        raises."""
        found = await asyncio.to_thread(_find, entry, self._cached)
        if (loaded := self._manager.loaded(found.key)) is not None:
            with suppress(LoadError, WorkerDied):  # it is being unloaded
                return await question(loaded)
        async with self._manager.light.worker(found.light, entry.name, found.backend, entry.config, found.weights) as worker:
            return await question(worker)


class _Found(NamedTuple):
    """A model's backend and weights, and the load keys of its worker and of a light one."""

    backend: str
    weights: Files
    key: str
    light: str


def _find(entry: Entry, cached: Cached) -> _Found:
    """Blocks. Raises LoadError."""
    files = here(entry, cached)
    if files is None:
        raise LoadError(f"the weights of model {entry.name} are not here: ask it once, or `llmgallery install` it")
    backend, weights = backend_of(entry, files), Files(files.weights)
    return _Found(backend, weights, load_key(backend, entry.config, files), vocabulary_key(backend, entry.config, weights))


def needs_no_weights(request: Request, template: Template) -> bool:
    """The text of its prompt, though not its tokens, is made of what the YAML says, or the client."""
    if isinstance(request, CompletionRequest):
        return True
    if request.adapter is not None:
        return Template(adapter=request.adapter).is_written
    return template.is_written


def needs_vocabulary(request: Request) -> str | None:
    """The field because of which not even the text of its prompt can be told without the vocabulary."""
    if not isinstance(request, CompletionRequest):
        return None
    return "prompt" if not isinstance(request.prompt, str) else "suffix" if request.suffix else None


def the_request(ask: Ask, entry: Entry) -> tuple[Request, tuple[str, ...]]:
    """The one request that a server would run, and warnings of what it would ignore, or refuse it for: of that nothing is left
    out. Raises InvalidField, and UnsupportedField for a model that is elsewhere."""
    if len(ask.prompts) != 1:
        raise InvalidField("prompt: one prompt is shown at a time, not a list of them", field="prompt")
    spec = specs().get(entry.backend or "")
    if is_elsewhere(spec):
        told = (
            f"model {entry.name} is elsewhere (backend {entry.backend}): its endpoint writes the prompt, nobody here can show it"
        )
        raise UnsupportedField(told, field="model")
    features = features_of(spec, entry.config)
    try:
        warnings = settle(ask.wishes, entry.config.on_unsupported, entry.name, features)
    except UnsupportedField as refusal:
        warnings = (f"a server refuses this request: {refusal.message}",)
        features |= {wish.feature for wish in ask.wishes}
    return spread(ask, entry, features, spec).requests[0], warnings
