"""Weights that bitsandbytes quantises as they are loaded, on the CPU: answers are those of transformers itself with them."""

from pathlib import Path

import pytest
import torch
from test_transformers_gptq import GREEDY, PROMPTS, TOKENS, Told, config
from tiny_transformers import make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from llmgallery.backends.base import Files, Job
from llmgallery.backends.transformers.backend import TransformersBackend

THEIRS = {
    "bnb_4bit": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    ),
    "bnb_8bit": BitsAndBytesConfig(load_in_8bit=True),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


def expected(folder: Path, kind: str) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=THEIRS[kind], device_map="cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answers = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt")
        told = model.generate(
            input_ids=given["input_ids"], attention_mask=given["attention_mask"], max_new_tokens=TOKENS, min_new_tokens=TOKENS,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip
        answers.append(told[0, given["input_ids"].shape[1] :].tolist())
    return answers


@pytest.mark.parametrize("batching", ["on", "off"])
@pytest.mark.parametrize("kind", THEIRS)
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_answers_are_those_of_transformers(llama: Path, kind: str, batching: str) -> None:
    told, backend = Told(), TransformersBackend()
    loaded = backend.load(config(quantization=kind, options={"continuous_batching": batching}), Files((llama,)), told)
    plain = sum(each.numel() * 4 for each in AutoModelForCausalLM.from_pretrained(llama).parameters())
    assert loaded.details["weights_bytes"] < 0.7 * plain
    for id, prompt in enumerate(PROMPTS):
        backend.submit(Job(id, backend.tokenize(prompt, special=True, bos=True), GREEDY))
    assert [told.tokens(id) for id in range(len(PROMPTS))] == expected(llama, kind)
    backend.close()
