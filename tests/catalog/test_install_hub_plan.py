"""From a Hub id to a plan."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import gguf as writer
import gguf_headers
import pytest
from loopback_hub import LoopbackHub

from llmgallery import paths
from llmgallery.backends.base import BackendSpec, Files
from llmgallery.backends.loader import specs
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.install import hub_plan
from llmgallery.catalog.install.header import Judged
from llmgallery.catalog.install.hub_plan import plan_hub
from llmgallery.catalog.install.plan import InstallPlan
from llmgallery.catalog.reference import parse_reference
from llmgallery.config.load import parse_model
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import (
    BackendMissing,
    BadWeights,
    ConfigError,
    HubGated,
    HubNotFound,
    HubOffline,
    HubUnavailable,
    NotAllowed,
)
from llmgallery.runtime import memory

REPO = "someone/Model-7B-GGUF"
MIB = 1 << 20
QUANTS = {"F16": 8, "Q8_0": 4, "Q4_K_M": 2, "Q2_K": 1}
"""Of the repo of most tests, in MiB."""


def header(path: Path, architecture: str = "llama", **keys: Any) -> bytes:
    def add(file: writer.GGUFWriter) -> None:
        file.add_name("Model 7B")
        file.add_context_length(2048)
        file.add_block_count(2)
        file.add_embedding_length(64)
        file.add_head_count(4)
        for key, value in keys.items():
            if isinstance(value, str):
                file.add_string(key.replace("__", "."), value)
            else:
                file.add_uint32(f"{architecture}.{key}", value)

    return gguf_headers.write(path / "header.gguf", architecture, add).read_bytes()


def fill(hub: LoopbackHub, folder: Path, quants: dict[str, int] | None = None, repo: str = REPO) -> bytes:
    data = header(folder)
    for quant, size in (quants or QUANTS).items():
        hub.add(repo, f"Model-7B-{quant}.gguf", data.ljust(size * MIB, b"\0"))
    hub.add(repo, "README.md", b"# Model", lfs=False)
    hub.add(repo, "imatrix.gguf", header(folder, general__type="imatrix"))
    return data


def within(most: int) -> Any:
    """The server's own judgement on a machine with so much memory."""

    def judge(most: int, config: ModelConfig, files: tuple[Path, ...]) -> Judged:
        takes = memory.plan(config, Files(files), most, most).bytes
        return Judged(takes, takes <= most)

    return partial(judge, most)


async def plan(hub: Hub, text: str, **more: Any) -> InstallPlan:
    reference = parse_reference(text)
    assert reference is not None
    return await plan_hub(hub, reference, **{"specs": specs(), **more})


def config_of(planned: InstallPlan) -> ModelConfig:
    """What the server reads in the plan's text; it has no problems."""
    loaded = parse_model(planned.yaml.encode(), Path("m.yaml"), specs())
    assert loaded.problems == ()
    assert loaded.config is not None
    return loaded.config


# --- choosing ------------------------------------------------------------------------------------------------------------------


async def test_a_quantisation_that_is_asked_for(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    data = fill(hub, tmp_path)
    hub.describe(REPO, {"license": "apache-2.0"}, "text-generation")
    commit = hub.commit(REPO)
    for text in (f"{REPO}:Q8_0", f"hf://{REPO}:q8_0", f"huggingface://{REPO}:Q8"):
        planned = await plan(ours, text, judge=within(16 * MIB))
        config = config_of(planned)
        assert config.parameters.model == f"{REPO}/Model-7B-Q8_0.gguf@{commit}"
        assert (config.name, config.backend, config.owned_by) == (planned.name, "llama-cpp", "someone")
        assert planned.name == str(parse_reference(text))
    (file,) = planned.files
    assert file.uri == f"hf://{REPO}/Model-7B-Q8_0.gguf@{commit}"
    assert (file.path, file.size) == (None, 4 * MIB)
    assert file.sha256 == hashlib.sha256(data.ljust(4 * MIB, b"\0")).hexdigest()
    assert (planned.source, planned.licence, planned.backend) == (f"{REPO}@{commit}", "apache-2.0", "llama-cpp")
    assert planned.memory_bytes is not None and 4 * MIB < planned.memory_bytes < 16 * MIB


@pytest.mark.parametrize(
    ("most", "chosen", "why"),
    [
        (64 * MIB, "Q8_0", "the best quantisation that fits"),
        (4 * MIB, "Q4_K_M", "the best quantisation that fits"),
        (5 * MIB // 2, "Q2_K", "the best quantisation that fits"),
        (MIB // 2, "Q4_K_M", "no quantisation fits"),
        (None, "Q4_K_M", "the usual choice"),
    ],
)
async def test_the_best_that_fits(hub: LoopbackHub, ours: Hub, tmp_path: Path, most: int | None, chosen: str, why: str):
    fill(hub, tmp_path)
    planned = await plan(ours, REPO, judge=within(most) if most else None)
    assert planned.files[0].name == f"Model-7B-{chosen}.gguf"
    assert why in planned.yaml.replace("\n# ", " ")
    assert planned.name == REPO
    assert (planned.memory_bytes is None) == (most is None)


async def test_only_the_beginnings_of_files_are_fetched(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    fill(hub, tmp_path)
    await plan(ours, REPO, judge=within(64 * MIB))
    assert hub.sent("Model-7B-Q8_0.gguf") <= MIB + (64 << 10)
    assert sum(hub.bytes_sent.values()) <= 2 * (MIB + (64 << 10))
    assert [seen.path for seen in hub.seen(name=REPO)] == [f"/api/models/{REPO}/revision/main?blobs=true"]


async def test_a_file_and_a_revision(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    data = header(tmp_path)
    old = hub.add(REPO, "sub/dir/model.gguf.bin", data, revision="v1")
    hub.add(REPO, "other-Q8_0.gguf", data)
    for text in (f"{REPO}/sub/dir/model.gguf.bin@v1", f"hf://{REPO}@v1/sub/dir/model.gguf.bin"):
        planned = await plan(ours, text)
        assert config_of(planned).parameters.model == f"{REPO}/sub/dir/model.gguf.bin@{old}"
        assert planned.name == f"{REPO}/sub/dir/model.gguf.bin@v1"
        assert "which v1 was when it was installed" in planned.yaml.replace("\n# ", " ")
    pinned = await plan(ours, f"{REPO}/sub/dir/model.gguf.bin@{old}")
    assert "when it was installed" not in pinned.yaml


async def test_split_models_come_whole(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    data = header(tmp_path)
    for number in (1, 2, 3):
        hub.add(REPO, f"Q4_K_M/big-Q4_K_M-0000{number}-of-00003.gguf", data.ljust(number * MIB, bytes([number])))
    hub.add(REPO, "Q6_K/big-Q6_K-00001-of-00002.gguf", data)
    for text in (REPO, f"{REPO}:Q4_K_M", f"{REPO}/Q4_K_M/big-Q4_K_M-00002-of-00003.gguf"):
        planned = await plan(ours, text, judge=within(1 << 40))
        assert [file.name for file in planned.files] == [f"Q4_K_M/big-Q4_K_M-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
        assert config_of(planned).parameters.model.startswith(f"{REPO}/Q4_K_M/big-Q4_K_M-00001-of-00003.gguf@")  # type: ignore
        assert planned.memory_bytes is not None and planned.memory_bytes > 6 * MIB
    with pytest.raises(HubNotFound, match=r"lacks parts of .*: Q6_K/big-Q6_K-00002-of-00002\.gguf"):
        await plan(ours, f"{REPO}/Q6_K/big-Q6_K-00001-of-00002.gguf")


async def test_the_projector_comes_along(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    fill(hub, tmp_path, {"Q8_0": 1})
    hub.add(REPO, "mmproj-F32.gguf", b"GGUF 32")
    commit = hub.add(REPO, "mmproj-F16.gguf", b"GGUF 16")
    planned = await plan(ours, REPO)
    assert [file.name for file in planned.files] == ["Model-7B-Q8_0.gguf", "mmproj-F16.gguf"]
    assert config_of(planned).mmproj == f"{REPO}/mmproj-F16.gguf@{commit}"
    heeds = {"llama-cpp": dataclasses.replace(specs()["llama-cpp"], keys=specs()["llama-cpp"].keys | {"mmproj"})}
    with_it = await plan(ours, REPO, judge=within(1 << 40), specs=heeds)
    without = await plan(ours, REPO, judge=within(1 << 40))
    assert with_it.memory_bytes and without.memory_bytes and with_it.memory_bytes > without.memory_bytes
    assert with_it.warnings == ()
    assert without.warnings == ("mmproj: backend llama-cpp does not use this key",)


async def test_a_hub_that_tells_no_sizes(hub: LoopbackHub, ours: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A mirror that does not know ?blobs=true."""
    fill(hub, tmp_path)
    monkeypatch.setattr("loopback_hub._sibling", lambda name, entry, blobs: {"rfilename": name})
    planned = await plan(ours, REPO, judge=within(1 << 40))
    assert planned.files[0].name == "Model-7B-Q4_K_M.gguf"
    assert (planned.size, planned.memory_bytes, planned.files[0].sha256) == (None, None, None)


async def test_what_the_text_names_is_what_is_fetched(hub: LoopbackHub, ours: Hub):
    """The bundled model, really loaded by nobody here, but whole."""
    data = (paths.builtin("models") / "pocket-f16.gguf").read_bytes()
    hub.add(REPO, "pocket-f16.gguf", data)
    planned = await plan(ours, REPO, judge=within(1 << 40))
    reference = parse_reference(config_of(planned).parameters.model or "")
    assert reference is not None
    (path,) = await ours.ensure(reference)
    assert path.read_bytes() == data
    before = len(hub.requests)
    assert await ours.ensure(reference) == [path]
    assert len(hub.requests) == before


async def test_other_models_of_a_repo_are_named(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    fill(hub, tmp_path)
    hub.add(REPO, "Draft-0.5B-Q8_0.gguf", header(tmp_path))
    planned = await plan(ours, REPO)
    assert planned.files[0].name == "Model-7B-Q4_K_M.gguf"
    assert [warning for warning in planned.warnings if "draft-0.5b" in warning]


@pytest.mark.parametrize(
    ("architecture", "keys", "task", "embeddings", "reranking"),
    [
        ("llama", {}, "text-generation", None, None),
        ("bert", {}, None, True, None),
        ("qwen3", {"pooling_type": 3}, None, True, None),
        ("qwen3", {}, "sentence-similarity", True, None),
        ("qwen3", {"pooling_type": 4}, "text-ranking", None, True),
    ],
)
async def test_what_a_model_is_made_for(
    hub: LoopbackHub,
    ours: Hub,
    tmp_path: Path,
    architecture: str,
    keys: dict[str, Any],
    task: str | None,
    embeddings: bool | None,
    reranking: bool | None,
):
    hub.add(REPO, "m.gguf", header(tmp_path, architecture, **keys))
    hub.describe(REPO, None, task)
    config = config_of(await plan(ours, REPO, judge=within(1 << 40)))
    assert (config.embeddings, config.reranking) == (embeddings, reranking)


# --- the text ---------------------------------------------------------------------------------------------------------------


async def test_the_text_says_what_it_is(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    fill(hub, tmp_path)
    hub.describe(REPO, {"license": "other", "license_name": "llama3.2"}, "text-generation")
    commit = hub.commit(REPO)
    planned = await plan(ours, REPO, judge=within(64 * MIB))
    assert planned.licence == "llama3.2"
    assert planned.yaml.replace("\n# ", " ") == (
        f"# From {hub.url}/{REPO}, commit {commit}, which main was when it was installed. "
        "Licence: llama3.2. Made for: text-generation. Size: 4 MiB in one file. "
        "Chosen: Q8_0 (4 MiB), the best quantisation that fits this machine's memory. "
        "Also there: Q4_K_M (2 MiB), Q2_K (1 MiB), F16 (8 MiB). "
        f"To have another one: ask for {REPO}:Q4_K_M, which is installed beside this one, or write its "
        "file's name after model: below. The file brings no chat template, so that chats are written in a common format. Where "
        "the model was trained for another one, say so: template: {preset: NAME}.\n"
        f"name: {REPO}\n"
        "description: Model 7B, Q8_0\n"
        "owned_by: someone\n"
        "backend: llama-cpp The weights, at a commit, so that they never change by themselves. @main in its place would follow "
        "the repo; every load then asks the Hub first.\n"
        "parameters:\n"
        f"  model: {REPO}/Model-7B-Q8_0.gguf@{commit}\n"
    )
    assert (await plan(ours, REPO, judge=within(64 * MIB))).yaml == planned.yaml


async def test_a_chat_template_of_the_file_needs_no_word(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    hub.add(REPO, "m.gguf", header(tmp_path, tokenizer__chat_template="{{ messages }}"))
    assert "template" not in (await plan(ours, REPO)).yaml


async def test_names_and_titles_of_others_cannot_break_the_text(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    odd = 'sub folder/it\'s: a "model" # {1} @v2.gguf'
    hub.add(REPO, odd, header(tmp_path, general__description="x\n y: z"))
    hub.describe(REPO, {"license": "mit\nname: evil"}, "x" * 500)
    planned = await plan(ours, f"{REPO}/{odd}@main", name="mine: [too]")
    config = config_of(planned)
    assert (config.name, planned.name, planned.licence) == ("mine: [too]", "mine: [too]", None)
    reference = parse_reference(config.parameters.model or "")
    assert reference is not None and reference.file == odd
    assert parse_reference(planned.files[0].uri) == reference
    with pytest.raises(ConfigError, match="at most 200 characters"):
        await plan(ours, REPO, name="n" * 201)


# --- formats --------------------------------------------------------------------------------------------------------------------


def folder(hub: LoopbackHub, config: dict[str, Any], *names: str, repo: str = REPO) -> None:
    hub.add(repo, "config.json", json.dumps(config).encode(), lfs=False)
    for name in names:
        hub.add(repo, name, f"{name} of {repo}".encode(), lfs=name.endswith((".safetensors", ".bin")))


def quantised(method: str) -> dict[str, Any]:
    return {"model_type": "llama", "quantization_config": {"quant_method": method}}


@pytest.mark.parametrize(
    ("config", "names", "format_", "backend"),
    [
        ({"model_type": "llama"}, ["model.safetensors"], "safetensors", "transformers"),
        (quantised("gptq"), ["model.safetensors"], "gptq", "transformers"),
        ({"model_type": "llama"}, ["model.safetensors", "quantize_config.json"], "gptq", "transformers"),
        (quantised("awq"), ["model.safetensors"], "awq", "transformers"),
        (quantised("exl2"), ["output.safetensors"], "exl2", "exllamav2"),
        (quantised("exl3"), ["model.safetensors"], "exl3", "exllamav2"),
        ({"model_type": "llama"}, ["openvino_model.xml", "openvino_model.bin"], "openvino", "openvino"),
        ({"model_type": "bert"}, ["model.safetensors", "modules.json"], "sentence-transformers", "transformers"),
    ],
)
async def test_a_format_that_nothing_here_loads(
    hub: LoopbackHub, ours: Hub, config: dict[str, Any], names: list[str], format_: str, backend: str
):
    folder(hub, config, *names)
    with pytest.raises(BackendMissing, match=f"holds {format_} weights, which need backend {backend}; .* in gguf") as caught:
        await plan(ours, REPO, judge=within(1 << 40), specs={"llama-cpp": specs()["llama-cpp"]})
    assert REPO in caught.value.message
    assert not [seen for seen in hub.seen("GET") if seen.name.endswith((".safetensors", ".bin"))]
    later = BackendSpec("later", "none:None", formats=(format_,), keys=frozenset({"embeddings"}))
    planned = await plan(ours, REPO, judge=within(1 << 40), specs={"later": later})
    assert planned.backend == "later"
    assert {file.name for file in planned.files} == {"config.json", *names}
    assert f"  model: {REPO}@{hub.commit(REPO)}\n" in planned.yaml
    assert ("embeddings: true\n" in planned.yaml) == (format_ == "sentence-transformers")
    assert planned.memory_bytes is not None


async def test_a_backend_whose_library_is_missing(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    folder(hub, {"model_type": "llama"}, "model.safetensors")
    lacking = BackendSpec("later", "none:None", formats=("safetensors",), requires=("no_such_module",), extra="later")
    with pytest.raises(
        BackendMissing, match=r"\(safetensors weights\): backend later needs no_such_module.*: llmgallery backends install later"
    ):
        await plan(ours, REPO, specs={"later": lacking})
    fill(hub, tmp_path, {"Q8_0": 1})
    assert (await plan(ours, REPO)).backend == "llama-cpp"


async def test_sentence_transformers_through_any_backend_for_safetensors(hub: LoopbackHub, ours: Hub):
    folder(hub, {"model_type": "bert"}, "model.safetensors", "modules.json", "1_Pooling/config.json", "onnx/model.onnx")
    later = BackendSpec("later", "none:None", formats=("safetensors",), keys=frozenset({"embeddings"}))
    planned = await plan(ours, REPO, specs={"later": later})
    assert "embeddings: true\n" in planned.yaml
    assert [file.name for file in planned.files] == [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
    ]


async def test_pickle_is_refused_unless_allowed(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    folder(hub, {"model_type": "llama"}, "pytorch_model.bin", "handler.py")
    later = {"later": BackendSpec("later", "none:None", formats=("pytorch",))}
    with pytest.raises(NotAllowed, match=r"pickle only \(pytorch_model\.bin\), which can run any code"):
        await plan(ours, REPO, specs=later)
    planned = await plan(ours, REPO, specs=later, allow_pickle=True)
    assert [file.name for file in planned.files] == ["config.json", "pytorch_model.bin"]
    fill(hub, tmp_path, {"Q8_0": 1})
    assert (await plan(ours, REPO)).files[0].name == "Model-7B-Q8_0.gguf"


# --- what cannot be ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["README.md", "notes.txt"], "holds no weights in a format that is known here"),
        (["adapter_config.json", "adapter_model.safetensors"], "is a LoRA adapter: .*lora_adapters"),
        (["model_index.json", "unet/model.safetensors"], "is made of parts for diffusers"),
        (["flux.safetensors"], "without the config.json"),
        (["a-Q8_0-00002-of-00002.gguf"], r"lacks parts of its model: a-Q8_0-00001-of-00002\.gguf"),
    ],
)
async def test_repos_without_a_model(hub: LoopbackHub, ours: Hub, names: list[str], said: str):
    for name in names:
        hub.add(REPO, name, b"x", lfs=False)
    with pytest.raises(HubNotFound, match=said) as caught:
        await plan(ours, REPO)
    assert caught.value.hints


async def test_what_is_not_there_is_told_with_what_is(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    fill(hub, tmp_path)
    folder(hub, {"model_type": "llama"}, "model.safetensors", repo="someone/plain")
    with pytest.raises(HubNotFound, match="did you mean") as caught:
        await plan(ours, f"{REPO}:Q4_K_S")
    assert caught.value.hints[0] == f"{REPO}:Q4_K_M"
    with pytest.raises(HubNotFound, match=r"has no file Model-7B-Q8_1\.gguf .*nearest: .*Q8_0") as caught:
        await plan(ours, f"{REPO}/Model-7B-Q8_1.gguf")
    assert f"{REPO}/Model-7B-Q8_0.gguf" in caught.value.hints
    with pytest.raises(HubNotFound, match="has no revision v9"):
        await plan(ours, f"{REPO}:Q8_0@v9")
    with pytest.raises(HubNotFound, match="there is no repo someone/else"):
        await plan(ours, "someone/else")
    with pytest.raises(HubNotFound, match="someone/plain has no GGUF file, and only those are chosen by a quantisation"):
        await plan(ours, "someone/plain:Q8_0")


async def test_gated_repos_and_no_network(hub: LoopbackHub, ours: Hub, cache: Path, tmp_path: Path):
    hub.add(REPO, "m-Q8_0.gguf", header(tmp_path), gated=True)
    with pytest.raises(HubGated, match=f"{REPO} is gated: accept its terms .* HF_TOKEN"):
        await plan(ours, REPO)
    offline = Hub(HubSettings(hub.url, cache, offline=True))
    before = len(hub.requests)
    with pytest.raises(HubOffline, match="HF_HUB_OFFLINE"):
        await plan(offline, REPO)
    assert len(hub.requests) == before
    await offline.aclose()


async def test_files_that_are_no_models(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    hub.add(REPO, "mmproj.gguf", header(tmp_path, "clip"))
    hub.add(REPO, "lora-Q8_0.gguf", header(tmp_path, general__type="adapter"))
    hub.add(REPO, "cut-Q2_K.gguf", header(tmp_path)[:-40])
    hub.add(REPO, "old.bin", b"lmgg" + bytes(100))
    hub.add(REPO, "notes.txt", b"hello", lfs=False)
    hub.add(REPO, "page-Q4_0.gguf", b"<html>")
    for what, said in [
        ("/mmproj.gguf", "is no model: it is a projector"),
        ("/lora-Q8_0.gguf", "is no model: it is of type adapter"),
        (":Q8_0", "is no model: it is of type adapter"),
        (":Q2_K", r"is cut: the Hub has [\d,]+ of [\d,]+ bytes"),
        ("/old.bin", "holds ggml weights"),
        ("/notes.txt", "is no weights file that we know"),
        (":Q4_0", "page-Q4_0.gguf: no GGUF file"),
    ]:
        with pytest.raises(BadWeights, match=said):
            await plan(ours, REPO + what)


async def test_a_repo_of_ten_thousand_files(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    data = header(tmp_path)
    hub.add(REPO, "m-Q8_0.gguf", data)
    held = hub.repos[REPO]
    files = held.commits[hub.commit(REPO)]
    files |= {f"sub/m-{number}-Q4_K_M.gguf": files["m-Q8_0.gguf"] for number in range(10_000)}
    planned = await plan(ours, f"{REPO}/m-Q8_0.gguf")
    assert len(planned.yaml) < 4000
    whole = await plan(ours, REPO, judge=within(1 << 40))
    assert len(whole.warnings[0]) < 500
    assert len(whole.yaml) < 4000


async def test_answers_that_are_no_listings(hub: LoopbackHub, ours: Hub, monkeypatch: pytest.MonkeyPatch):
    hub.add(REPO, "m-Q8_0.gguf", b"x" * 2000)
    monkeypatch.setattr("llmgallery.catalog.hub_client.MAX_ANSWER", 300)
    with pytest.raises(HubUnavailable, match="answers more than 0 MiB"):
        await plan(ours, REPO)
    monkeypatch.undo()
    hub.fail(200, name=REPO)
    with pytest.raises(HubUnavailable, match=re.escape("answered no listing of a repo")):
        await plan(ours, REPO)


async def test_planning_takes_only_so_long(hub: LoopbackHub, ours: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(hub, tmp_path, {"Q8_0": 1})
    monkeypatch.setattr(hub_plan, "PLAN_SECONDS", 0.3)
    release = hub.hold("Model-7B-Q8_0.gguf", after=10)
    with pytest.raises(HubUnavailable, match="could not be looked at within"):
        await plan(ours, REPO)
    release.set()
