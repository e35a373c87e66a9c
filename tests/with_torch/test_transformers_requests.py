"""Requests with arguments of generate(), and models with adapters, through the backend that is loaded from a folder."""

from pathlib import Path

import pytest
import torch
from driving_transformers import Told, driven
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_transformers import make_llama
from transformers import AutoModelForCausalLM

from llmgallery.backends.base import Files, Job
from llmgallery.backends.transformers.backend import TransformersBackend
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, InvalidField, LoadError
from llmgallery.core.sampling import Sampling

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


def generated(model: torch.nn.Module, prompt: list[int], ends: frozenset[int], **arguments: object) -> list[int]:
    ids = torch.tensor([prompt])
    told = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, pad_token_id=0, eos_token_id=sorted(ends),
        **arguments,
    )[0, len(prompt) :].tolist()  # fmt: skip
    return [token for token in told if token not in ends]


@pytest.mark.parametrize("batching", ["auto", "off"])
def test_beams_beside_plain_requests(folder: Path, batching: str) -> None:
    with driven(folder, options={"continuous_batching": batching, "generate": {"no_repeat_ngram_size": 0}}) as made:
        ends, prompt = made.backend._vocab().ends, made.tokens_of(PROMPT)
        plain = [made.submit(PROMPT, Sampling(temperature=0, max_tokens=12)) for _ in range(2)]
        beams = made.submit(PROMPT, Sampling(max_tokens=12, extra={"num_beams": 2}))
        greedy = made.submit(PROMPT, Sampling(temperature=0.9, extra={"do_sample": False, "max_new_tokens": 12}))
        made.told.wait_for_end(*plain, beams, greedy)
        expected = generated(made.model, prompt, ends, do_sample=False)
        assert [made.told.tokens(id) for id in (*plain, greedy)] == [expected] * 3
        assert made.told.tokens(beams) == generated(made.model, prompt, ends, do_sample=False, num_beams=2)


def test_the_yamls_arguments_hold(folder: Path) -> None:
    with driven(folder, options={"generate": {"num_beams": 3, "max_new_tokens": 12}}) as made:
        ends, prompt = made.backend._vocab().ends, made.tokens_of(PROMPT)
        told = made.told.tokens(made.run(PROMPT, Sampling()))
        assert told == generated(made.model, prompt, ends, do_sample=False, num_beams=3)


def test_arguments_are_checked_before_anything_runs(folder: Path) -> None:
    with driven(folder) as made:
        prompt = made.tokens_of(PROMPT)
        for extra, field in (
            ({"num_beam": 2}, "num_beam"),
            ({"num_beams": "2"}, "num_beams"),
            ({"suppress_tokens": [10**6]}, "suppress_tokens"),
        ):
            job = Job(99, prompt, Sampling(extra=extra))
            for refuse in (made.backend.check, made.backend.submit):
                with pytest.raises(InvalidField, match=field) as refusal:
                    refuse(job)
                assert refusal.value.field == field
        assert not made.told.outputs


def test_a_yaml_with_an_unknown_argument_does_not_load(folder: Path) -> None:
    config = ModelConfig(options={"generate": {"num_beem": 2}})
    with pytest.raises(LoadError, match=r"options\.generate: num_beem .*num_beams") as refusal:
        TransformersBackend().load(config, Files((folder,)), Told())
    assert refusal.value.field == "options.generate"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("batching", ["on", "off"])
def test_answers_are_those_of_the_adapter(folder: Path, tmp_path: Path, batching: str) -> None:
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    wrapped = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, weights in wrapped.named_parameters():
            if "lora_B" in name:
                weights.normal_(0, 0.5)
    wrapped.save_pretrained(tmp_path)
    backend, told = TransformersBackend(), Told()
    config = ModelConfig(context_size=64, parallel=2, lora_adapter="a", options={"continuous_batching": batching})
    backend.load(config, Files((folder,), adapters=(tmp_path,)), told)
    prompt = backend.tokenize(PROMPT, special=True, bos=True)
    backend.submit(Job(1, prompt, Sampling(temperature=0, max_tokens=12)))
    told.wait_for_end(1)
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tmp_path).eval()
    assert told.tokens(1) == generated(theirs, prompt, backend._vocab().ends, do_sample=False)
    backend.close()


def test_a_gguf_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "lora.gguf"
    file.write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(BadWeights, match="only llama-cpp takes"):
        TransformersBackend().load(ModelConfig(lora_adapter="a"), Files((folder,), adapters=(file,)), Told())
