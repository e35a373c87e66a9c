"""AWQ weights, rounded and packed here: what is computed with them are the numbers that they stand for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_transformers_gptq import GREEDY, PROMPTS, Told, config
from tiny_transformers import make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmgallery.backends.base import Files, Job
from llmgallery.backends.transformers.backend import TransformersBackend

BITS, GROUP = 4, 32
NEAR = 0.1
"""Of the logits' standard deviation: gptqmodel's kernel for CPUs computes in bfloat16 (0.03 was measured)."""
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns stands at each place of an int32, from the lowest bits on. Source: AutoAWQ's gemm format."""


def packed(numbers: torch.Tensor) -> torch.Tensor:
    """[rows, columns] of 0 to 15 -> [rows, columns / 8] of int32."""
    eights = numbers.to(torch.int64).reshape(numbers.shape[0], -1, 8)
    words = sum(eights[:, :, column] << BITS * place for place, column in enumerate(ORDER))
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def rounded(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors of AWQ for a weight [out, in], and the numbers that they stand for."""
    columns = weight.T.reshape(-1, GROUP, weight.shape[0])
    low, high = columns.amin(1), columns.amax(1)
    scales = ((high - low) / (2**BITS - 1)).half().float()
    zeros = torch.clamp((-low / scales).round(), 0, 2**BITS - 1)
    numbers = torch.clamp((columns / scales[:, None]).round() + zeros[:, None], 0, 2**BITS - 1)
    meant = ((numbers - zeros[:, None]) * scales[:, None]).reshape(-1, weight.shape[0]).T
    tensors = {"qweight": packed(numbers.reshape(-1, weight.shape[0])), "qzeros": packed(zeros), "scales": scales.half()}
    return tensors, meant


@pytest.fixture(scope="module")
def awq(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = make_llama(tmp_path_factory.mktemp("awq"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tensors = dict(model.state_dict())
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                made, meant = rounded(tensors.pop(f"{name}.weight"))
                tensors |= {f"{name}.{kind}": tensor.contiguous() for kind, tensor in made.items()}
                module.weight.copy_(meant)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    own = json.loads((folder / "config.json").read_text())
    described = {"quant_method": "awq", "bits": BITS, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    (folder / "config.json").write_text(json.dumps({**own, "quantization_config": described}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = {}
    for prompt in PROMPTS:
        with torch.no_grad():
            expected[prompt] = model(**tokenizer(prompt, return_tensors="pt")).logits[0]
    return folder, expected


def test_the_numbers_behind_are_computed_with(awq: tuple[Path, dict[str, torch.Tensor]]) -> None:
    folder, expected = awq
    told, backend = Told(), TransformersBackend()
    backend.load(config(), Files((folder,)), told)
    for id, prompt in enumerate(PROMPTS):
        ids = backend.tokenize(prompt, special=True, bos=True)
        with torch.no_grad():
            logits = backend._model(torch.tensor([ids])).logits[0]
        wide = NEAR * expected[prompt].std()
        assert (logits - expected[prompt]).abs().max() < wide
        backend.submit(Job(id, ids, GREEDY))
        last = expected[prompt][-1]
        assert last.max() - last[told.tokens(id)[0]] < 2 * wide
    backend.close()
