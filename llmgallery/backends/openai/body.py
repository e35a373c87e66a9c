"""From core requests to OpenAI's JSON. Pure functions. What a dialect left in `extra`, under OpenAI's names, goes as it came."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import UnsupportedField
from llmgallery.core.messages import ImagePart, Message, RawPart, RefusalPart, TextPart, Tool, ToolCall, say
from llmgallery.core.requests import ChatRequest, CompletionRequest, EmbedRequest, Request, RerankRequest
from llmgallery.core.sampling import Sampling

Body = dict[str, Any]
LimitName = Literal["max_tokens", "max_completion_tokens"]

_NOT_AS_THEY_ARE = ("seed", "max_tokens", "logit_bias", "extra")
_OURS = ("n", "best_of", "stream")
"""Each answer is asked for alone."""
_KINDS = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"BM": "bmp"}


def answer_body(
    request: Request, config: ModelConfig, model: str, *, streamed: bool, usage: bool = True, limit: LimitName = "max_tokens"
) -> Body:
    """Of POST /chat/completions or /completions. `usage`: token counts are wanted at the end of a stream; `limit`: what a chat's
    length limit is called where the client did not say."""
    if isinstance(request, ChatRequest):
        own = {**_chat(request, config, limit), **_common(request)}
        fixed: Body = {"model": model, "messages": [_message(each) for each in _messages(request, config)]}
    else:
        own = {**_completion(request), **_common(request)}
        fixed = {"model": model, "prompt": request.prompt}
    extra = {name: value for name, value in _said(request.extra).items() if name not in _OURS}
    body = {**fixed, **own, **extra, **fixed}
    if streamed:
        body["stream"] = True
        if usage:
            body["stream_options"] = {**_mapping(extra.get("stream_options")), "include_usage": True}
    else:
        body.pop("stream_options", None)
    return body


def embed_body(request: EmbedRequest, config: ModelConfig, model: str) -> Body:
    """Of POST /embeddings. Raises UnsupportedField for what only the endpoint could do, and was not told in its own words."""
    _check_truncate(request, config)
    body: Body = {"model": model, "input": list(request.inputs), "encoding_format": "base64"}
    if request.dimensions is not None:
        body["dimensions"] = request.dimensions
    return {**_said(request.extra), **body}


def rerank_body(request: RerankRequest, config: ModelConfig, model: str) -> Body:
    """Of POST /rerank, in Jina's form. Raises UnsupportedField as embed_body."""
    _check_truncate(request, config)
    body: Body = {"model": model, "query": request.query, "documents": list(request.documents), "return_documents": False}
    return {**_said(request.extra), **body}


def _check_truncate(request: EmbedRequest | RerankRequest, config: ModelConfig) -> None:
    if request.truncate and "truncate" not in request.extra and config.on_unsupported.demands == "error":
        raise UnsupportedField(
            "truncate: this model is elsewhere, and its endpoint decides what becomes of inputs that are too long; leave it out, "
            "or set `on_unsupported: {demands: warn}` in the model's YAML to have it ignored",
            field="truncate",
        )


def _said(extra: Mapping[str, Any]) -> Body:
    return {name: value for name, value in extra.items() if value is not None}


def _common(request: Request) -> Body:
    body = sampling_body(request.sampling)
    if request.stop:
        body["stop"] = list(request.stop)
    return body


def sampling_body(sampling: Sampling) -> Body:
    """Whatever was asked for, under the names that OpenAI, llama-server and vLLM know; but for the length limit."""
    named = {name: getattr(sampling, name) for name in sampling.__struct_fields__ if name not in _NOT_AS_THEY_ARE}
    body = {name: value for name, value in named.items() if value is not None}
    if sampling.seed is not None and sampling.seed != -1:
        body["seed"] = sampling.seed
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): value for token, value in sampling.logit_bias.items()}
    return {**body, **sampling.extra}


def _limit(sampling: Sampling) -> int | None:
    return sampling.max_tokens if sampling.max_tokens is not None and sampling.max_tokens >= 0 else None


def _chat(request: ChatRequest, config: ModelConfig, limit: LimitName) -> Body:
    body: Body = {}
    if (most := _limit(request.sampling)) is not None and not {"max_tokens", "max_completion_tokens"} & request.extra.keys():
        body[limit] = most
    if request.logprobs is not None:
        body |= {"logprobs": True, **({"top_logprobs": request.logprobs} if request.logprobs else {})}
    if effort := request.reasoning_effort or config.reasoning_effort:
        body["reasoning_effort"] = effort
    if request.metadata:
        body["metadata"] = request.metadata
    if request.adapter is not None:
        body["adapter"] = request.adapter
    return {**body, **_offer(request), **_template(request, config)}


def _offer(request: ChatRequest) -> Body:
    """The functions that may be called; those of the older form come in `extra`."""
    if "functions" in request.extra or not (request.tools or "tools" in request.extra):
        return {}
    body: Body = {"tools": [_tool(tool) for tool in request.tools]}
    if request.forced_tool is not None:
        body["tool_choice"] = {"type": "function", "function": {"name": request.forced_tool}}
    elif request.tool_choice != "auto":
        body["tool_choice"] = request.tool_choice
    return body if request.parallel_tool_calls else {**body, "parallel_tool_calls": False}


def _tool(tool: Tool) -> Body:
    optional = {"description": tool.description or None, "parameters": tool.parameters, "strict": tool.strict}
    function = {"name": tool.name, **{name: value for name, value in optional.items() if value is not None}}
    return {"type": "function", "function": function}


def _template(request: ChatRequest, config: ModelConfig) -> Body:
    """What vLLM and llama-server give to the template at their side."""
    variables = {**config.chat_template_kwargs, **request.template_vars}
    body: Body = {"documents": variables.pop("documents")} if "documents" in variables else {}
    if variables:
        body["chat_template_kwargs"] = variables
    if request.continue_final:
        return {**body, "continue_final_message": True, "add_generation_prompt": False}
    return body if request.add_generation_prompt else {**body, "add_generation_prompt": False}


def _completion(request: CompletionRequest) -> Body:
    if request.instruction is not None:
        message = "instruction: the endpoint of this model knows no edits; send a chat with the instruction in it"
        raise UnsupportedField(message, field="instruction")
    fields = {
        "max_tokens": _limit(request.sampling),
        "suffix": request.suffix,
        "echo": request.echo or None,
        "logprobs": request.logprobs,
    }
    return {name: value for name, value in fields.items() if value is not None}


# --- messages ----------------------------------------------------------------------------------------------------------------


def _messages(request: ChatRequest, config: ModelConfig) -> Iterator[Message]:
    """With the YAML's system prompt before chats that bring none."""
    if config.system_prompt and not any(message.role in ("system", "developer") for message in request.messages):
        yield say("system", config.system_prompt)
    yield from request.messages


def _message(message: Message) -> Body:
    body: Body = {"role": message.role, "content": _content(message)}
    refusals = [part.text for part in message.parts if isinstance(part, RefusalPart)]
    calls = [_call(call) for call in message.tool_calls if call.id]
    older = [_function(call) for call in message.tool_calls if not call.id]
    optional = {
        "name": message.name,
        "refusal": "".join(refusals) if refusals else None,
        "tool_calls": calls or None,
        "function_call": older[0] if older else None,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning,
    }
    return {**body, **{name: value for name, value in optional.items() if value is not None}, **message.extra}


def _call(call: ToolCall) -> Body:
    return {"id": call.id, "type": "function", "function": _function(call)}


def _function(call: ToolCall) -> Body:
    return {"name": call.name, "arguments": call.arguments}


def _content(message: Message) -> str | list[Body] | None:
    """Text alone as text, which endpoints understand that know no parts."""
    parts = [part for part in message.parts if not isinstance(part, RefusalPart)]
    if not parts:
        return None
    if len(parts) == 1 and isinstance(parts[0], TextPart):
        return parts[0].text
    return [_part(part) for part in parts]


def _part(part: TextPart | ImagePart | RawPart) -> Body:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    if isinstance(part, RawPart):
        return part.value
    detail = {} if part.detail in ("", "auto") else {"detail": part.detail}
    return {"type": "image_url", "image_url": {"url": part.url or data_uri(part.data), **detail}}


def data_uri(data: bytes) -> str:
    """An image file in an address of its own."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = "webp"
    else:
        kind = next((kind for magic, kind in _KINDS.items() if data.startswith(magic)), "png")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
