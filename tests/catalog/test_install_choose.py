"""Which files of a repo a model is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.catalog import formats
from llmgallery.catalog.gguf_types import FILE_TYPES
from llmgallery.catalog.hub_repo import RepoFile
from llmgallery.catalog.install.choose import (
    ENOUGH,
    QUALITY,
    asked_for,
    by_quality,
    candidates,
    main_model,
    missing_parts,
    projector,
    quantisation,
    usual,
    whole,
)
from llmgallery.catalog.repo_folder import folder_files
from llmgallery.core.errors import HubNotFound


def files(*names: str, size: int = 100) -> list[RepoFile]:
    return [RepoFile(name, size) for name in names]


def repo(*quants: str, stem: str = "Model-7B") -> list[RepoFile]:
    return files(*(f"{stem}-{quant}.gguf" for quant in quants))


@pytest.mark.parametrize(
    ("name", "quant", "label"),
    [
        ("Qwen3-0.6B-Q4_K_M.gguf", "Q4_K_M", "Q4_K_M"),
        ("qwen3-0.6b.q4_k_m.gguf", "Q4_K_M", "q4_k_m"),
        ("model_q8_0.gguf", "Q8_0", "q8_0"),
        ("gpt-oss-20b-mxfp4.gguf", "MXFP4_MOE", "mxfp4"),
        ("Qwen3-30B-UD-Q4_K_XL.gguf", "Q4_K_XL", "UD-Q4_K_XL"),
        ("Model.i1-IQ3_XXS.gguf", "IQ3_XXS", "IQ3_XXS"),
        ("Llama-3.2-3B-Instruct-f16.gguf", "F16", "f16"),
        ("Ternary-TQ1_0.gguf", "TQ1_0", "TQ1_0"),
        ("sub/dir/Big-BF16-00001-of-00004.gguf", "BF16", "BF16"),
        ("F16-source-Q5_K_S.gguf", "Q5_K_S", "Q5_K_S"),
        ("model-Q4_K.gguf", "Q4_K_M", "Q4_K"),
        ("model-q8.gguf", "Q8_0", "q8"),
        ("old-Q4_0_4_4.gguf", "Q4_0_4_4", "Q4_0_4_4"),
        ("MIQ4_XS.gguf", "", ""),
        ("Agents-A1-APEX-I-Quality.gguf", "", ""),
        ("model.gguf", "", ""),
    ],
)
def test_tells_the_quantisation_by_the_name(name: str, quant: str, label: str):
    assert quantisation(name) == (quant, label)


def test_every_type_of_file_has_a_rank():
    assert [name for name in FILE_TYPES.values() if name not in QUALITY] == []
    assert len(set(QUALITY)) == len(QUALITY)


def test_projectors_matrices_and_broken_sets_are_no_models():
    held = files(
        "m-Q8_0.gguf",
        "mmproj-F16.gguf",
        "m-mmproj.gguf",
        "imatrix.gguf",
        "m.imatrix.gguf",
        "m-imatrix-notes.txt",
        "imatrix_unsloth.gguf_file",
        "big-Q4_K_M-00001-of-00003.gguf",
        "big-Q4_K_M-00003-of-00003.gguf",
        "Q6_K/m-Q6_K-00002-of-00002.gguf",
        "Q6_K/m-Q6_K-00001-of-00002.gguf",
    )
    found = candidates(held)
    assert [(one.file, len(one.parts), one.size) for one in found] == [
        ("m-Q8_0.gguf", 1, 100),
        ("Q6_K/m-Q6_K-00001-of-00002.gguf", 2, 200),
    ]
    assert missing_parts("big-Q4_K_M-00001-of-00003.gguf", held) == ["big-Q4_K_M-00002-of-00003.gguf"]
    assert [part.path for part in whole(RepoFile("Q6_K/m-Q6_K-00002-of-00002.gguf"), held).parts] == [
        "Q6_K/m-Q6_K-00001-of-00002.gguf",
        "Q6_K/m-Q6_K-00002-of-00002.gguf",
    ]


def test_the_best_comes_first_and_more_than_enough_last():
    quants = ["Q2_K", "F16", "Q4_K_M", "Q8_0", "IQ4_XS", "Q6_K", "BF16", "UD-Q8_K_XL", "strange", "IQ1_S", "Q4_K_S"]
    random.Random(5).shuffle(quants)
    order = [one.title for one in by_quality(candidates(repo(*quants)))]
    assert order == [
        *("Q8_0", "Q6_K", "Q4_K_M", "Q4_K_S", "IQ4_XS", "Q2_K", "IQ1_S"),
        *("Model-7B-strange.gguf", "UD-Q8_K_XL", "F16", "BF16"),
    ]
    assert order[0] == ENOUGH


def test_of_one_quantisation_the_dynamic_one_is_better():
    assert [one.title for one in by_quality(candidates(repo("Q2_K", "UD-Q2_K")))] == ["UD-Q2_K", "Q2_K"]


@pytest.mark.parametrize(
    ("quants", "chosen"),
    [
        (["Q8_0", "Q4_K_M", "Q2_K"], "Q4_K_M"),
        (["Q8_0", "Q4_K_S", "Q5_K_M", "Q2_K"], "Q4_K_S"),
        (["Q8_0", "Q6_K", "F16"], "Q6_K"),
        (["BF16", "F32"], "BF16"),
        (["strange", "Q2_K"], "Q2_K"),
    ],
)
def test_what_is_usual(quants: list[str], chosen: str):
    assert usual(candidates(repo(*quants))).title == chosen


def test_what_is_asked_for():
    found = candidates(repo("Q8_0", "Q4_K_M", "UD-Q4_K_XL", "IQ4_XS", "F16"))
    for quant, title in [("Q8_0", "Q8_0"), ("q8_0", "Q8_0"), ("q8", "Q8_0"), ("UD-Q4_K_XL", "UD-Q4_K_XL"), ("fp16", "F16")]:
        assert asked_for(found, quant, "a/b").title == title


def test_an_unknown_quantisation_is_told_its_neighbours():
    with pytest.raises(
        HubNotFound, match=r"a/b has no quantisation Q4_K_N; did you mean a/b:Q4_K_[MS]\? it has Q8_0, "
    ) as caught:
        asked_for(candidates(repo("Q8_0", "Q4_K_M", "Q4_K_S", "Q2_K")), "Q4_K_N", "a/b")
    assert set(caught.value.hints) == {"a/b:Q8_0", "a/b:Q4_K_M", "a/b:Q4_K_S", "a/b:Q2_K"}
    assert caught.value.hints[0].startswith("a/b:Q4_K_")


def test_hints_are_bounded():
    many = files(*(f"m{number}-Q8_0.gguf" for number in range(10_000)), *(f"{number}.gguf" for number in range(10_000)))
    with pytest.raises(HubNotFound) as caught:
        asked_for(candidates(many), "Q3_K_M", "a/b")
    assert len(caught.value.hints) <= 20
    assert len(caught.value.message) < 1000


def test_one_model_of_a_repo_with_several():
    small, large = repo("Q8_0", stem="Draft-0.5B"), repo("Q8_0", "Q4_K_M", stem="Model-7B")
    found, others = main_model(candidates([*small, *large]))
    assert [one.file for one in found] == ["Model-7B-Q8_0.gguf", "Model-7B-Q4_K_M.gguf"]
    assert others == ["draft-0.5b"]


def test_names_without_a_quantisation_are_one_models():
    found, others = main_model(candidates(files("X-APEX-Mini.gguf", "X-APEX-Quality.gguf", "X-APEX-Balanced.gguf")))
    assert (len(found), others) == (3, [])


@pytest.mark.parametrize(
    ("held", "model", "chosen"),
    [
        (["mmproj-F32.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf"], "m-Q8_0.gguf", "mmproj-F16.gguf"),
        (["mmproj-F32.gguf", "mmproj-BF16.gguf"], "m-Q8_0.gguf", "mmproj-BF16.gguf"),
        (["mmproj-Q8_0.gguf"], "m-Q8_0.gguf", "mmproj-Q8_0.gguf"),
        (["mmproj-model-f16.gguf"], "m-Q8_0.gguf", "mmproj-model-f16.gguf"),
        (["m-4b/mmproj-f16.gguf", "m-9b/mmproj-f16.gguf"], "m-9b/m-9b-Q8_0.gguf", "m-9b/mmproj-f16.gguf"),
        (["mmproj-vl-4b-f16.gguf", "mmproj-vl-9b-Q8_0.gguf"], "vl-9b-Q4_K_M.gguf", "mmproj-vl-9b-Q8_0.gguf"),
        ([], "m-Q8_0.gguf", None),
    ],
)
def test_the_projector(held: list[str], model: str, chosen: str | None):
    everything = files(*held, model, "imatrix.gguf", "mmproj.txt")
    found = projector(everything, whole(RepoFile(model, 1), everything))
    assert (found.path if found else None) == chosen


def test_a_folders_files():
    held = files(
        *("README.md", ".gitattributes", "config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "modeling_x.py"),
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"),
        *("consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "training_args.bin", "logo.png"),
        *("1_Pooling/config.json", "onnx/model.onnx", "onnx/config.json", "openvino/openvino_model.xml", "tokenizer.model"),
    )
    assert [file.path for file in folder_files(held, formats.SAFETENSORS)] == [
        "1_Pooling/config.json",
        "chat_template.jinja",
        "config.json",
        "merges.txt",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
    ]
    ir = files("openvino_model.xml", "openvino_model.bin", "pytorch_model.bin", "config.json")
    assert [file.path for file in folder_files(ir, formats.OPENVINO)] == [
        "config.json",
        "openvino_model.bin",
        "openvino_model.xml",
    ]
    only = files("consolidated.safetensors", "config.json")
    assert [file.path for file in folder_files(only, formats.SAFETENSORS)] == ["config.json", "consolidated.safetensors"]


PIECES = st.sampled_from(
    ["Q4_K_M", "UD-", "i1-", "Q8_0", "F16", "mmproj", "imatrix", "-00001-of-00002", "-00002-of-00002", "a", "-", "_", "/", "."]
)


@given(st.lists(st.lists(PIECES, max_size=6).map(lambda pieces: "".join(pieces) + ".gguf"), max_size=12, unique=True))
def test_any_names_can_be_chosen_from(names: list[str]):
    held = files(*(name for name in names if not name.startswith("/") and "//" not in name))
    found = candidates(held)
    assert all(part in held for one in found for part in one.parts)
    assert not [one.file for one in found if "imatrix" in one.file.rsplit("/", 1)[-1].split("-")]
    if not found:
        return
    main, others = main_model(found)
    assert main and len(others) < len(found)
    assert sorted(one.file for one in by_quality(main)) == sorted(one.file for one in main)
    assert usual(main) in main
    for one in main:
        projector(held, one)
        if one.label:
            chosen = asked_for(found, one.label, "a/b")
            assert chosen.quant == one.quant or one.label in chosen.file.rpartition("/")[0]  # a folder may tell it too
