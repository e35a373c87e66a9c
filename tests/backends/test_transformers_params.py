"""What a YAML means for transformers: tables, without torch."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmgallery.backends.transformers.generation import generate_arguments
from llmgallery.backends.transformers.spec import KEYS, PARAMETERS, SPEC, UNSET, TransformersOptions
from llmgallery.backends.transformers.weights import params
from llmgallery.backends.transformers.weights.params import CAUSAL, CLASSIFIER, PLAIN, VISION, Arguments, Devices
from llmgallery.config.model import LOAD_KEYS, LOAD_PARAMETERS, ModelConfig
from llmgallery.core.errors import LoadError

FOLDER = Path("/models/m")
NONE, ONE, TWO, APPLE = Devices(), Devices("cuda", 1), Devices("cuda", 2), Devices("mps", 1)


def arguments(devices: Devices = NONE, **keys: Any) -> Arguments:
    config = msgspec.convert(keys, ModelConfig)
    return params.arguments(config, params.options_of(config), FOLDER, devices)


def refusal(devices: Devices = NONE, **keys: Any) -> LoadError:
    with pytest.raises(LoadError) as caught:
        arguments(devices, **keys)
    return caught.value


PLACES = [
    ({}, NONE, "cpu"),
    ({}, ONE, "cuda:0"),
    ({}, APPLE, "mps"),
    ({"gpu_layers": 0}, ONE, "cpu"),
    ({"main_gpu": "cuda.0"}, ONE, "cuda:0"),
    ({"main_gpu": "cuda:1"}, TWO, "cuda:1"),
    ({"main_gpu": "CUDA.1"}, TWO, "cuda:1"),
    ({"main_gpu": 1}, TWO, "cuda:1"),
    ({"main_gpu": "1"}, TWO, "cuda:1"),
    ({"main_gpu": "gpu"}, ONE, "cuda:0"),
    ({"main_gpu": "GPU.1"}, TWO, "cuda:1"),
    ({"main_gpu": "cpu"}, ONE, "cpu"),
    ({"main_gpu": ""}, ONE, "cuda:0"),
    ({"main_gpu": "mps"}, APPLE, "mps"),
    ({"main_gpu": "auto"}, NONE, "cpu"),
    ({"main_gpu": "auto"}, TWO, "auto"),
    ({"main_gpu": "AUTO:-CPU"}, TWO, "cuda:0"),
    ({"main_gpu": "AUTO:GPU.1,CPU"}, TWO, "cuda:1"),
    ({"main_gpu": "AUTO:GPU,CPU"}, NONE, "cpu"),
    ({"main_gpu": "AUTO:-GPU"}, TWO, "cpu"),
    ({"options": {"device_map": "auto"}}, TWO, "auto"),
    ({"options": {"device_map": "auto"}}, NONE, "cpu"),
    ({"options": {"device_map": "balanced"}}, TWO, "balanced"),
    ({"options": {"device_map": "cuda:0"}}, ONE, "cuda:0"),
    ({"options": {"device": "cuda:0"}}, ONE, "cuda:0"),
    ({"options": {"model_params": {"device": "cpu"}}}, ONE, "cpu"),
    ({"options": {"model_params": {"device_map": "cuda:0"}}}, ONE, "cuda:0"),
    ({"options": {"device_map": {"model.embed": 0, "lm_head": "cpu", "rest": "disk"}}}, ONE,
     {"model.embed": "cuda:0", "lm_head": "cpu", "rest": "disk"}),
    ({"options": {"max_memory": {"0": "10GiB", "cpu": "30GiB"}}}, ONE, "auto"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "devices", "expected"), PLACES)
def test_where_the_layers_go(keys: dict[str, Any], devices: Devices, expected: object) -> None:
    assert arguments(devices, **keys).device_map == expected


@pytest.mark.parametrize(
    ("keys", "devices", "field", "says"),
    [
        ({"main_gpu": "cuda:0"}, NONE, "main_gpu", "no such GPU here"),
        ({"main_gpu": "cuda:2"}, TWO, "main_gpu", "2 cuda"),
        ({"main_gpu": "AUTO:-CPU"}, NONE, "main_gpu", "leaves no device"),
        ({"main_gpu": "AUTO:-CPU,-GPU"}, TWO, "main_gpu", "leaves no device"),
        ({"main_gpu": "xpu_0"}, NONE, "main_gpu", "Intel GPUs"),
        ({"main_gpu": "xpu:0"}, TWO, "main_gpu", "Intel GPUs"),
        ({"main_gpu": "tpu"}, ONE, "main_gpu", "names no device"),
        ({"options": {"device": "cuda:0"}}, APPLE, "options.device", "1 mps"),
        ({"options": {"device_map": {"lm_head": "moon"}}}, ONE, "options.device_map.lm_head", "names no device"),
        ({"type": "OVModelForCausalLM"}, NONE, "type", "OpenVINO come with a later version"),
        ({"type": "AutoModelForSeq2SeqLM"}, NONE, "type", "encoder with a decoder"),
        ({"type": "MusicgenForConditionalGeneration"}, NONE, "type", "only text"),
        ({"type": "Nonsense"}, NONE, "type", "AutoModelForCausalLM"),
        ({"dtype": "int3"}, NONE, "dtype", "bfloat16"),
        ({"options": {"torch_dtype": "torch.int3"}}, NONE, "options.torch_dtype", "float16"),
        ({"load_format": "gguf"}, NONE, "load_format", "safetensors"),
        ({"flash_attention": True}, NONE, "flash_attention", "for GPUs only"),
        ({"options": {"model_params": {"cache_dir": "/x"}}}, NONE, "options.model_params.cache_dir", "downloads"),
        ({"options": {"model_params": {"config": {}}}}, NONE, "options.model_params.config", "config_params"),
        ({"options": {"model_params": {"wbits": "four"}}}, NONE, "options.model_params", "wbits"),
        ({"options": {"nonsense": 1}}, NONE, "options", "nonsense"),
    ],
)
def test_what_means_nothing_is_refused_by_its_name(keys: dict[str, Any], devices: Devices, field: str, says: str) -> None:
    error = refusal(devices, **keys)
    assert error.field == field and says in error.message


@pytest.mark.parametrize(
    ("keys", "devices", "dtype"),
    [
        ({}, NONE, "float32"),
        ({}, ONE, "auto"),
        ({"f16": True}, ONE, "bfloat16"),
        ({"f16": True}, NONE, "float32"),
        ({"f16": False}, ONE, "float32"),
        ({"dtype": "torch.bfloat16"}, NONE, "bfloat16"),
        ({"dtype": "half"}, NONE, "float16"),
        ({"dtype": "auto"}, NONE, "auto"),
        ({"options": {"torch_dtype": "torch.float16"}}, NONE, "float16"),
        ({"options": {"model_params": {"torch_dtype": "torch.bfloat16"}}}, NONE, "bfloat16"),
        ({"dtype": "float32", "options": {"dtype": "bf16"}}, NONE, "float32"),
        ({"options": {"dtype": "bf16", "model_params": {"dtype": "float32"}}}, NONE, "bfloat16"),
    ],
)
def test_types_of_numbers(keys: dict[str, Any], devices: Devices, dtype: str) -> None:
    assert arguments(devices, **keys).dtype == dtype


@pytest.mark.parametrize(
    ("type", "name"),
    [
        (None, None), ("AutoModelForCausalLM", CAUSAL), ("automodelforcausallm", CAUSAL), ("SentenceTransformer", PLAIN),
        ("AutoModel", PLAIN), ("AutoModelForSequenceClassification", CLASSIFIER), ("AutoModelForVision2Seq", VISION),
    ],
)  # fmt: skip
def test_types_of_models(type: str | None, name: str | None) -> None:
    assert arguments(type=type).auto_class == name
    assert arguments(options={"type": type}).auto_class == name


def test_llm_apis_file_of_an_mpt_model() -> None:
    """The example of llm-api's README, as its importer writes it."""
    made = arguments(
        ONE,
        options={
            "trust_remote_code": True,
            "config_params": {"init_device": "cuda:0", "attn_config": {"attn_impl": "triton"}},
            "model_params": {
                "device_map": "cuda:0", "trust_remote_code": True, "torch_dtype": "torch.bfloat16", "low_cpu_mem_usage": True,
                "compute": "torch.float16",
            },
        },
    )  # fmt: skip
    assert (made.device_map, made.dtype, made.trust_remote_code) == ("cuda:0", "bfloat16", True)
    assert made.attributes == {"init_device": "cuda:0", "attn_config": {"attn_impl": "triton"}}
    assert made.further == {"low_cpu_mem_usage": True, "compute": "float16"}


def test_llm_apis_file_of_a_gptq_model() -> None:
    gptq = {"group_size": 128, "wbits": 4, "cuda_visible_devices": "0", "device": "cuda:0"}
    config = msgspec.convert({"options": {"model_params": gptq}}, ModelConfig)
    options = params.options_of(config)
    assert (options.group_size, options.wbits, options.cuda_visible_devices, options.device) == (128, 4, "0", "cuda:0")
    assert options.model_params == {}


def test_code_and_pickles_are_trusted_by_nobody_but_the_yaml() -> None:
    assert not arguments().trust_remote_code and arguments().safetensors_only
    assert arguments(trust_remote_code=True).trust_remote_code
    assert not arguments(trust_remote_code=True, options={"trust_remote_code": False}).trust_remote_code
    assert not arguments(options={"safetensors_only": False}).safetensors_only
    assert not arguments(load_format="pt").safetensors_only and arguments(load_format="auto").safetensors_only


def test_folders_and_attention() -> None:
    made = arguments(ONE, flash_attention="on", options={"subfolder": "inner", "tokenizer": "words", "max_memory": {"0": "1GiB"}})
    assert (made.folder, made.tokenizer) == (FOLDER / "inner", FOLDER / "words")
    assert made.attention == "flash_attention_2" and made.max_memory == {0: "1GiB"}
    assert arguments(options={"attn_implementation": "eager"}).attention == "eager"
    assert arguments(parameters={"tokenizer": "/other"}).tokenizer == Path("/other")


def test_an_empty_yaml_changes_nothing() -> None:
    assert params.options_of(ModelConfig()) == TransformersOptions()


def test_the_spec_names_keys_that_there_are() -> None:
    assert {key for key in KEYS if "." not in key} <= LOAD_KEYS
    assert {key.partition(".")[2] for key in KEYS if "." in key} <= LOAD_PARAMETERS
    assert set(UNSET) <= KEYS
    assert all(field.name for field in msgspec.structs.fields(SPEC.options))


def test_every_parameter_of_requests_is_an_argument_of_generate() -> None:
    assert set(generate_arguments.ARGUMENTS) >= PARAMETERS
    kept = {"temperature", "top_k", "top_p", "min_p", "typical_p", "eos_token_id", "bos_token_id", "pad_token_id"}
    assert not kept & PARAMETERS
