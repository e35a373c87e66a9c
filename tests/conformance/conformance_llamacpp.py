"""llama-cpp: the bundled model in F32 and models with random weights, beside llama-cpp-python's own Llama."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf_files
import llama_cpp
import numpy as np
from conformance_cases import Bad, Case, Greedy, Model, Scored
from generated_models import POCKET, scorer
from llama_cpp import Llama

from llmgallery.backends.base import Files

CONTEXT = 256
RANK = 4
CHANGED = {"blk.0.attn_q.weight": (192, 192), "blk.2.ffn_down.weight": (192, 448)}


class LlamaCase(Case):
    tolerance = 5e-3
    vector_tolerance = 5e-3

    def model(self, capability: str, folder: Path) -> Model:
        keys: dict[str, Any] = {"threads": 1, "parallel": 4, "context_size": CONTEXT}
        if capability == "suffix":
            return Model(Files((_filling(folder),)), keys)
        if capability in ("embed", "rerank"):
            kind = {"embed": {"embeddings": True, "options": {"pooling": "mean"}}, "rerank": {}}[capability]
            return Model(Files((_made(folder / "tiny-bert.gguf", lambda file: scorer(file.parent)),)), {"threads": 1, **kind})
        base = _made(folder / "pocket-f32.gguf", lambda file: gguf_files.rewrite(POCKET, file))
        adapters = (_made(folder / "adapter.gguf", _adapter),) if capability == "lora" else ()
        return Model(Files((base,), adapters), keys | ({"lora_adapters": ["adapter.gguf"]} if adapters else {}))

    def greedy(self, model: Model, prompt: Sequence[int], count: int) -> Greedy:
        library = _library(model.files)
        said: list[int] = []
        for token in library.generate(list(prompt), temp=0.0, repeat_penalty=1.0):
            if llama_cpp.llama_vocab_is_eog(library._model.vocab, token):
                return Greedy(tuple(said), ended=True)
            said.append(int(token))
            if len(said) == count:
                break
        return Greedy(tuple(said), ended=False)

    def scores(self, model: Model, tokens: Sequence[int], top: int) -> list[Scored]:
        library = _library(model.files)
        library.reset()
        library.eval(list(tokens))
        rows = np.array(library.scores[: len(tokens) - 1], np.float64)
        rows = Llama.logits_to_logprobs(rows)
        return [_scored(row, token, top) for row, token in zip(rows, tokens[1:], strict=True)]

    def embed(self, model: Model, texts: Sequence[str]) -> np.ndarray:
        library = _pooling(model.files, llama_cpp.LLAMA_POOLING_TYPE_MEAN)
        return np.array([library.embed(text, normalize=True) for text in texts])

    def rerank(self, model: Model, query: str, documents: Sequence[str]) -> list[float]:
        library = _pooling(model.files, llama_cpp.LLAMA_POOLING_TYPE_RANK)
        return [float(np.ravel(library.embed(f"{query}[SEP]{document}"))[0]) for document in documents]

    def tokenizer(self, model: Model) -> Any:
        from llguidance.llamacpp import lltokenizer_from_vocab

        library = _library(model.files)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # llguidance asks by older names
            return lltokenizer_from_vocab(library._model.vocab, eos_token=library.token_eos())

    def bad(self, folder: Path) -> list[Bad]:
        whole = self.model("generate", folder).files.weights[0].read_bytes()
        files = {"cut-short.gguf": whole[: len(whole) // 2], "garbage.gguf": b"no weights at all" * 400, "empty.gguf": b""}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        (folder / "folder.gguf").mkdir(exist_ok=True)
        names = (*files, "folder.gguf", "missing.gguf")
        return [Bad(name.partition(".")[0], Files((folder / name,)), name) for name in names]


class _Pairs(Llama):
    """Reads the marks between query and document as such."""

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        return super().tokenize(text, add_bos, special=True)


@lru_cache(2)
def _library(files: Files) -> Llama:
    adapter = str(files.adapters[0]) if files.adapters else None
    return Llama(str(files.weights[0]), n_ctx=CONTEXT, n_threads=1, logits_all=True, verbose=False, lora_path=adapter)


@lru_cache(2)
def _pooling(files: Files, kind: int) -> Llama:
    return _Pairs(str(files.weights[0]), embedding=True, pooling_type=kind, n_ctx=96, n_threads=1, verbose=False)


def _scored(row: np.ndarray, token: int, top: int) -> Scored:
    best = np.argsort(-row, kind="stable")[:top]
    return Scored(float(row[token]), tuple((int(other), float(row[other])) for other in best))


def _made(file: Path, make: Any) -> Path:
    if not file.exists():
        make(file)
    return file


def _adapter(file: Path) -> Path:
    random = np.random.default_rng(7)
    pairs = {
        name: (random.normal(0, 0.4, (RANK, columns)), random.normal(0, 0.4, (rows, RANK)))
        for name, (rows, columns) in CHANGED.items()
    }
    return gguf_files.lora(file, pairs, alpha=8.0)


def _filling(folder: Path) -> Path:
    import tiny_models

    return _made(folder / "filling.gguf", lambda file: tiny_models.filling(file.parent))


CASE = LlamaCase("llama-cpp")
