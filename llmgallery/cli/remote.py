"""A chat with a server over HTTP: what `run` uses when LLMGALLERY_URL names one that answers."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import msgspec

from llmgallery.core.errors import GalleryError, ModelNotFound
from llmgallery.core.events import Done, Progress, TextDelta, Usage
from llmgallery.core.requests import ChatRequest

PROBE_SECONDS = 2.0
PERCENT = re.compile(r"(queued|planning|downloading|loading)(?:\D*(\d+(?:\.\d+)?) ?%)?")


class Remote:
    """A server at `url` (with or without /v1). Used as `async with`."""

    def __init__(self, url: str, key: str | None = None) -> None:
        base = url.rstrip("/").removesuffix("/v1")
        self.url = base
        # A proxy of the environment is not asked for an address of this machine.
        self._client = httpx.AsyncClient(
            base_url=base,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=PROBE_SECONDS * 5),
            trust_env=not is_loopback(base),
        )

    async def __aenter__(self) -> Remote:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.aclose()

    async def answers(self) -> bool:
        """Whether something there answers GET /healthz."""
        with contextlib.suppress(httpx.HTTPError, httpx.InvalidURL):
            return (await self._client.get("/healthz", timeout=PROBE_SECONDS)).is_success
        return False

    async def get(self, path: str) -> Any:
        """The JSON body of a GET. Raises GalleryError."""
        with self._mapped():
            response = await self._client.get(path)
            if not response.is_success:
                raise _failure(response)
            return response.json()

    async def post(self, path: str, body: Any = None) -> Any:
        """The JSON body of the answer to a POST. Raises GalleryError."""
        with self._mapped():
            response = await self._client.post(path, json=body)
            if not response.is_success:
                raise _failure(response)
            return response.json()

    async def events(self, path: str) -> AsyncGenerator[Any, None]:
        """The data of each server-sent event of a GET, until the server ends it. Raises GalleryError."""
        with self._mapped():
            async with self._client.stream("GET", path) as response:
                if not response.is_success:
                    await response.aread()
                    raise _failure(response)
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        yield msgspec.json.decode(line.removeprefix("data:").strip())

    async def states(self) -> dict[str, str]:
        """State by model, of those that the server has loaded once: what its /metrics say. Raises GalleryError."""
        from prometheus_client.parser import text_string_to_metric_families

        with self._mapped():
            response = await self._client.get("/metrics")
            if not response.is_success:
                raise _failure(response)
        families = {family.name: family for family in text_string_to_metric_families(response.text)}
        samples = families["llmgallery_model_state"].samples if "llmgallery_model_state" in families else []
        return {sample.labels["model"]: sample.labels["state"] for sample in samples if sample.value}

    async def check(self, model: str) -> None:
        """Before the first question: that `model` can be asked, or would be installed. Raises GalleryError."""
        try:
            await self.get(f"/v1/models/{quote(model)}")
        except ModelNotFound:
            if "/" not in model and not await self._offers(model.rpartition("@")[2].partition(":")[0]):
                raise  # else the first question tells whether it may be had

    async def _offers(self, name: str) -> bool:
        """A gallery has an entry of this name."""
        try:
            offers = await self.get(f"/models/available?term={quote(name)}")
        except GalleryError:
            return False  # a server without galleries
        return any(name.lower() in (offer["name"].lower(), *map(str.lower, offer["aliases"])) for offer in offers)

    async def ask(self, model: str, request: ChatRequest) -> AsyncIterator[Progress | TextDelta | Done | None]:
        """The answer as it comes. First progress while the model is on its way, and None when it is there; Done last. Raises
        GalleryError."""
        with self._mapped():
            async with self._client.stream("POST", "/v1/chat/completions", json=_body(model, request)) as response:
                if not response.is_success:
                    await response.aread()
                    raise _failure(response)
                async for event in read_events(response.aiter_lines()):
                    yield event

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as exc:
            raise GalleryError(f"the server at {self.url} does not answer: {exc or type(exc).__name__}") from exc
        except msgspec.DecodeError as exc:
            raise GalleryError(f"{self.url} does not answer as an OpenAI-compatible server: {exc}") from exc


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine."""
    host = urlsplit(url).hostname or ""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _body(model: str, request: ChatRequest) -> dict[str, Any]:
    asked: dict[str, Any] = {key: value for key, value in msgspec.to_builtins(request.sampling).items() if key != "extra"}
    messages = [{"role": message.role, "content": message.text} for message in request.messages]
    stop = {"stop": list(request.stop)} if request.stop else {}
    return {"model": model, "messages": messages, "stream": True, "stream_options": {"include_usage": True}, **stop, **asked}


def _failure(response: httpx.Response) -> GalleryError:
    if response.status_code == httpx.codes.UNAUTHORIZED:
        sent = "does not take this API key" if "authorization" in response.request.headers else "asks for an API key"
        return GalleryError(f"the server at {_origin(response.url)} {sent}: set LLMGALLERY_API_KEY to one of its keys")
    try:
        return _error(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return GalleryError(f"{response.url} answered {response.status_code}: {response.text[:200]}")


def _origin(url: httpx.URL) -> str:
    return f"{url.scheme}://{url.netloc.decode()}"


def _error(body: Any) -> GalleryError:
    kind = ModelNotFound if body.get("code") == "model_not_found" else GalleryError
    return kind(str(body["message"]), hints=tuple(map(str, body.get("hints") or ())))


async def read_events(lines: AsyncIterator[str]) -> AsyncIterator[Progress | TextDelta | Done | None]:
    """What the lines of a chat's server-sent events say: None with the first chunk, Done last. Raises GalleryError."""
    usage, reason, begun = Usage(), None, False
    async for line in lines:
        if line.startswith(":"):
            if found := PERCENT.search(line):
                yield _progress(found)
            continue
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        chunk = msgspec.json.decode(data)
        if "error" in chunk:
            raise _error(chunk["error"])
        if not begun:
            begun = True
            yield None
        if counted := chunk.get("usage"):
            usage = Usage(counted["prompt_tokens"], counted["completion_tokens"])
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                yield TextDelta(text)
            reason = choice.get("finish_reason") or reason
    if reason is None:
        raise GalleryError("the answer broke off: the server closed the connection before it was complete")
    yield Done("length" if reason == "length" else "stop", usage)


def _progress(found: re.Match[str]) -> Progress:
    fraction = float(found[2]) / 100 if found[2] else None
    match found[1]:
        case "queued" | "planning" as phase:
            return Progress(phase)
        case "downloading":
            return Progress("downloading", fraction)
        case _:
            return Progress("loading", fraction)
