"""Every message between server and worker. Parent to child: Command; child to parent: Report. A change raises PROTOCOL."""

from __future__ import annotations

import msgspec

from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import ErrorInfo
from llmgallery.core.events import Event
from llmgallery.core.rendering import Rendering
from llmgallery.core.requests import ChatRequest, CompletionRequest, EmbedRequest, RerankRequest

PROTOCOL = 4
MAX_FRAME = 64 * 1024 * 1024


class Frame(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """One message; its type's name is its tag."""


class Load(Frame, frozen=True):
    """Load this model from these files (first = the weights, or their first part), with these LoRA adapters and the files of
    this draft model. Answered by Loading..., Ready or Fatal. `render`: only what prompts need, the vocabulary and templates that
    are in the files; without a `backend` not even these. Such a worker takes Tokenize, Detokenize and Render.
    `spec`: "module:NAME" of the backend's, for a worker whose interpreter does not have our entry points."""

    config: ModelConfig
    backend: str
    files: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    draft: tuple[str, ...] = ()
    render: bool = False
    spec: str = ""


class Configure(Frame, frozen=True):
    """From now on `digest` means this configuration. Sent once per worker, before its first Submit."""

    digest: str
    config: ModelConfig


class Submit(Frame, frozen=True):
    """Answer this. Answered by Accepted or Rejected; after Accepted by Events up to one Done.
    `coalesce`: text may come in pieces of 250 ms (nobody streams it)."""

    id: int
    digest: str
    request: ChatRequest | CompletionRequest
    coalesce: bool = False


class Embed(Frame, frozen=True):
    """Vectors for these inputs; answered by Accepted once the backend is given it, and by one Vectors, which may carry an
    error. `digest`: as in Submit."""

    id: int
    request: EmbedRequest
    digest: str = ""


class Rerank(Frame, frozen=True):
    """Scores for these documents; answered as an Embed, with vectors of one number."""

    id: int
    request: RerankRequest
    digest: str = ""


class Cancel(Frame, frozen=True):
    """End it: its Done comes with reason cancelled, unless another is on its way already; an Embed's or Rerank's Vectors comes
    with a Cancelled error."""

    id: int


class Tokenize(Frame, frozen=True):
    """Text to token ids; answered by Result."""

    id: int
    text: str
    special: bool = False
    bos: bool = False


class Detokenize(Frame, frozen=True):
    """Token ids to text; answered by Result."""

    id: int
    tokens: tuple[int, ...]


class Render(Frame, frozen=True):
    """The exact prompt of a request; answered by Result."""

    id: int
    digest: str
    request: ChatRequest | CompletionRequest


class Stop(Frame, frozen=True):
    """Finish nothing, free everything, exit 0."""


Command = Load | Configure | Submit | Embed | Rerank | Cancel | Tokenize | Detokenize | Render | Stop


class Hello(Frame, frozen=True):
    """First frame of a child."""

    protocol: int
    version: str
    pid: int


class Loading(Frame, frozen=True):
    """Progress of Load, 0 to 1."""

    fraction: float


class Ready(Frame, frozen=True):
    """Loaded. Sizes in tokens; `memory_bytes` as the backend counts it."""

    context_size: int
    slots: int
    capabilities: tuple[str, ...] = ()
    memory_bytes: int = 0
    vocab_size: int = 0


class Accepted(Frame, frozen=True):
    """The request is rendered, fits, and is queued. Of an Embed or Rerank the tokens are not counted yet.
    `warnings`: what is ignored of it, as the model's `on_unsupported` says. `headers`: what a remote endpoint said that the
    client should know (rate limits)."""

    id: int
    prompt_tokens: int = 0
    warnings: tuple[str, ...] = ()
    headers: dict[str, str] = {}


class Rejected(Frame, frozen=True):
    """The request will not be answered; nothing else comes for it."""

    id: int
    error: ErrorInfo


class Events(Frame, frozen=True):
    """What one engine step made, for all requests."""

    items: tuple[tuple[int, Event], ...]


class Result(Frame, frozen=True):
    """Answer to Tokenize (tokens), Detokenize (text) and Render (rendering), or their error."""

    id: int
    text: str = ""
    tokens: tuple[int, ...] = ()
    error: ErrorInfo | None = None
    rendering: Rendering | None = None


class Vectors(Frame, frozen=True):
    """Answer to Embed and Rerank: one vector for each input, little-endian float32."""

    id: int
    vectors: tuple[bytes, ...] = ()
    prompt_tokens: int = 0
    error: ErrorInfo | None = None


class Stats(Frame, frozen=True):
    """After steps: the step counter, sequences in the last decode, most sequences in one decode since the start,
    jobs waiting, tokens computed since the start; of these guesses, and of these again those that were met."""

    step: int
    sequences: int
    most_sequences: int
    waiting: int
    tokens: int
    guessed: int = 0
    met: int = 0


class Fatal(Frame, frozen=True):
    """The worker cannot go on and exits."""

    error: ErrorInfo


Report = Hello | Loading | Ready | Accepted | Rejected | Events | Result | Vectors | Stats | Fatal
