"""LoRA adapters of a model: loaded with it, at work in each of its contexts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from llmgallery.backends.llamacpp import api
from llmgallery.backends.llamacpp.log import ERROR, LOG
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, LoadError

KEY = "lora_adapters"


class Adapters:
    """Loaded before the model's first context, which is what llama.cpp wants; closed after the last."""

    def __init__(self, model: api.Model, files: Sequence[Path], scales: Sequence[float]) -> None:
        """`scales`: one for each file. Raises BadWeights, for a file that is no adapter of this model."""
        self._loaded: list[tuple[api.Adapter, float]] = []
        try:
            for file, scale in zip(files, scales, strict=True):
                self._loaded.append((_load(model, file), scale))
        except LoadError:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._loaded)

    def apply(self, context: api.Context) -> None:
        """The context computes with them. Raises LoadError."""
        if self._loaded and not api.set_adapters(context, self._loaded):
            raise LoadError("llama.cpp does not use the LoRA adapters in this context", field=KEY)

    def close(self) -> None:
        for adapter, _ in self._loaded:
            adapter.close()
        self._loaded.clear()


def load_adapters(model: api.Model, config: ModelConfig, files: Sequence[Path]) -> Adapters:
    """The adapters that the YAML names, whose files these are. Raises LoadError, BadWeights."""
    named = config.adapters
    if len(named) != len(files):
        raise LoadError(f"{len(named)} LoRA adapters are named, and {len(files)} files of them are here", field=KEY)
    return Adapters(model, files, [scale for _, scale in named])


def _load(model: api.Model, file: Path) -> api.Adapter:
    if not file.is_file():
        raise BadWeights(f"{KEY}: {file}: no such file", field=KEY)
    with LOG.kept() as log:
        try:
            return api.Adapter(model, file)
        except ValueError as exc:
            reasons = [text.strip() for level, text in log if level == ERROR and text.strip()]
            reason = reasons[-1].partition("adapter: ")[2] or reasons[-1] if reasons else "llama.cpp gives no reason"
            raise BadWeights(f"{KEY}: {file.name} is no adapter of this model: {reason}", field=KEY) from exc
