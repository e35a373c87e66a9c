"""What folders of weights are told to be: where they lie, what they are for, which backend loads them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from weight_folders import LLAMA, llama_files, safetensors, write_folder

from llmgallery.backends.base import BackendSpec
from llmgallery.backends.loader import specs
from llmgallery.catalog.companions import Located, check_companions, locate_all
from llmgallery.catalog.folder import Facts, facts, read_facts, weights_in
from llmgallery.catalog.index import Entry
from llmgallery.catalog.purpose import purpose_of
from llmgallery.catalog.reference import HubReference, Whole
from llmgallery.catalog.registry import Registry
from llmgallery.catalog.weights import LocalFiles, backend_for, check_format, locate, trained_context
from llmgallery.config.load import parse_model
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.config.outside import Outside
from llmgallery.core.errors import BadWeights, LoadError

FOLDERS = ("safetensors", "gptq")
NEVER = ("no_such_library",)


def named(model: str, **keys: Any) -> ModelConfig:
    return ModelConfig(parameters=Parameters(model=model), **keys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "m", llama_files())


# --- where they are ------------------------------------------------------------------------------------------------------------


def test_a_repo_is_its_folder_for_backends_that_load_folders(tmp_path: Path) -> None:
    assert locate(named("a/b@v1"), tmp_path, FOLDERS) == HubReference("a/b", revision="v1", whole=Whole())
    assert locate(named("a/b"), tmp_path, ("gguf",)) == locate(named("a/b"), tmp_path) == HubReference("a/b")
    assert locate(named("a/b", model_base_name="x"), tmp_path, FOLDERS) == HubReference("a/b", whole=Whole())
    named_file = HubReference("a/b", "x.safetensors", whole=Whole())
    assert locate(named("a/b/x.safetensors"), tmp_path, FOLDERS) == named_file


@pytest.mark.parametrize(
    ("keys", "whole"),
    [
        ({"load_format": "pt"}, Whole(pickles=True)),
        ({"options": {"safetensors_only": False}}, Whole(pickles=True)),
        ({"load_format": "safetensors"}, Whole()),
        ({"trust_remote_code": True}, Whole(code=True)),
        ({"options": {"trust_remote_code": True, "subfolder": "/fp16/"}}, Whole(code=True, subfolder="fp16")),
    ],
)
def test_what_a_yaml_allows_comes_along(keys: dict[str, Any], whole: Whole, tmp_path: Path) -> None:
    found = locate(named("a/b", **keys), tmp_path, FOLDERS)
    assert isinstance(found, HubReference)
    assert found.whole == whole


def test_a_weights_file_in_a_folder_means_the_folder(folder: Path) -> None:
    here = LocalFiles((folder,))
    shard = "m/model-00001-of-00002.safetensors"
    assert locate(named("m"), folder.parent) == here
    assert locate(named(shard), folder.parent) == here
    assert locate(named("m", model_base_name="model-00001-of-00002"), folder.parent, FOLDERS) == here
    assert locate(named("m", model_base_name="gptq_model-4bit-128g"), folder.parent, FOLDERS) == here
    (folder / "config.json").unlink()
    assert locate(named(shard), folder.parent) == LocalFiles((folder.parent / shard,))


def test_adapters_and_draft_models_of_folders_are_folders(folder: Path) -> None:
    adapter = write_folder(folder.parent / "lora", {"adapter_config.json": b"{}", "adapter_model.safetensors": safetensors({})})
    wanted = named("m", lora_adapters=["lora", "lora/adapter_model.safetensors", "me/lora"], draft_model="m")
    located = locate_all(wanted, folder.parent)
    assert located == Located(
        LocalFiles((folder,)),
        (LocalFiles((adapter,)), LocalFiles((adapter,)), HubReference("me/lora", whole=Whole())),
        LocalFiles((folder,)),
    )
    check_companions([folder], [adapter], [folder])
    (folder.parent / "a.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(16))
    with pytest.raises(LoadError, match=r"lora_adapters: .*a\.gguf is a GGUF file, which only llama-cpp loads: name the folder"):
        locate_all(named("m", lora_adapters=["a.gguf"]), folder.parent)
    with pytest.raises(LoadError, match="is a folder: name the GGUF file in it"):
        locate_all(named("a.gguf", lora_adapters=["lora"]), folder.parent)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"adapter_model.safetensors": b""}, "is no PEFT adapter: it has no adapter_config.json"),
        ({"adapter_config.json": b'{"peft_type": "IA3"}'}, "is an adapter of type IA3, only LORA is known"),
        ({"adapter_config.json": b"{}"}, "holds no adapter_model.safetensors"),
    ],
)
def test_what_is_no_adapter_is_told(folder: Path, files: dict[str, bytes], says: str) -> None:
    with pytest.raises(BadWeights, match=says):
        check_companions([folder], [write_folder(folder.parent / "lora", files)], [])


# --- which backend -------------------------------------------------------------------------------------------------------------


def test_transformers_comes_before_exllama_and_what_is_here_before_both(folder: Path) -> None:
    absent = {
        name: replace(specs()[name], requires=NEVER, requires_for={}, hardware=()) for name in ("exllamav2", "transformers")
    }
    here = {name: replace(spec, requires=()) for name, spec in absent.items()}
    assert backend_for([folder], absent) == backend_for([folder], here) == "transformers"
    assert backend_for([folder], {**absent, "exllamav2": here["exllamav2"]}) == "exllamav2"
    one = BackendSpec("a-later-one", "none:None", formats=("safetensors",))
    assert backend_for([folder], {"a-later-one": one, **here}) == "transformers"
    assert backend_for([folder], {"a-later-one": one, **absent}) == "a-later-one"


def test_a_library_that_only_a_format_needs_counts(folder: Path) -> None:
    quantised = {**LLAMA, "quantization_config": {"quant_method": "gptq"}}
    (folder / "config.json").write_text(json.dumps(quantised))
    first = replace(specs()["transformers"], requires=(), requires_for={"gptq": NEVER})
    second = replace(specs()["exllamav2"], requires=(), requires_for={}, hardware=())
    assert backend_for([folder], {"transformers": first, "exllamav2": second}) == "exllamav2"


def test_folders_that_are_not_whole_are_bad_weights(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(BadWeights, match=r"model-00002-of-00002\.safetensors is cut"):
        check_format([folder], specs()["transformers"])
    shard.unlink()
    with pytest.raises(BadWeights, match=r"is not whole: model-00002-of-00002\.safetensors is missing"):
        backend_for([folder], specs())
    with pytest.raises(BadWeights, match="holds safetensors weights; backend llama-cpp loads gguf"):
        check_format([folder], specs()["llama-cpp"])


def test_a_folder_without_a_yaml_is_served_by_the_backend_that_is_here(folder: Path) -> None:
    here = replace(specs()["exllamav2"], requires=(), requires_for={}, hardware=())
    known = {**specs(), "exllamav2": here, "transformers": replace(specs()["transformers"], requires=NEVER)}

    def lacks(spec: Any, format_: str | None) -> str:
        return str(known[spec.name].lacks(format_))

    assert Registry([folder.parent], known, Outside(lacks=lacks)).read().entries["m"].backend == "exllamav2"
    assert Registry([folder.parent], known).read().entries["m"].backend == "transformers"


def test_a_backend_that_is_not_here_is_a_warning_with_its_command_and_line() -> None:
    known = {**specs(), "transformers": replace(specs()["transformers"], requires=NEVER)}
    text = b"name: x\nbackend: HuggingFace\nparameters: {model: a/b}\n"
    loaded = parse_model(text, Path("x.yaml"), known, Outside(lacks=lambda spec, kind: known[spec.name].lacks(kind)))
    assert (loaded.problems, loaded.backend) == ((), "transformers")
    (warning,) = loaded.warnings
    assert (warning.line, warning.key) == (2, "backend")
    assert warning.message.endswith("needs no_such_library, not installed here: llmgallery backends install transformers")


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        *((name, "transformers") for name in ("transformers", "huggingface", "hf", "AutoGPTQ", "gptq_llama", "awq", "rerankers")),
        *((name, "exllamav2") for name in ("exllama", "exllama2", "exllamav2", "ExLlamaV3")),
        ("openai", "openai"),
        *((name, None) for name in ("vllm", "sglang", "mlx", "openvino", "optimum", "rwkv", "llama-server", "llama-ggml")),
        *((name, None) for name in ("llama-stable", "anthropic", "cloud-proxy", "gpt4all", "diffusers", "whisper")),
    ],
)
def test_names_of_the_field_are_ours_or_not_yet(name: str, ours: str | None) -> None:
    loaded = parse_model(f"backend: {name}\nparameters: {{model: a/b}}\n".encode(), Path("x.yaml"), specs())
    assert loaded.backend == ours
    if ours is None:
        (problem,) = loaded.problems
        assert (problem.line, problem.key) == (1, "backend")
        assert f"{name} is not available yet in this version" in problem.message


# --- what they are for ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "names", "made_for"),
    [
        ("LlamaForCausalLM", (), "generate"),
        ("GPT2LMHeadModel", (), "generate"),
        ("Qwen2_5_VLForConditionalGeneration", (), "generate"),
        ("", (), "generate"),
        ("BertModel", (), "embed"),
        ("BertForMaskedLM", (), "embed"),
        ("T5EncoderModel", (), "embed"),
        ("Qwen3ForCausalLM", ("modules.json",), "embed"),
        ("XLMRobertaForSequenceClassification", (), "rerank"),
        ("BertForSequenceClassification", ("modules.json",), "rerank"),
    ],
)
def test_purpose_by_architecture_and_files(architecture: str, names: tuple[str, ...], made_for: str) -> None:
    assert facts({"architectures": [architecture] if architecture else None}, names).purpose == made_for


def test_the_purpose_of_an_entry(folder: Path) -> None:
    entry = Entry("m", folder, folder.parent, named("m"), "transformers")
    assert purpose_of(entry) == ("generate", "LlamaForCausalLM")
    remote = Entry("r", folder, folder.parent, named("a/b"), "transformers")
    asked: list[HubReference] = []

    def cached(reference: HubReference) -> list[Path]:
        asked.append(reference)
        return [folder]

    assert purpose_of(remote, cached, FOLDERS) == ("generate", "LlamaForCausalLM")
    assert asked == [HubReference("a/b", whole=Whole())]
    (folder / "config.json").write_text("{")
    assert purpose_of(entry) is None


@pytest.mark.parametrize(
    ("config", "cache"),
    [
        (LLAMA, 2 * 2 * 2 * 16),
        ({**LLAMA, "num_key_value_heads": None, "head_dim": None}, 2 * 2 * 4 * 16),
        ({"architectures": ["GPT2LMHeadModel"], "n_layer": 3, "n_head": 4, "n_embd": 32}, 2 * 3 * 4 * 8),
        ({"architectures": ["GPTBigCodeForCausalLM"], "n_layer": 3, "n_head": 4, "n_embd": 32, "multi_query": True}, 2 * 3 * 8),
        ({"text_config": LLAMA, "architectures": ["LlavaForConditionalGeneration"]}, 2 * 2 * 2 * 16),
        ({**LLAMA, "layer_types": ["full_attention", "linear_attention"]}, 2 * 2 * 16),
        ({**LLAMA, "kv_lora_rank": 8, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}, 2 * 4 * 40),
        ({**LLAMA, "num_hidden_layers": "many", "n_layer": True}, 0),
        ({"architectures": ["BertModel"], "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 32}, 0),
    ],
)
def test_the_cache_of_a_token(config: dict[str, Any], cache: int) -> None:
    assert facts(config, ()).cache_numbers == cache


def test_the_inputs_of_readers_are_as_long_as_the_shortest_that_is_said(tmp_path: Path) -> None:
    roberta = {"architectures": ["RobertaModel"], "model_type": "roberta", "max_position_embeddings": 514}
    assert facts(roberta, ()).context == 512
    assert facts(roberta, (), {"max_seq_length": 256}, {"model_max_length": 10**30}).context == 256
    assert facts(roberta, (), {}, {"model_max_length": 384}).context == 384
    files = {**llama_files(), "sentence_bert_config.json": b'{"max_seq_length": 9}'}
    found = read_facts(write_folder(tmp_path / "m", files))
    assert found is not None
    assert found == Facts("generate", "LlamaForCausalLM", 512, 128, 64, 4, 256, "float16", "")
    assert trained_context("m", tmp_path) == 512


def test_the_weights_of_a_folder(tmp_path: Path) -> None:
    plain = safetensors({})
    files = {"config.json": b"{}", "model.safetensors": plain, "pytorch_model.bin": b"PK", "consolidated.safetensors": plain}
    both = write_folder(tmp_path / "a", files)
    assert [path.name for path in weights_in(both)] == ["model.safetensors"]
    assert [path.name for path in weights_in(both, "pytorch_model")] == ["pytorch_model.bin"]
    files = {"model.safetensors": plain, "2_Dense/model.safetensors": plain, "2_Dense/pytorch_model.bin": b""}
    modules = write_folder(tmp_path / "b", files)
    found = [path.relative_to(modules).as_posix() for path in weights_in(modules)]
    assert found == ["model.safetensors", "2_Dense/model.safetensors"]
