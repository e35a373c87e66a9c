"""LoRA adapters and draft models: where a YAML's references lead, and what may not lie there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from gguf_files import lora

from llmgallery import paths
from llmgallery.backends.loader import specs
from llmgallery.catalog.companions import Located, absent, check_companions, locate_all
from llmgallery.catalog.reference import HubReference
from llmgallery.catalog.registry import Registry
from llmgallery.catalog.weights import LocalFiles
from llmgallery.config.load import LoadedModel, parse_model
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.config.outside import Outside
from llmgallery.core.errors import BadWeights, LoadError

GGUF = b"GGUF\x03\x00\x00\x00" + bytes(16)
POCKET = paths.builtin("models") / "pocket-f16.gguf"
PAIRS = {"blk.0.attn_q.weight": (np.ones((2, 192)), np.ones((192, 2)))}


def config(model: str = "m.gguf", **keys) -> ModelConfig:
    return ModelConfig(parameters=Parameters(model=model), **keys)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("m.gguf", "a.gguf", "b.gguf", "d-00001-of-00002.gguf", "d-00002-of-00002.gguf"):
        (tmp_path / name).write_bytes(GGUF)
    return tmp_path


# --- where they are ------------------------------------------------------------------------------------------------------------


def test_every_form_of_reference_is_understood(folder: Path) -> None:
    wanted = config(
        lora_adapter="a.gguf",
        lora_adapters=[str(folder / "b.gguf"), "owner/repo/lora.gguf@abc", "hf://owner/loras:F16"],
        draft_model="d-00001-of-00002.gguf",
    )
    parts = (folder / "d-00001-of-00002.gguf", folder / "d-00002-of-00002.gguf")
    assert locate_all(wanted, folder) == Located(
        LocalFiles((folder / "m.gguf",)),
        (
            LocalFiles((folder / "a.gguf",)),
            LocalFiles((folder / "b.gguf",)),
            HubReference("owner/repo", "lora.gguf", revision="abc"),
            HubReference("owner/loras", quant="F16"),
        ),
        LocalFiles(parts),
    )


def test_without_them_there_are_only_the_weights(folder: Path) -> None:
    located = locate_all(config(), folder)
    assert located.places == (LocalFiles((folder / "m.gguf",)),)


def test_the_order_of_adapters_is_that_of_their_scales() -> None:
    both = ModelConfig(lora_adapter="one", lora_scale=0.5, lora_adapters=["two", "three"], lora_scales=[2.0, 3.0])
    assert both.adapters == (("one", 0.5), ("two", 2.0), ("three", 3.0))
    assert ModelConfig(lora_adapters=["a", "b"]).adapters == (("a", 1.0), ("b", 1.0))
    assert ModelConfig().adapters == ()


def test_what_the_backend_does_not_use_is_not_looked_for(folder: Path) -> None:
    wanted = config(lora_adapters=["gone.gguf"], draft_model="gone.gguf")
    assert locate_all(wanted, folder, frozenset({"context_size"})).places == (LocalFiles((folder / "m.gguf",)),)


@pytest.mark.parametrize(
    ("keys", "field", "says"),
    [
        ({"lora_adapter": "gone.gguf"}, "lora_adapter", "there is no gone.gguf in"),
        ({"lora_adapters": ["a.gguf", "/no/such/b.gguf"]}, "lora_adapters", "/no/such/b.gguf does not exist"),
        ({"draft_model": "../d.gguf"}, "draft_model", "leads out of the models folder"),
        ({"lora_adapters": [""]}, "lora_adapters", "the reference is empty"),
        ({"draft_model": "hf://owner"}, "draft_model", "is no Hub reference"),
    ],
)
def test_the_key_that_is_wrong_is_named(folder: Path, keys: dict, field: str, says: str) -> None:
    with pytest.raises(LoadError, match=f"^{field}: ") as caught:
        locate_all(config(**keys), folder)
    assert caught.value.field == field
    assert says in caught.value.message


def test_near_names_are_offered(folder: Path) -> None:
    (folder / "poetry-lora.gguf").write_bytes(GGUF)
    with pytest.raises(LoadError, match=r"did you mean poetry-lora\.gguf"):
        locate_all(config(lora_adapters=["poetry-lor.gguf"]), folder)


def test_a_folder_is_no_adapter(folder: Path) -> None:
    (folder / "loras").mkdir()
    with pytest.raises(BadWeights, match="name the GGUF file in it"):
        locate_all(config(lora_adapters=["loras"]), folder)


def test_the_weights_base_name_is_not_the_adapters(folder: Path) -> None:
    with pytest.raises(LoadError, match="holds several models") as caught:
        locate_all(config(draft_model=str(folder), model_base_name="m"), folder)
    assert caught.value.field == "draft_model"


def test_what_is_absent(folder: Path) -> None:
    assert absent("a.gguf", folder) == absent("owner/repo", folder) == absent(str(folder / "a.gguf"), folder) == ""
    assert absent("gone.gguf", folder) == f"there is no gone.gguf in {folder}"
    assert absent("/no/such.gguf", folder) == "there is no /no/such.gguf"
    assert "leads out" in absent("../x.gguf", folder)
    assert "no file" in absent("https://huggingface.co/owner/repo/resolve/main", folder)


# --- what is in them -----------------------------------------------------------------------------------------------------------


def test_a_fitting_adapter_and_draft_model_pass(tmp_path: Path) -> None:
    check_companions([POCKET], [lora(tmp_path / "a.gguf", PAIRS)], [POCKET])
    check_companions([tmp_path / "gone.gguf"], [], [])


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"kind": "model"}, "is a whole model, not an adapter"),
        ({"kind": "imatrix"}, "is of type imatrix, not an adapter"),
        ({"form": "dora"}, "is an adapter of type dora, only lora is known"),
        ({"alpha": 16}, "adapter.lora.alpha is no float"),
        ({"architecture": "qwen2"}, "is for the architecture qwen2, this model is llama"),
    ],
)
def test_what_llama_cpp_would_die_of_is_told(tmp_path: Path, made: dict, says: str) -> None:
    file = lora(tmp_path / "a.gguf", PAIRS, **made)
    with pytest.raises(BadWeights) as caught:
        check_companions([POCKET], [file], [])
    assert caught.value.field == "lora_adapters"
    assert says in caught.value.message


def test_damaged_files_are_told(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("text")
    with pytest.raises(BadWeights, match=r"draft_model: .*text\.gguf is no GGUF file"):
        check_companions([POCKET], [], [tmp_path / "text.gguf"])
    whole = lora(tmp_path / "a.gguf", PAIRS)
    (tmp_path / "cut.gguf").write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(BadWeights, match=r"cut\.gguf is cut"):
        check_companions([POCKET], [tmp_path / "cut.gguf"], [])


# --- what a YAML says of them --------------------------------------------------------------------------------------------------


def parse(text: str, outside: Outside | None = None) -> LoadedModel:
    return parse_model(f"backend: llama-cpp\nmodel: m.gguf\n{text}".encode(), Path("x.yaml"), specs(), outside)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("lora_adapters: [a]\nlora_scales: [1, 2]", "x.yaml:4:14: lora_scales: 2 scales for 1 adapters"),
        ("lora_scales: [1]", "x.yaml:3:14: lora_scales: 1 scales for 0 adapters"),
        ("lora_scale: 0.5", "x.yaml:3:13: lora_scale: there is no lora_adapter"),
        ("lora_adapters: [a, ../b]", "x.yaml:3:20: lora_adapters[1]: ../b leads out of the models folder"),
        ("draft_model: '  '", "x.yaml:3:14: draft_model: the reference is empty"),
        ("draft_model: d\nn_draft: 65", "x.yaml:4:10: n_draft: "),
        ("draft_model: d\nn_draft: -1", "x.yaml:4:10: n_draft: "),
        ("options: {draft_p_min: 2}", "x.yaml:3:24: options.draft_p_min: "),
        ("options: {speculative: maybe}", "x.yaml:3:24: options.speculative: "),
    ],
)
def test_problems_have_their_line(text: str, problem: str) -> None:
    (found,) = parse(text).problems
    assert str(found).startswith(problem)


def test_good_keys_are_read() -> None:
    loaded = parse("lora_adapters: [a, b]\nlora_scales: [1, 0.5]\ndraft_model: d\nn_draft: 0\noptions: ['speculative:draft']")
    assert loaded.config is not None and not loaded.warnings
    assert loaded.config.options == {"speculative": "draft"}


def test_the_obsolete_key_says_why() -> None:
    (warning,) = parse("lora_adapter: a\nlora_base: b").warnings
    assert (warning.line, warning.key) == (4, "lora_base")
    assert warning.message.startswith("obsolete: ")


def test_a_backend_without_adapters_only_warns() -> None:
    loaded = parse_model(b"backend: echo\nlora_scales: [1]\nlora_adapter: ../x", Path("x.yaml"), specs())
    assert not loaded.problems
    assert {warning.key for warning in loaded.warnings} == {"lora_scales", "lora_adapter"}


def test_a_file_that_is_not_there_is_a_warning_until_it_comes(folder: Path) -> None:
    (folder / "x.yaml").write_text("backend: llama-cpp\nmodel: m.gguf\nlora_adapters:\n  - a.gguf\n  - late.gguf\n")
    registry = Registry([folder], specs())
    (warning,) = registry.read().warnings(registry.snapshot.entries["x"])
    assert (warning.line, warning.key) == (5, "lora_adapters[1]")
    assert f"there is no late.gguf in {folder}" in warning.message
    entry = registry.snapshot.entries["x"]
    assert registry.is_current(entry)
    (folder / "late.gguf").write_bytes(GGUF)
    assert not registry.is_current(entry)
    assert registry.refresh().entries["x"].warnings == ()


def test_companions_are_no_models_of_their_own(folder: Path) -> None:
    yaml = "backend: llama-cpp\nmodel: m.gguf\nlora_adapters: [a.gguf]\nlora_adapter: b.gguf\ndraft_model: d-00001-of-00002.gguf"
    (folder / "x.yaml").write_text(yaml)
    os.utime(folder / "x.yaml")
    assert list(Registry([folder], specs()).read().entries) == ["x"]
