"""Whether a model computes a row of a batch as if it were alone. Some read padding, and some mix the rows up: it is tried."""

from __future__ import annotations

from typing import Any, Literal

import torch

Company = Literal["any", "equal", "none"]
"""Rows of any lengths go together; only rows of one length; each goes alone."""

ROW, LONGER, STEPS = range(4, 9), range(9, 17), 3


def company_of(model: Any, pad: int) -> Company:
    """By a few tokens, generated alone and in batches. What differs by more than rounding does harm. Source of the need:
    transformers' RWKV has no mask, and continues batches wrongly."""
    alone = _logits(model, [[*ROW]], pad)
    try:
        if _are_near(model, alone, _logits(model, [[*ROW], [*LONGER]], pad)):
            return "any"
        return "equal" if _are_near(model, alone, _logits(model, [[*ROW], [*reversed(ROW)]], pad)) else "none"
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError):
        return "none"  # what it does with one row it cannot do with two


def _logits(model: Any, rows: list[list[int]], pad: int) -> list[torch.Tensor]:
    """Of the first row, step by step."""
    embeddings = model.get_input_embeddings().weight
    width = max(map(len, rows))
    left = not model.config.is_encoder_decoder
    padded, mask = [], []
    for row in rows:
        tokens, gap = [token % embeddings.shape[0] for token in row], width - len(row)
        padded.append([pad] * gap + tokens if left else tokens + [pad] * gap)
        mask.append([0] * gap + [1] * len(tokens) if left else [1] * len(tokens) + [0] * gap)
    told = model.generate(
        input_ids=torch.tensor(padded, device=embeddings.device),
        attention_mask=torch.tensor(mask, device=embeddings.device),
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        num_beams=1,
        pad_token_id=pad,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return [step[0].float() for step in told.logits]


def _are_near(model: Any, alone: list[torch.Tensor], beside: list[torch.Tensor]) -> bool:
    """A step after two tokens that are nearly as likely may go another way in either, and says nothing then."""
    near = 1e-3 if model.dtype == torch.float32 else 0.1
    for one, other in zip(alone, beside, strict=True):
        scale = float(one.std()) or 1.0
        if float((one - other).abs().max()) > near * scale:
            return False
        if one.argmax() != other.argmax():
            return True
    return True
