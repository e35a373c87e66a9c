"""What LocalAI hands to its Go templates: its own structs, with the names, types and JSON tags of its sources (core/templates,
core/schema, pkg/functions), for `{{toJson .Functions}}` writes tags and types out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmgallery.config.model import Function
from llmgallery.core.errors import InvalidField
from llmgallery.core.messages import Message, Tool, ToolCall
from llmgallery.core.requests import ChatRequest
from llmgallery.templates.gotmpl.values import Field, Struct, TypedDict, TypedList, TypedNil

NO_ACTION = "answer"
NO_ACTION_DESCRIPTION = "use this action to answer without performing any action"
FUNCTION_CALL_ROLE = "assistant_function_call"
"""The role of an assistant's turn that calls functions, where the YAML's `roles` has it."""

_NO_ACTION_PARAMETERS = {
    "properties": {"message": {"type": "string", "description": "The message to reply the user with"}},
}


def prompt_data(
    text: str,
    *,
    system_prompt: str = "",
    suppress_system_prompt: bool = False,
    instruction: str = "",
    functions: Sequence[Tool] = (),
    reasoning_effort: str = "",
    metadata: Mapping[str, str] | None = None,
) -> Struct:
    """PromptTemplateData, for the templates around a whole prompt."""
    return _plain(
        "templates.PromptTemplateData",
        SystemPrompt=system_prompt,
        SuppressSystemPrompt=suppress_system_prompt,
        Input=text,
        Instruction=instruction,
        Functions=_slice([_function(tool) for tool in functions], "functions.Function"),
        MessageIndex=0,
        ReasoningEffort=reasoning_effort,
        Metadata=TypedDict(metadata) if metadata else TypedNil("map[string]string"),
    )


def message_data(
    message: Message, index: int, *, text: str, role: str, renamed: str, system_prompt: str, last: bool, function: bool
) -> Struct:
    """ChatMessageTemplateData, for template.chat_message. `role`: as the request, or LocalAI, calls it; `renamed`: what the
    YAML's `roles` makes of it. `function`: a grammar will constrain the answer to this, the last message."""
    older, calls = called(message)
    return _plain(
        "templates.ChatMessageTemplateData",
        SystemPrompt=system_prompt,
        Role=renamed,
        RoleName=role,
        FunctionName=message.name or "",
        Content=text,
        MessageIndex=index,
        Function=function,
        FunctionCall=calls or older,
        LastMessage=last,
    )


def media_data(text: str, images: range) -> Struct:
    """What template.multimodal gets. `images`: those of this message, counted through the conversation."""
    kinds = {"Audio": range(0), "Images": images, "Video": range(0)}
    listed = {
        name: TypedList((_plain("templates.MultimodalContent", ID=id) for id in ids), "[]templates.MultimodalContent")
        for name, ids in kinds.items()
    }
    return _plain("struct { Audio, Images, Video []templates.MultimodalContent; Text string }", **listed, Text=text)


def called(message: Message) -> tuple[dict[str, Any] | None, TypedList | None]:
    """The calls in a message: OpenAI's older `function_call` (a call without an id), and its `tool_calls`."""
    older = [call for call in message.tool_calls if not call.id]
    calls = [_call(call) for call in message.tool_calls if call.id]
    first = {"name": older[0].name, "arguments": older[0].arguments} if older else None
    return first, TypedList(calls, "[]schema.ToolCall") if calls else None


def uses_functions(request: ChatRequest) -> bool:
    """Whether the answer may call one."""
    return bool(request.tools) and (request.tool_choice != "none" or request.forced_tool is not None)


def uses_grammar(request: ChatRequest, function: Function) -> bool:
    """Whether LocalAI constrains the answer to calls of the functions, which its templates are told."""
    strict = any(tool.strict for tool in request.tools)
    return uses_functions(request) and (strict or not function.grammar.disable)


def functions(request: ChatRequest, function: Function) -> list[Tool]:
    """The functions that templates are told of: with LocalAI's own, by which a constrained answer says that it calls none, and
    of all these only the one that must be called."""
    tools = list(request.tools)
    strict = any(tool.strict for tool in tools)
    if uses_grammar(request, function) and not function.disable_no_action and not strict:
        name = function.no_action_function_name or NO_ACTION
        tools.append(Tool(name, function.no_action_description_name or NO_ACTION_DESCRIPTION, _NO_ACTION_PARAMETERS))
    if request.forced_tool is None:
        return tools
    return [tool for tool in tools if tool.name == request.forced_tool][:1]


def _function(tool: Tool) -> Struct:
    try:
        parameters = TypedNil("map[string]interface {}") if tool.parameters is None else _json(tool.parameters)
    except RecursionError as exc:
        raise InvalidField(f"tools: the parameters of {tool.name} are nested too deeply", field="tools") from exc
    return Struct(
        "functions.Function",
        (
            Field("Name", tool.name, "name"),
            Field("Description", tool.description, "description"),
            Field("Strict", bool(tool.strict), "strict"),
            Field("Parameters", parameters, "parameters"),
        ),
    )


def _call(call: ToolCall) -> Struct:
    function = Struct(
        "schema.FunctionCall",
        (Field("Name", call.name, "name", omitempty=True), Field("Arguments", call.arguments, "arguments")),
    )
    fields = (
        Field("Index", call.index, "index"),
        Field("ID", call.id, "id"),
        Field("Type", "function", "type"),
        Field("FunctionCall", function, "function"),
    )
    return Struct("schema.ToolCall", fields)


def _json(value: Any) -> Any:
    """JSON as Go decodes it: every number is a float64."""
    if isinstance(value, dict):
        return {key: _json(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_json(inner) for inner in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _plain(type_name: str, **fields: Any) -> Struct:
    """A struct without JSON tags."""
    return Struct(type_name, tuple(Field(name, value, name) for name, value in fields.items()))


def _slice(items: list[Struct], item_type: str) -> TypedList | TypedNil:
    return TypedList(items, f"[]{item_type}") if items else TypedNil(f"[]{item_type}")
