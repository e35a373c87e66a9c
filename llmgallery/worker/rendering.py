"""Prompts for who wants to see them: made as those that are answered, and never given to the model."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from llmgallery.backends.base import Backend, BackendSpec, Files, HasVocabulary, Loaded
from llmgallery.chat.prompt import pick_format, render_completion
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import ContextExceeded, LoadError, UnsupportedField
from llmgallery.core.rendering import Rendering
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.worker.prepare import chat_prompt, chat_tokens, check_fits, completion_prompt

ANY_SIZE = 2**31 - 1
"""Of a context that nobody knows the size of."""
CLIENTS_OWN = "the request's own prompt"


def load_vocabulary(
    specs: Mapping[str, BackendSpec], backend: str, config: ModelConfig, files: Files
) -> tuple[Backend | None, Loaded]:
    """What prompts need of a model. Without a `backend` there is no vocabulary: prompts are made by what the YAML says alone.
    Raises LoadError, also for a backend that has none apart from the weights."""
    if not backend:
        return None, Loaded(config.context_size or ANY_SIZE)
    if backend not in specs:
        raise LoadError(f"this worker has no backend {backend}")
    engine: Backend = specs[backend].load()()
    if not isinstance(engine, HasVocabulary):
        raise LoadError(f"backend {backend} knows no vocabulary before it has loaded the whole model")
    loaded = engine.load_vocabulary(config, files)
    return engine, msgspec.structs.replace(loaded, context_size=loaded.context_size or ANY_SIZE)


def render(request: ChatRequest | CompletionRequest, config: ModelConfig, backend: Backend | None, loaded: Loaded) -> Rendering:
    """`backend` None = without a vocabulary. Raises what `prepare` raises, but a prompt that does not fit is shown, and a
    warning says so."""
    if isinstance(request, ChatRequest):
        field, rendering = "messages", _chat(request, config, backend, loaded)
    else:
        field, rendering = "prompt", _completion(request, config, backend, loaded)
    if rendering.tokens is None:
        return rendering.warned(_unknown(request, config, loaded))
    try:
        check_fits(len(rendering.tokens), loaded.context_size, field)
    except ContextExceeded as exc:
        return rendering.warned(exc.message)
    return rendering


def _chat(request: ChatRequest, config: ModelConfig, backend: Backend | None, loaded: Loaded) -> Rendering:
    if backend is None:
        rendered, tokens = chat_prompt(request, config, loaded), None
    else:
        rendered, ids = chat_tokens(request, config, backend, loaded)
        tokens = tuple(ids)
    stops = tuple(dict.fromkeys((*request.stop, *rendered.stops)))
    return Rendering(rendered.prompt, tokens, stops, rendered.origin, rendered.repairs, rendered.warnings)


def _completion(request: CompletionRequest, config: ModelConfig, backend: Backend | None, loaded: Loaded) -> Rendering:
    """A prompt of token ids, and one with a gap to fill in, is shown as its tokens read."""
    if backend is not None:
        prompt = completion_prompt(request, config, backend, loaded)
        text = prompt.text if prompt.own == slice(None) else None
        text = backend.detokenize(prompt.tokens) if text is None else text
        return Rendering(text, tuple(prompt.tokens), prompt.stops, prompt.origin or CLIENTS_OWN, warnings=prompt.warnings)
    if not isinstance(request.prompt, str) or request.suffix:
        field = "suffix" if isinstance(request.prompt, str) else "prompt"
        raise UnsupportedField(f"{field}: only the model's vocabulary could tell the prompt, and it is not here", field=field)
    rendered = render_completion(request, config, loaded)
    if rendered is None:
        return Rendering(request.prompt, None, tuple(dict.fromkeys(request.stop)), CLIENTS_OWN)
    return Rendering(rendered.prompt, None, rendered.stops, rendered.origin, rendered.repairs, rendered.warnings)


def _unknown(request: ChatRequest | CompletionRequest, config: ModelConfig, loaded: Loaded) -> str:
    """What nobody knows without the weights."""
    lacking = "there are no tokens without the vocabulary, which comes with the weights"
    tools = isinstance(request, ChatRequest) and bool(request.tools)
    texts = "".join(pick_format(config, loaded, tools=tools).texts.values())
    for name in ("bos_token", "eos_token"):
        if name in texts and getattr(config.template, name) is None:
            return f"{lacking}; the template's {name} is empty, as that comes with them as well: set template.{name}"
    return lacking
