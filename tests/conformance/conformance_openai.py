"""openai: this server in a process of its own is the endpoint; what it answers over HTTP is what the backend must tell."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf_files
from conformance_cases import Case, Greedy, Model, Scored
from generated_models import POCKET, scorer

POCKET_KEYS = {"backend": "llama-cpp", "parallel": 4, "context_size": 256, "threads": 1}
CALL = '{"name": "look", "arguments": {"where": "here"}}'
MODELS: dict[str, dict[str, Any]] = {
    "pocket": {**POCKET_KEYS, "parameters": {"model": "pocket-f32.gguf"}},
    "endless": {**POCKET_KEYS, "parameters": {"model": "pocket-f32.gguf", "ignore_eos": True}, "parallel": 1},
    "echo": {"backend": "echo"},
    "slow": {"backend": "echo", "parallel": 1, "options": {"delay_ms": 20}},
    "gated": {"backend": "echo", "options": {}},
    "filling": {"backend": "echo", "options": {"fills_in": True}},
    "calling": {
        "backend": "echo",
        "options": {"reply": f"Well.\n<tool_call>{CALL}</tool_call>"},
        "template": {"function": "{{range .Functions}}{{.Name}} {{end}}{{.Input}}", "chat": "{{.Input}}"},
        "function": {"disable_no_action": True},
    },
    "vectors": {
        "backend": "llama-cpp",
        "parameters": {"model": "tiny-bert.gguf"},
        "embeddings": True,
        "threads": 1,
        "options": {"pooling": "mean"},
    },
    "scores": {"backend": "llama-cpp", "parameters": {"model": "tiny-bert.gguf"}, "threads": 1},
}
"""What the endpoint serves."""


class OpenAICase(Case):
    def model(self, capability: str, folder: Path) -> Model:
        return Model()

    def greedy(self, model: Model, prompt: Sequence[int], count: int) -> Greedy:
        raise NotImplementedError("the endpoint is asked in words")

    def scores(self, model: Model, tokens: Sequence[int], top: int) -> list[Scored]:
        raise NotImplementedError("the endpoint is asked in words")


def write_models(folder: Path) -> Path:
    """The endpoint's models folder. Its model `gated` answers once there is a file `gate` in it."""
    gguf_files.rewrite(POCKET, folder / "pocket-f32.gguf")
    scorer(folder)
    for name, keys in MODELS.items():
        body = {"name": name, **keys}
        if name == "gated":
            body["options"] = {**keys["options"], "gate": str(folder / "gate")}
        (folder / f"{name}.yaml").write_text(json.dumps(body))
    return folder


CASE = OpenAICase("openai")
