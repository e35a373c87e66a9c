"""transformers: models with random weights, beside transformers' own generate() and forward passes."""

from __future__ import annotations

import gc
import io
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import tiny_transformers
import torch
from conformance_cases import Bad, Case, Greedy, Model, Scored
from conformance_folders import spoilt_folders
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
)

from llmgallery.backends.base import Files

CONTEXT = 256


class TransformersCase(Case):
    told = 0.9

    def model(self, capability: str, folder: Path) -> Model:
        keys: dict[str, Any] = {"threads": 1}
        if capability in MAKERS:
            return Model(Files((_made(folder / capability, MAKERS[capability]),)), keys)
        keys |= {"parallel": 4, "context_size": CONTEXT}
        if capability == "images":
            return Model(Files((_made(folder / capability, tiny_transformers.make_vision),)), keys)
        if capability == "suffix":
            made = _made(folder / capability, lambda target: tiny_transformers.make_llama(target, fill_in=True))
            return Model(Files((made,)), keys)
        base = _made(folder / "generate", tiny_transformers.make_llama)
        if capability == "lora":
            adapter = _made(folder / "adapter", lambda target: tiny_transformers.make_adapter(target, base))
            return Model(Files((base,), (adapter,)), keys | {"lora_adapters": ["adapter"]})
        return Model(Files((base,)), keys)

    def greedy(self, model: Model, prompt: Sequence[int], count: int) -> Greedy:
        return _generated(_generating(model.files), count, input_ids=torch.tensor([list(prompt)]))

    def scores(self, model: Model, tokens: Sequence[int], top: int) -> list[Scored]:
        with torch.inference_mode():
            logits = _generating(model.files)(torch.tensor([list(tokens)])).logits[0, :-1]
        rows = torch.log_softmax(logits.double(), -1)
        return [_scored(row, token, top) for row, token in zip(rows, tokens[1:], strict=True)]

    def embed(self, model: Model, texts: Sequence[str]) -> np.ndarray:
        """Each text alone, so that nothing is padded: the mean of its tokens."""
        library, tokenizer = _loaded(AutoModel, model.files.weights[0])
        with torch.inference_mode():
            rows = [library(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1).numpy()

    def rerank(self, model: Model, query: str, documents: Sequence[str]) -> list[float]:
        """As sentence-transformers' CrossEncoder has it: one label's logit becomes a probability."""
        library, tokenizer = _loaded(AutoModelForSequenceClassification, model.files.weights[0])
        with torch.inference_mode():
            rows = [library(**tokenizer(query, document, return_tensors="pt")).logits for document in documents]
        return [torch.sigmoid(row).item() for row in rows]

    def see(self, model: Model, text: str, image: bytes, count: int) -> Greedy:
        from PIL import Image

        folder = model.files.weights[0]
        library, _ = _loaded(AutoModelForImageTextToText, folder)
        processor = AutoProcessor.from_pretrained(folder)
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        prompt = processor.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
        prompt = prompt.removeprefix(tiny_transformers.BOS)  # the tokenizer puts it there
        inputs = processor(images=Image.open(io.BytesIO(image)), text=prompt, return_tensors="pt")
        return _generated(library, count, **inputs)

    def tokenizer(self, model: Model) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(AutoTokenizer.from_pretrained(model.files.weights[0]))

    def bad(self, folder: Path) -> list[Bad]:
        return spoilt_folders(self.model("generate", folder).files.weights[0], folder)

    def held(self) -> int:
        """Of all tensors that anything refers to."""
        with warnings.catch_warnings(action="ignore"):
            tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
            storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        return sum(storages.values())


def _generating(files: Files) -> Any:
    model, _ = _loaded(AutoModelForCausalLM, files.weights[0])
    return _adapted(files) if files.adapters else model


@lru_cache(1)
def _adapted(files: Files) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft asks transformers by an older name
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(files.weights[0]), files.adapters[0]).eval()


@lru_cache(4)
def _loaded(kind: Any, folder: Path) -> tuple[Any, Any]:
    return kind.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def _generated(library: Any, count: int, **inputs: Any) -> Greedy:
    length = inputs["input_ids"].shape[1]
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    with torch.inference_mode():
        (said,) = library.generate(**inputs, max_new_tokens=count, do_sample=False)[:, length:].tolist()
    ends = library.generation_config.eos_token_id
    ended = said[-1] in (ends if isinstance(ends, list) else [ends])
    return Greedy(tuple(said[:-1] if ended else said), ended)


def _scored(row: torch.Tensor, token: int, top: int) -> Scored:
    best = torch.topk(row, top)
    return Scored(float(row[token]), tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


def _made(folder: Path, make: Callable[[Path], Path]) -> Path:
    return folder if folder.exists() else make(folder)


MAKERS: dict[str, Callable[[Path], Path]] = {
    "embed": tiny_transformers.make_bert,
    "rerank": tiny_transformers.make_reranker,
}

CASE = TransformersCase("transformers")
