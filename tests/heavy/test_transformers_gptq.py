"""GPTQ weights, quantised here: answers are those of gptqmodel itself, however the files are named and described."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llmgallery.backends.base import Files, Job, Output, StepStats
from llmgallery.backends.transformers.backend import TransformersBackend
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.core.errors import LoadError
from llmgallery.core.sampling import Sampling

TESTS = Path(__file__).parents[1]
DEADLINE = 120
TOKENS = 24
PROMPTS = ("The quick brown fox", "What is the capital of France?", "One, two, three")
GREEDY = Sampling(temperature=0, max_tokens=TOKENS, ignore_eos=True)

QUANTISE = f"""
import json, sys
sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from tiny_transformers import TEXT, make_llama
plain, folder, answers = map(Path, sys.argv[1:4])
make_llama(plain)
from gptqmodel import GPTQModel, QuantizeConfig
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(plain)
model = GPTQModel.load(str(plain), QuantizeConfig(bits=4, group_size=32), device="cpu")
model.quantize([tokenizer(TEXT[start:] * 2)["input_ids"][:256] for start in range(0, 320, 20)], batch_size=1)
model.save(str(folder))
tokenizer.save_pretrained(folder)
model = GPTQModel.load(str(folder), device="cpu", dtype="float32")
told = {{}}
for prompt in {PROMPTS!r}:
    ids = tokenizer(prompt, return_tensors="pt")
    made = model.generate(**ids, max_new_tokens={TOKENS}, min_new_tokens={TOKENS}, do_sample=False, pad_token_id=0)
    told[prompt] = made[0, ids["input_ids"].shape[1]:].tolist()
answers.write_text(json.dumps(told))
"""


class Told:
    def __init__(self) -> None:
        self.outputs: list[Output] = []
        self.changed = threading.Condition()

    def step(self, outputs: Sequence[Output], stats: StepStats) -> None:
        with self.changed:
            self.outputs += outputs
            self.changed.notify_all()

    def fatal(self, error: BaseException) -> None:
        raise error

    def progress(self, fraction: float) -> None: ...

    def pooled(self, result: Any) -> None: ...

    def tokens(self, id: int) -> list[int]:
        """Of the whole answer, once it is there."""
        with self.changed:
            assert self.changed.wait_for(lambda: any(o.id == id and o.finish for o in self.outputs), DEADLINE)
        return [token for output in self.outputs if output.id == id for token in output.tokens]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, list[int]]]:
    """A folder as gptqmodel writes it, and the answers that gptqmodel gives; made in a process of its own, as gptqmodel changes
    transformers when it is imported."""
    folder = tmp_path_factory.mktemp("gptq")
    paths = [folder / "plain", folder / "quantised", folder / "answers.json"]
    environment = {**os.environ, "GPTQMODEL_CPU_WORKERS": "2", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", QUANTISE, *map(str, paths)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return paths[1], json.loads(paths[2].read_text())


def answers(folder: Path, config: ModelConfig) -> dict[str, list[int]]:
    told, backend = Told(), TransformersBackend()
    backend.load(config, Files((folder,)), told)
    for id, prompt in enumerate(PROMPTS):
        backend.submit(Job(id, backend.tokenize(prompt, special=True, bos=True), GREEDY))
    answers = {prompt: told.tokens(id) for id, prompt in enumerate(PROMPTS)}
    backend.close()
    return answers


def config(**more: Any) -> ModelConfig:
    return ModelConfig(context_size=128, parallel=4, parameters=Parameters(), **more)


def test_answers_are_those_of_gptqmodel(made: tuple[Path, dict[str, list[int]]]) -> None:
    folder, expected = made
    assert "qweight" in str((folder / "model.safetensors").read_bytes()[:20000])
    assert answers(folder, config()) == expected
    assert answers(folder, config(quantization="gptq", options={"continuous_batching": "off"})) == expected


def test_old_repos_are_served(made: tuple[Path, dict[str, list[int]]], tmp_path: Path) -> None:
    """AutoGPTQ's quantize_config.json beside a file named as it liked, and a config.json that says nothing."""
    folder, expected = made
    old = shutil.copytree(folder, tmp_path / "old")
    (old / "model.safetensors").rename(old / "gptq_model-4bit-32g.safetensors")
    own = json.loads((old / "config.json").read_text())
    del own["quantization_config"]
    (old / "config.json").write_text(json.dumps(own))
    (old / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": 32, "desc_act": False, "sym": True}))
    assert answers(old, config(model_base_name="gptq_model-4bit-32g")) == expected
    (old / "quantize_config.json").unlink()
    assert answers(old, config(options={"model_params": {"wbits": 4, "group_size": 32, "device": "cpu"}})) == expected


def test_another_quantisation_is_refused(made: tuple[Path, dict[str, list[int]]]) -> None:
    with pytest.raises(LoadError, match="gptq already"):
        answers(made[0], config(quantization="bnb_4bit"))
