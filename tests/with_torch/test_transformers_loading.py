"""Folders that cannot be loaded say what is wrong with them; those that can are loaded as the YAML says."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from driving_transformers import Driven, Told, driven
from safetensors.torch import load_file, save_file
from tiny_transformers import make_llama

from llmgallery.backends.base import Files
from llmgallery.backends.loader import specs
from llmgallery.backends.transformers.backend import TransformersBackend
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, GalleryError, LoadError, UnsupportedField
from llmgallery.core.jobs import Job
from llmgallery.core.sampling import Sampling

GREEDY = Sampling(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "llama"))


def change(folder: Path, file: str, **values: object) -> None:
    told = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**told, **values}))


def cut(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])


def shard(folder: Path) -> None:
    """Weights in two parts, of which the second is not there."""
    names = {"model.norm.weight": "model-00001-of-00002.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def pickled(folder: Path) -> None:
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def drop_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def without_numbers(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][:] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def point_to_itself(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("model.safetensors")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "no such folder"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "unknown architecture": (lambda folder: change(folder, "config.json", model_type="brand_new"), "brand_new"),
    "no tokenizer": (without_tokenizer, "no tokenizer"),
    "damaged tokenizer": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "llama does not load"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
    "weights cut in the middle": (lambda folder: cut(folder, 100_000), "was cut: it has 100000 of"),
    "weights cut in the header": (lambda folder: cut(folder, 100), "no safetensors file, or was cut"),
    "empty weights": (lambda folder: cut(folder, 0), "no safetensors file, or was cut"),
    "weights that are something else": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{]"),
        "header is damaged",
    ),
    "a missing part": (shard, "model-00002-of-00002.safetensors is missing, 1 of 2"),
    "a damaged index": (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "is damaged"),
    "an index of numbers": (
        lambda folder: (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": 3}})),
        "is damaged",
    ),
    "a link to itself": (point_to_itself, "model.safetensors cannot be read"),
    "no heads": (lambda folder: change(folder, "config.json", num_attention_heads=0), "llama does not load"),
    "weights that are no numbers": (without_numbers, "computes no numbers"),
    "a missing weight": (drop_weight, "1 weights are missing, such as model.layers.1.mlp.up_proj.weight"),
    "another shape": (
        lambda folder: change(folder, "config.json", intermediate_size=64),
        r"6 weights .* such as model.layers.0.mlp.down_proj.weight: 128 x \d+ in the files, and 128 x 64 by config",
    ),
    "pickles": (pickled, "are pickles.*safetensors_only: false"),
    "damaged generation_config": (lambda folder: (folder / "generation_config.json").write_text("{"), "generation_config.json"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_folder_says_what_is_wrong(folder: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    breaks, message = BROKEN[name]
    breaks(folder)
    with pytest.raises(BadWeights, match=message):
        Driven(folder)
    assert capfd.readouterr().out == ""


def test_code_of_the_repo_is_not_run_unless_the_yaml_says_so(folder: Path, tmp_path: Path) -> None:
    change(folder, "config.json", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnModel"}, model_type="own")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(LoadError, match="trust_remote_code: true"):
        Driven(folder)
    assert not (tmp_path / "ran").exists()


def test_pickles_load_where_the_yaml_says_so(folder: Path) -> None:
    with driven(folder) as made:
        expected = made.told.tokens(made.run("Hello", GREEDY))
    pickled(folder)
    for keys in ({"options": {"safetensors_only": False}}, {"load_format": "pt"}):
        with driven(folder, **keys) as made:
            assert made.told.tokens(made.run("Hello", GREEDY)) == expected


def test_types_of_numbers(folder: Path) -> None:
    for keys, dtype in (
        ({}, torch.float32),
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"options": {"model_params": {"torch_dtype": "torch.bfloat16"}}}, torch.bfloat16),
    ):
        with driven(folder, **keys) as made:
            assert made.model.dtype == dtype and made.loaded.details["batching"] == "continuous"
            assert made.told.finishes(made.run("Hello", GREEDY))[0] in ("stop", "length")


def test_config_params_are_attributes_of_the_configuration(folder: Path) -> None:
    with driven(folder, options={"config_params": {"num_hidden_layers": 1, "use_cache": True}}) as made:
        assert len(made.model.model.layers) == 1


def test_unknown_model_params_are_refused(folder: Path) -> None:
    with pytest.raises(LoadError, match="some_knob"):
        Driven(folder, options={"model_params": {"some_knob": 3}})


def test_a_subfolder_and_another_tokenizer(folder: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    shutil.copytree(folder, repo / "inner")
    shutil.copytree(folder, repo / "words")
    without_tokenizer(repo / "inner")
    with driven(repo, options={"subfolder": "inner", "tokenizer": "words"}) as made:
        assert made.told.finishes(made.run("Hello", GREEDY))


def test_a_context_beyond_the_trained_one(folder: Path) -> None:
    with driven(folder, context_size=600, parallel=1) as made:
        assert made.loaded.context_size == 600
    with pytest.raises(LoadError, match="context_size"):
        Driven(folder, context_size=2_000_000_000)


def test_sizes_are_found_where_the_yaml_says_nothing(folder: Path) -> None:
    with driven(folder, context_size=None, parallel=None) as made:
        assert made.loaded.context_size == 512 and 1 <= made.loaded.slots <= 8


def test_a_vocabulary_alone_loads_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    backend = TransformersBackend()
    loaded = backend.load_vocabulary(ModelConfig(main_gpu="cuda:7"), Files((folder,)))
    assert loaded.context_size == 512 and loaded.capabilities == frozenset() and loaded.memory_bytes == 0
    assert backend.detokenize(backend.tokenize("Grüße", special=False, bos=False)) == "Grüße"
    with pytest.raises(LoadError, match="nothing is loaded"):
        backend.submit(Job(1, [1], GREEDY))
    backend.close()
    backend.close()


def test_weights_without_a_template_tell_what_they_have(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    with driven(folder) as made:
        assert made.loaded.chat_template is None
        assert "<|im_start|>" in made.loaded.clues.tokens and made.loaded.clues.architecture == "llama"


def test_arguments_of_generate_in_the_yaml_are_checked_when_it_loads(folder: Path) -> None:
    with pytest.raises(LoadError, match=r"options\.generate.*num_beems"):
        Driven(folder, options={"generate": {"num_beems": 2}})
    with driven(folder, options={"generate": {"num_beams": 2}}) as made:
        with pytest.raises(GalleryError, match="no_such"):
            made.backend.check(Job(1, [1], Sampling(extra={"no_such": 1})))
        with pytest.raises(UnsupportedField, match="num_beams"):
            made.backend.check(Job(1, [1], Sampling(), logprobs=1))
        made.backend.check(Job(1, [1], Sampling(extra={"length_penalty": 0.5})))
        assert made.told.finishes(made.run("Hello", Sampling(max_tokens=4)))


def test_nothing_is_named() -> None:
    with pytest.raises(LoadError, match="no weights: name a repo"):
        TransformersBackend().load(ModelConfig(), Files(), Told())


def test_closing_gives_the_memory_back(folder: Path) -> None:
    import gc
    import weakref

    made = Driven(folder)
    made.run("Hello", GREEDY)
    model, cache = weakref.ref(made.model), weakref.ref(made.backend._continuous._manager._batch.cache)
    made.backend.close()
    gc.collect()
    assert model() is None and cache() is None


def test_its_spec_is_found_by_all_its_names() -> None:
    spec = specs()["transformers"]
    assert spec.load() is TransformersBackend
    assert {"huggingface", "sentencetransformers", "autogptq", "gptq_llama", "autoawq"} <= set(spec.aliases)
