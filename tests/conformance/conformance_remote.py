"""A backend of level chat, driven as a worker drives it, with real servers behind it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from conformance_cases import Case
from loopback_endpoint import RemoteListener

from llmgallery.backends.base import Conversation, Files
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import GalleryError
from llmgallery.core.events import Done, Event, TextDelta, TokenLogprob, ToolCallDelta
from llmgallery.core.requests import EmbedRequest, Request, RerankRequest


@dataclass(frozen=True)
class Told:
    """All that came for one conversation."""

    events: tuple[Event, ...]

    @property
    def deltas(self) -> tuple[TextDelta, ...]:
        return tuple(event for event in self.events if isinstance(event, TextDelta))

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def logprobs(self) -> tuple[TokenLogprob, ...]:
        return tuple(entry for delta in self.deltas for entry in delta.logprobs)

    @property
    def calls(self) -> tuple[ToolCallDelta, ...]:
        return tuple(event for event in self.events if isinstance(event, ToolCallDelta))

    @property
    def done(self) -> Done:
        """The end, which came once and last."""
        ends = [event for event in self.events if isinstance(event, Done)]
        assert len(ends) == 1 and self.events[-1] is ends[0], self.events
        return ends[0]


class Remote:
    """A loaded backend, and the endpoint at `url`, which can be asked without it, too."""

    def __init__(self, case: Case, url: str, folder: Path) -> None:
        self.case, self.url, self.folder = case, url, folder
        self.heard = RemoteListener()
        self.backend = case.spec.load()()
        self.loaded = self.backend.load(ModelConfig(name="first"), Files(), self.heard)
        self.direct = httpx.Client(base_url=f"{url}/v1", timeout=60)
        self._ids = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.backend.close()
        self.direct.close()

    def config(self, model: str, **options: Any) -> ModelConfig:
        """Of a model that the endpoint calls `model`."""
        told = {"base_url": f"{self.url}/v1", "upstream_model": model, **options}
        return ModelConfig(name=f"far-{model}", backend=self.case.name, options=told)

    def begin(self, model: str, request: Request, *, streamed: bool = True, **options: Any) -> int:
        id = next(self._ids)
        self.backend.converse(Conversation(id, request, self.config(model, **options), streamed))
        return id

    def told(self, id: int) -> Told:
        """Waits for the end."""
        self.heard.wait_for_end(id)
        assert id not in self.heard.refusals, self.heard.refusals.get(id)
        return Told(tuple(self.heard.said(id)))

    def ask(self, model: str, request: Request, *, streamed: bool = True, **options: Any) -> Told:
        return self.told(self.begin(model, request, streamed=streamed, **options))

    def refusal(self, model: str, request: Request, **options: Any) -> GalleryError:
        id = self.begin(model, request, **options)
        self.heard.wait_for_end(id)
        return self.heard.refusals[id]

    def pool(self, model: str, request: EmbedRequest | RerankRequest) -> np.ndarray:
        """Vectors, or scores as vectors of one."""
        id = next(self._ids)
        ask = self.backend.embed if isinstance(request, EmbedRequest) else self.backend.rerank
        ask(id, request, self.config(model))
        self.heard.wait_for_end(id)
        result = self.heard.vectors[id]
        assert result.error is None, result.error
        return np.stack([np.frombuffer(vector, "<f4") for vector in result.vectors])

    def post(self, path: str, **body: Any) -> Any:
        """What the endpoint itself answers."""
        reply = self.direct.post(path, json=body)
        assert reply.is_success, reply.text
        return reply.json()

    def chat(self, model: str, text: str, **fields: Any) -> Any:
        """What the endpoint itself answers to a user who says this: the choice, with its usage."""
        reply = self.post("/chat/completions", model=model, messages=[{"role": "user", "content": text}], **fields)
        return {**reply["choices"][0], "usage": reply["usage"]}
