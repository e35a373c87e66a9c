"""openai: a model behind any endpoint that speaks OpenAI's API takes the conversation as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from llmgallery.backends.base import CAPABILITIES, BackendSpec
from llmgallery.config.model import ModelConfig
from llmgallery.config.outside import OptionNote

Seconds = Annotated[float, Meta(gt=0, le=86400)]


class OpenAIOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the model is and how it is asked. In `base_url`, `headers`, `api_key`, `organization` and `project` `${NAME}` is the
    server's environment variable of that name."""

    base_url: Annotated[
        str | None, Meta(description="the endpoint up to /v1; else OPENAI_BASE_URL, else https://api.openai.com/v1")
    ] = None
    upstream_model: Annotated[
        str | None, Meta(description="what the endpoint calls the model; else parameters.model, else the model's name here")
    ] = None
    api_key_env: Annotated[
        str | None,
        Meta(
            description="environment variable that holds the key; else OPENAI_API_KEY, which no other endpoint gets "
            "than OpenAI's and that of OPENAI_BASE_URL"
        ),
    ] = None
    api_key_file: Annotated[str | None, Meta(description="file beside this YAML that holds the key, read at each request")] = None
    api_key: Annotated[str | None, Meta(description="the key itself; better kept out of files, in api_key_env or ${NAME}")] = None
    headers: Annotated[dict[str, str], Meta(description="further headers of each request")] = {}
    organization: Annotated[str | None, Meta(description="the header OpenAI-Organization")] = None
    project: Annotated[str | None, Meta(description="the header OpenAI-Project")] = None
    connect_timeout: Annotated[Seconds, Meta(description="seconds until a connection must be there")] = 10
    first_byte_timeout: Annotated[Seconds, Meta(description="seconds from then until an answer must begin")] = 600
    idle_timeout: Annotated[Seconds, Meta(description="most seconds of silence once it has begun")] = 300
    connect_retries: Annotated[
        Annotated[int, Meta(ge=0, le=10)],
        Meta(description="how often a connection that fails is tried again; what was sent is never sent again"),
    ] = 2
    stream_usage: Annotated[bool, Meta(description="ask for token counts at the end of streams (stream_options)")] = True
    max_tokens_field: Annotated[
        Literal["max_tokens", "max_completion_tokens"] | None,
        Meta(description="name of a chat's length limit that the YAML sets; else OpenAI's endpoint gets max_completion_tokens"),
    ] = None
    verify: Annotated[bool, Meta(description="check the endpoint's certificate")] = True
    ca_bundle: Annotated[
        str | None, Meta(description="file beside this YAML of the certificates to trust in place of the usual ones")
    ] = None


KEYS = ("api_key", "api_key_env", "api_key_file")
SECRET_HEADERS = ("authorization", "proxy-authorization", "api-key", "x-api-key")
PLAIN_SECRET = "a secret stands here, where everybody reads it who may read this file"
ADVICE = "write ${NAME}, and set the environment variable NAME where the server is started"


def url_fault(url: str) -> str:
    """Why requests cannot go there; "" when they can."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "expected an address such as https://host/v1"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "expected an address that begins with http:// or https://, such as https://host/v1"
    return "expected an address without #" if parts.fragment else ""


def judge(config: ModelConfig) -> Iterator[OptionNote]:
    """An address that is none, several keys for one endpoint; warns of secrets in the file."""
    options = config.options if isinstance(config.options, Mapping) else {}
    url = options.get("base_url")
    if url is not None and "${" not in url and (fault := url_fault(url)):
        yield OptionNote("options.base_url", fault)
    given = [name for name in KEYS if options.get(name)]
    if len(given) > 1:
        yield OptionNote(f"options.{given[1]}", f"{given[0]} says already which key the endpoint gets", "keep one of them")
    if "${" not in (options.get("api_key") or "${"):
        yield OptionNote("options.api_key", PLAIN_SECRET, ADVICE, warning=True)
    for name, value in (options.get("headers") or {}).items():
        if name.lower() in SECRET_HEADERS and "${" not in value:
            yield OptionNote("options.headers", f"{name}: {PLAIN_SECRET}", ADVICE, warning=True)


SPEC = BackendSpec(
    name="openai",
    implementation="llmgallery.backends.openai.backend:OpenAIBackend",
    level="chat",
    options=OpenAIOptions,
    capabilities=frozenset(CAPABILITIES) - {"constraints", "lora"},
    keys=frozenset({"options", "embeddings", "reranking"}),
    requires=("httpx",),
    shared=True,
    needs_weights=False,
    unset={"embeddings": "as the endpoint has it", "reranking": "as the endpoint has it"},
    beside=frozenset({"api_key_file", "ca_bundle"}),
    judge=judge,
)
