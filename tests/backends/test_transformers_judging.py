"""What `llmgallery check` says of files for transformers, before anything is fetched: by line, and without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llmgallery.backends.loader import specs
from llmgallery.config.load import LoadedModel, parse_model


def read(tmp_path: Path, *lines: str) -> LoadedModel:
    return parse_model("\n".join(["backend: huggingface", "model: a/b", *lines]).encode(), tmp_path / "m.yaml", specs())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("type: OVModelForCausalLM", "OpenVINO come with a later version"),
        ("dtype: float17", "none of float32, float16"),
        ("load_format: gguf", "none of auto, safetensors"),
        ("quantization: xpu_4bit", "Intel GPUs (xpu) are not served"),
        ("quantization: q4_0", "none of bnb_4bit"),
        ("main_gpu: xpu", "Intel GPUs (xpu) are not served"),
        ("main_gpu: CPU,GPU", "names no device"),
    ],
)
def test_words_of_load_keys(tmp_path: Path, line: str, says: str) -> None:
    (problem,) = read(tmp_path, "threads: 1", line).problems
    assert (problem.line, problem.column, problem.key) == (4, 1, line.partition(":")[0]) and says in problem.message


@pytest.mark.parametrize(
    ("line", "key", "says"),
    [
        ("type: OVModel", "type", "OpenVINO"),
        ("torch_dtype: torch.int3", "torch_dtype", "none of float32"),
        ("device: tpu", "device", "names no device"),
        ("device_map: xpu:1", "device_map", "xpu"),
        ("wbits: 5", "wbits", "none of 2, 3, 4, 8"),
        ("model_params: {token: hf_x}", "model_params", "the server downloads"),
        ("model_params: {wbits: four}", "model_params", "wbits"),
        ("generate: {num_beems: 2}", "generate", "did you mean num_beams"),
    ],
)
def test_options(tmp_path: Path, line: str, key: str, says: str) -> None:
    (problem,) = read(tmp_path, "options:", f"  {line}").problems
    assert (problem.line, problem.column, problem.key) == (4, 3, f"options.{key}")
    assert says in problem.message and problem.message.count(problem.key) <= 1


@pytest.mark.parametrize(
    "lines",
    [
        ("type: AutoModelForCausalLM", "quantization: bnb_4bit", "f16: true"),
        ("main_gpu: cuda.0",),
        ("main_gpu: AUTO:-CPU",),
        ("options: {device: mps, device_map: balanced}",),
        ("options: {group_size: 128, wbits: 4, cuda_visible_devices: '0', device: 'cuda:0'}",),
        ("options:", "  config_params: {init_device: 'cuda:0', attn_config: {attn_impl: triton}}",
         "  model_params: {device_map: 'cuda:0', trust_remote_code: True, torch_dtype: torch.bfloat16}"),
    ],
)  # fmt: skip
def test_what_some_machine_can_do_is_no_mistake(tmp_path: Path, lines: tuple[str, ...]) -> None:
    """LocalAI's and llm-api's files as their own documentation has them; whether it is this machine is seen at the load."""
    found = read(tmp_path, *lines)
    assert found.problems == () and found.config is not None


def test_options_of_the_wrong_type_are_told_once(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, "dtype: float17", "options: {wbits: [5]}").problems
    assert problem.key == "options.wbits"


def test_no_library_is_imported_for_it() -> None:
    code = (
        "import sys; from llmgallery.backends.transformers import judging;"
        "from llmgallery.config.model import ModelConfig; print(list(judging.judge(ModelConfig(dtype='x'))));"
        "print(sorted({'torch', 'transformers'} & sys.modules.keys()))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "none of float32" in told and told.endswith("[]\n")
