"""Keys of LocalAI's model files that are passed over: a file that has them loads all the same, and is told of each."""

from __future__ import annotations

import re
from collections.abc import Mapping

_TOP = "write it at the top level"

MISPLACED: Mapping[str, str] = {
    "parameters.context_size": _TOP,
    "parameters.mmap": _TOP,
    "parameters.f16": _TOP,
    "parameters.threads": _TOP,
    "function.grammar.function_arguments_key": "write it under function",
}
"""What LocalAI's gallery writes where LocalAI does not look, and so drops in silence -> what to do."""

FOREIGN: Mapping[str, str] = {
    "parameters.voice": "it chooses a voice, and no backend here speaks",
    "function.return_name_in_function_response": "LocalAI has dropped it: a tool's result is known by its tool_call_id",
    "function.grammar.triggers[].at_start": "LocalAI has dropped it: a trigger acts wherever its word comes",
    "agent": "agents are the client's",
    "compression": "conversations are not compressed",
    "cuda": "a GPU that is there is found; gpu_layers says how much of the model it holds",
    "debug": "how much is logged is the server's: log_level",
    "diffusers": "it makes images, which no backend here does",
    "env": "a worker has the environment of the server",
    "failover": "a request is answered by the model that it names, or not at all",
    "mcp": "tool servers are the client's",
    "mitm": "nothing is intercepted",
    "overrides": "the metadata of weights is used as it is",
    "pii": "texts are not filtered",
    "pii_detection": "texts are not filtered",
    "pipeline": "it joins speech models, which no backend here serves",
    "router": "models are chosen by name",
    "tts": "it makes speech, which no backend here does",
}
"""Of LocalAI's model files (core/config/model_config.go, and what its gallery still has of older ones) -> why it has no
counterpart here."""


def told(key: str) -> tuple[str, str] | None:
    """What to say, and to advise, about an unknown key that is passed over; None = it is an error."""
    key = re.sub(r"\[\d+\]", "[]", key)
    if key in MISPLACED:
        return "ignored here, as LocalAI does", MISPLACED[key]
    return ("ignored: llmgallery has no counterpart", FOREIGN[key]) if key in FOREIGN else None
