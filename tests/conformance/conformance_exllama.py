"""exllamav2: a model with random weights in half precision, beside ExLlamaV2's own forward passes. Needs a CUDA GPU, and
transformers to make the model with, or `--conformance-model` with one that has a chat template."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from conformance_cases import Bad, Case, Greedy, Model, Scored

from llmgallery.backends.base import Files

CONTEXT = 256


class ExllamaCase(Case):
    tolerance = 5e-2
    told = 0.5

    def model(self, capability: str, folder: Path) -> Model:
        import tiny_transformers

        keys: dict[str, Any] = {"parallel": 4, "context_size": CONTEXT}
        base = _made(folder / "generate", lambda target: tiny_transformers.make_llama(target, dtype=torch.float16))
        if capability == "lora":
            adapter = _made(folder / "adapter", lambda target: tiny_transformers.make_adapter(target, base))
            return Model(Files((base,), (adapter,)), keys | {"lora_adapters": ["adapter"]})
        return Model(Files((base,)), keys)

    def greedy(self, model: Model, prompt: Sequence[int], count: int) -> Greedy:
        said: list[int] = []
        ends = _ends(model.files.weights[0])
        for _ in range(count):
            token = int(_logits(model.files, [*prompt, *said])[-1].argmax())
            if token in ends:
                return Greedy(tuple(said), ended=True)
            said.append(token)
        return Greedy(tuple(said), ended=False)

    def scores(self, model: Model, tokens: Sequence[int], top: int) -> list[Scored]:
        rows = torch.log_softmax(_logits(model.files, tokens)[:-1].double(), -1)
        best = [torch.topk(row, top) for row in rows]
        likeliest = [tuple(zip(each.indices.tolist(), each.values.tolist(), strict=True)) for each in best]
        return [Scored(float(row[token]), found) for row, token, found in zip(rows, tokens[1:], likeliest, strict=True)]

    def tokenizer(self, model: Model) -> Any:
        from llguidance.hf import from_tokenizer
        from transformers import AutoTokenizer

        return from_tokenizer(AutoTokenizer.from_pretrained(model.files.weights[0]))

    def bad(self, folder: Path) -> list[Bad]:
        from conformance_folders import spoilt_folders

        return spoilt_folders(self.model("generate", folder).files.weights[0], folder)

    def device(self) -> str:
        return str(torch.cuda.get_device_name())

    def held(self) -> int:
        gc.collect()
        return int(torch.cuda.memory_allocated())


@lru_cache(1)
def _library(files: Files) -> tuple[Any, list[Any]]:
    from exllamav2 import ExLlamaV2, ExLlamaV2Config, ExLlamaV2Lora

    config = ExLlamaV2Config(str(files.weights[0]))
    config.arch_compat_overrides()
    config.max_seq_len = CONTEXT
    model = ExLlamaV2(config)
    model.load()
    return model, [ExLlamaV2Lora.from_directory(model, str(adapter)) for adapter in files.adapters]


def _logits(files: Files, tokens: Sequence[int]) -> torch.Tensor:
    """Of all places, in main memory, as many as the vocabulary has tokens."""
    model, adapters = _library(files)
    with torch.inference_mode():
        found = model.forward(torch.tensor([list(tokens)], dtype=torch.long), loras=adapters or None)
    rows: torch.Tensor = found[0, :, : model.config.vocab_size].float().cpu()
    return rows


def _ends(folder: Path) -> set[int]:
    from transformers import GenerationConfig

    told = GenerationConfig.from_pretrained(folder).eos_token_id
    return set(told) if isinstance(told, list) else {told}


def _made(folder: Path, make: Callable[[Path], Path]) -> Path:
    return folder if folder.exists() else make(folder)


CASE = ExllamaCase("exllamav2")
