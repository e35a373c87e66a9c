"""The place in transformers' continuous batching where tokens are chosen: all of it is done here, by the engine's samplers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor

from llmgallery.engine.sampler import Floats

Choose = Callable[[Sequence[str], Sequence[Floats]], Sequence[int]]
"""The next token of each of these requests, by its row of logits, which must not be changed."""


class ChoosingProcessor(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """Leaves of each row nothing but the token that `choose` wants: whatever transformers does next, it takes that one.

    Needs a manager without asynchronous batching and without CUDA graphs: a step must know what came of the last one.
    """

    supported_kwargs: dict[str, type] = {}  # noqa: RUF012 - as the base class has it
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self._ids: list[str] = []

    def fill_defaults(self, int32_tensor: Any) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Any:
        """Called before each step: whose rows will come, in which order."""
        self._ids = [request.state.request_id for request in requests_with_new_token]
        return torch.zeros(len(self._ids), dtype=torch.int32)

    def __call__(self, scores: Any, tensor_arg: Any) -> Any:
        """`scores`: [rows, vocabulary]; the first rows are those of the requests that get a token in this step."""
        count = len(self._ids)
        rows: Floats = scores[:count].to("cpu", torch.float32).numpy()
        tokens = self.choose(self._ids, list(rows)) if count else []
        alone = torch.full_like(scores, -np.inf)
        alone[:, 0] = 0
        if count:
            places = torch.arange(count, device=scores.device)
            alone[places, 0] = -np.inf
            alone[places, torch.tensor(tokens, device=scores.device)] = 0
        return alone


def install(processors: Any, choose: Choose) -> ChoosingProcessor:
    """Put it into a manager's list of processors, as the only one. Before the manager makes its cache."""
    processor = ChoosingProcessor(choose)
    processors.clear()
    processors.logits_processor.append(processor)
    processors.tensors_required = 1
    processors._retrieve_processors_kwargs()
    processors.do_processing = True
    return processor
