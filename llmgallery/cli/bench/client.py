"""One streamed completion: what came when. Reads OpenAI's /v1/completions and nothing else, so it measures any such server."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec

from llmgallery.cli.remote import is_loopback
from llmgallery.core.errors import GalleryError

CONNECT_SECONDS = 10.0
BODY: Mapping[str, Any] = {
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.05,
    "repeat_penalty": 1.0,
    "ignore_eos": True,
}
"""llama.cpp's defaults, said aloud so that every server does the same work; and answers of full length."""


@dataclass(frozen=True)
class Target:
    """A server (`url` with or without /v1) and one of its models. `body`: what each request says beside prompt and length."""

    url: str
    model: str
    key: str | None = None
    body: Mapping[str, Any] = field(default_factory=lambda: BODY)

    @property
    def base(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True)
class Trace:
    """One answer. `sent` and `times` in seconds of one clock; `times`: when each piece of text arrived.

    Token counts are the server's own `usage`; of a server that tells none in its streams, `completion_tokens` counts the pieces
    and `prompt_tokens` is 0. `cached_tokens` None = the server does not say.
    """

    sent: float
    times: tuple[float, ...]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    finish: str | None = None


@dataclass
class Recording:
    """An answer while it comes: bytes with the time of their arrival. Parsing waits until nothing is measured any more."""

    sent: float = 0.0
    received: list[tuple[float, bytes]] = field(default_factory=list)

    def trace(self) -> Trace:
        """Of what has come so far. Raises GalleryError when the server sent an error."""
        times, pieces, usage, finish = [], 0, None, None
        for moment, chunk in events(self.received):
            if (error := chunk.get("error")) is not None:
                raise GalleryError(f"the server broke an answer off: {_message(error)}")
            usage = chunk.get("usage") or usage
            for choice in chunk.get("choices") or ():
                if choice.get("text"):
                    times.append(moment)
                    pieces += 1
                finish = choice.get("finish_reason") or finish
        counted = usage or {"prompt_tokens": 0, "completion_tokens": pieces}
        cached = (counted.get("prompt_tokens_details") or {}).get("cached_tokens")
        return Trace(self.sent, tuple(times), counted["prompt_tokens"], counted["completion_tokens"], cached, finish)


def events(received: list[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any]]]:
    """The JSON of each server-sent event, with the time at which its last byte came. Comments and [DONE] are left out."""
    rest = b""
    for moment, data in received:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            payload = line.removeprefix(b"data:").strip()
            if line.startswith(b"data:") and payload != b"[DONE]":
                yield moment, msgspec.json.decode(payload, type=dict[str, Any])


class Client:
    """Used as `async with`. Each request has a connection of its own: some servers close it after a stream."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._http = httpx.AsyncClient(
            base_url=target.base,
            headers={"Accept-Encoding": "identity", **({"Authorization": f"Bearer {target.key}"} if target.key else {})},
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=not is_loopback(target.base),
        )

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()

    async def count_tokens(self, prompt: str) -> int:
        """As the server counts them; one token is generated. Raises GalleryError."""
        with self._mapped():
            response = await self._http.post("/v1/completions", json=self._body(prompt, 1))
            _check(response)
            return int(response.json()["usage"]["prompt_tokens"])

    async def complete(self, prompt: str, max_tokens: int, recording: Recording | None = None) -> Trace:
        """The answer to its end; `recording` can be read meanwhile. Raises GalleryError."""
        recording = Recording() if recording is None else recording
        body = {**self._body(prompt, max_tokens), "stream": True, "stream_options": {"include_usage": True}}
        with self._mapped():
            recording.sent = time.perf_counter()
            async with self._http.stream("POST", "/v1/completions", json=body) as response:
                if not response.is_success:
                    await response.aread()
                    _check(response)
                async for data in _pieces(response):
                    recording.received.append((time.perf_counter(), data))
            trace = recording.trace()
        if trace.finish is None:
            raise GalleryError(f"{self.target.base} closed the connection before the answer was complete")
        if not trace.times:
            raise GalleryError(f"{self.target.base} sent an answer without text: there is nothing to measure")
        return trace

    def _body(self, prompt: str, max_tokens: int) -> dict[str, Any]:
        return {**self.target.body, "model": self.target.model, "prompt": prompt, "max_tokens": max_tokens}

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        base = self.target.base
        try:
            yield
        except httpx.HTTPError as exc:
            raise GalleryError(f"the server at {base} does not answer: {exc or type(exc).__name__}") from exc
        except (msgspec.DecodeError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise GalleryError(f"{base} does not answer as an OpenAI-compatible server: {type(exc).__name__}: {exc}") from exc


async def _pieces(response: httpx.Response) -> AsyncIterator[bytes]:
    async for data in response.aiter_raw():
        yield data


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        message = _message(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        message = response.text[:300]
    raise GalleryError(f"{response.url} answered {response.status_code}: {message}")


def _message(error: Any) -> str:
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
