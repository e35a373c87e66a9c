"""The vectors of a batch: hidden states pooled as sentence-transformers' Pooling does it, then its further modules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from llmgallery.backends.transformers.pools.batches import Batch, Tensor
from llmgallery.backends.transformers.pools.pooling_files import Dense, LayerNorm, Normalize, Step
from llmgallery.core.errors import BadWeights


def known_inputs(model: Any, batch: Batch, *, types: bool) -> dict[str, Tensor]:
    """What of the batch this model's forward takes. `types`: its tokenizer tells token types."""
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if types and "token_type_ids" in inspect.signature(model.forward).parameters:
        given["token_type_ids"] = batch.token_type_ids
    return given


class Pooling:
    """`modes`: of MODES; the vectors of several are joined. Sums are of float32 whatever the weights are of."""

    def __init__(self, model: Any, modes: Sequence[str], steps: Sequence[Step], *, types: bool, unpickle: bool = False) -> None:
        """`types`: the tokenizer tells token types. Raises BadWeights."""
        self._model = model
        self._types = types
        self._ways = [_WAYS[mode] for mode in modes]
        self._steps = [_way_on(step, unpickle) for step in steps]
        self._settings = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}

    def __call__(self, batch: Batch) -> Tensor:
        given = known_inputs(self._model, batch, types=self._types)
        hidden = self._model(**given, **self._settings, return_dict=True).last_hidden_state.float()
        mask = batch.pooled.to(hidden.device)
        vectors = torch.cat([way(hidden, mask) for way in self._ways], dim=-1).cpu()
        for step in self._steps:
            vectors = step(vectors)
        return vectors


def _first(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), mask.argmax(dim=1)]


def _last(hidden: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return hidden[torch.arange(len(hidden), device=hidden.device), (mask * places).argmax(dim=1)]


def _max(hidden: Tensor, mask: Tensor) -> Tensor:
    return hidden.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def _weighted(hidden: Tensor, weights: Tensor, power: float = 1.0) -> Tensor:
    total = (hidden * weights.unsqueeze(-1)).sum(dim=1)
    return total / weights.sum(dim=1, keepdim=True).clamp(min=1e-9) ** power


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    return _weighted(hidden, mask.to(hidden.dtype))


def _mean_sqrt(hidden: Tensor, mask: Tensor) -> Tensor:
    return _weighted(hidden, mask.to(hidden.dtype), 0.5)


def _weighted_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Later tokens weigh more: by their places, from 1."""
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device, dtype=hidden.dtype)
    return _weighted(hidden, mask.to(hidden.dtype) * places)


_WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": _first,
    "max": _max,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


def _unit(vectors: Tensor) -> Tensor:
    return nn.functional.normalize(vectors, dim=-1)


def _way_on(step: Step, unpickle: bool) -> Callable[[Tensor], Tensor]:
    """What the step makes of vectors."""
    if isinstance(step, Normalize):
        return _unit
    weights = _weights(step, unpickle)
    try:
        made = _dense(step, weights) if isinstance(step, Dense) else _layer_norm(weights)
        made(torch.zeros(1, weights["linear.weight" if isinstance(step, Dense) else "norm.weight"].shape[-1]))
    except (KeyError, RuntimeError, IndexError) as exc:
        raise BadWeights(f"{step.weights}: not the weights of a {type(step).__name__}: {exc}") from exc
    return made


def _dense(step: Dense, weights: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    activation = getattr(nn, step.activation)()

    def layer(vectors: Tensor) -> Tensor:
        made: Tensor = activation(nn.functional.linear(vectors, weights["linear.weight"], weights.get("linear.bias")))
        if not step.residual:
            return made
        projection = weights.get("residual.weight")
        return made + (vectors if projection is None else nn.functional.linear(vectors, projection))

    return layer


def _layer_norm(weights: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    weight, bias = weights["norm.weight"], weights["norm.bias"]
    return lambda vectors: nn.functional.layer_norm(vectors, weight.shape, weight, bias)


def _weights(step: Dense | LayerNorm, unpickle: bool) -> dict[str, Tensor]:
    """As float32, in which vectors are."""
    file = step.weights
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file  # comes with transformers

            found: dict[str, Tensor] = load_file(file)
        elif unpickle:
            found = torch.load(file, map_location="cpu", weights_only=True)
        else:
            raise BadWeights(
                f"{file} is a pickle, which can run code when it is loaded: convert it to safetensors, or trust it by "
                "`options: {safetensors_only: false}`"
            )
        return {name: weight.float() for name, weight in found.items()}
    except BadWeights:
        raise
    except Exception as exc:  # both libraries raise their own kinds
        raise BadWeights(f"{file}: {type(exc).__name__}: {exc}") from exc
