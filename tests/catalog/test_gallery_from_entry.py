"""Entries become plans: pinned at the Hub, and with a YAML that the server reads without problems."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from functools import partial
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback_hub import LoopbackHub

from llmgallery.backends.loader import specs
from llmgallery.catalog.gallery.compose import compose
from llmgallery.catalog.gallery.entry import GalleryEntry
from llmgallery.catalog.gallery.read import read_index
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.install.addresses import address
from llmgallery.catalog.install.entry_files import MOST_FILES
from llmgallery.catalog.install.from_entry import Surroundings, plan_entry
from llmgallery.catalog.install.pin import pin
from llmgallery.catalog.install.plan import InstallPlan, PlannedFile
from llmgallery.catalog.reference import HubReference, parse_reference
from llmgallery.catalog.weights import malformed, recognise
from llmgallery.config.load import LoadedModel, parse_model
from llmgallery.config.outside import Outside
from llmgallery.config.suggest import model_levels
from llmgallery.core.errors import BackendMissing, ConfigError, GalleryError, HubGated, HubNotFound
from llmgallery.templates import jinja, presets
from llmgallery.templates.gotmpl import check_go

REPO = "someone/Owl-GGUF"
BYTES = b"GGUF" + bytes(100)
SHA = hashlib.sha256(BYTES).hexdigest()
OTHER = b"GGUF" + bytes(200)
WRONG = "f" * 64

OUTSIDE = Outside(jinja.check, presets.names(), recognise, malformed, go_template=check_go)


@pytest.fixture
def around(ours: Hub, tmp_path: Path) -> Surroundings:
    return Surroundings(specs(), partial(pin, ours), None, OUTSIDE, tmp_path)


def entry(text: str) -> GalleryEntry:
    """`name: owl` and what the test adds."""
    found = read_index(f"name: owl\n{text}".encode(), "wood.yaml", "wood")
    assert not found.problems, found.problems
    return found.entries["owl"]


async def planned(around: Surroundings, text: str, base: bytes | None = None, **given) -> InstallPlan:
    one = entry(text)
    return await plan_entry(one, compose(one, base), around, **given)


def loaded(plan: InstallPlan, around: Surroundings) -> LoadedModel:
    model = parse_model(plan.yaml.encode(), around.folder / "owl.yaml", around.specs, around.outside)
    assert not model.problems, model.problems
    assert model.config is not None and model.name == plan.name and model.backend == plan.backend
    return model


# --- the Hub's files ---------------------------------------------------------------------------------------------------------


async def test_an_entry_becomes_a_pinned_plan(hub: LoopbackHub, around: Surroundings):
    hub.add(REPO, "owl.Q4_K_M.gguf", BYTES)
    commit = hub.add(REPO, "proj/mmproj.gguf", OTHER)
    plan = await planned(
        around,
        f"""
license: apache-2.0
aliases: [night-bird]
urls: [https://example.org/owl]
description: |
  # Owl

  > A quotation.

  Sees at night. Hears well.
overrides:
  backend: llama
  context_size: 4096
  mmproj: llama-cpp/mmproj/owl.gguf
  parameters: {{temperature: 0.7, model: llama-cpp/models/owl.gguf}}
files:
- {{filename: llama-cpp/models/owl.gguf, sha256: {SHA}, uri: "huggingface://{REPO}/owl.Q4_K_M.gguf"}}
- {{filename: llama-cpp/mmproj/owl.gguf, uri: "https://huggingface.co/{REPO}/resolve/main/proj/mmproj.gguf?download=true"}}
""",
    )
    weights, projector = f"{REPO}/owl.Q4_K_M.gguf@{commit}", f"{REPO}/proj/mmproj.gguf@{commit}"
    assert plan.files == (
        PlannedFile(uri=f"hf://{weights}", name="owl.Q4_K_M.gguf", sha256=SHA, size=len(BYTES)),
        PlannedFile(uri=f"hf://{projector}", name="proj/mmproj.gguf", sha256=hashlib.sha256(OTHER).hexdigest(), size=len(OTHER)),
    )
    assert (plan.name, plan.source, plan.backend, plan.licence) == ("owl", "wood@owl", "llama-cpp", "apache-2.0")
    assert plan.size == len(BYTES) + len(OTHER)
    config = loaded(plan, around).config
    assert config is not None
    assert (config.weights, config.mmproj) == (weights, projector)
    assert (config.context_size, config.parameters.temperature) == (4096, 0.7)
    assert (config.aliases, config.description) == (["night-bird"], "Sees at night. Hears well.")
    head = plan.yaml.partition("\nname: ")[0]
    assert "wood@owl" in head and "apache-2.0" in head and "https://example.org/owl" in head
    assert [line.partition(":")[0] for line in plan.yaml.splitlines() if line[0] not in "# "][:5] == [
        "name",
        "aliases",
        "description",
        "backend",
        "parameters",
    ]
    assert hub.bytes_sent == {}, "nothing is fetched by planning"


async def test_the_same_entry_gives_the_same_text(hub: LoopbackHub, around: Surroundings):
    hub.add(REPO, "owl.gguf", BYTES)
    text = f"overrides: {{parameters: {{model: owl.gguf}}}}\nfiles: [{{uri: 'hf://{REPO}/owl.gguf'}}]"
    assert await planned(around, text) == await planned(around, text)


async def test_a_plan_has_the_name_that_was_asked_for(hub: LoopbackHub, around: Surroundings):
    hub.add(REPO, "owl.gguf", BYTES)
    text = f"overrides: {{name: base, parameters: {{model: owl.gguf}}}}\nfiles: [{{uri: 'hf://{REPO}/owl.gguf'}}]"
    plan = await planned(around, text, name="my/owl:1")
    assert plan.name == "my/owl:1" and loaded(plan, around).name == "my/owl:1" and plan.source == "wood@owl"


async def test_other_bytes_on_the_hub_are_refused_before_any_download(hub: LoopbackHub, around: Surroundings):
    old = hub.add(REPO, "owl.gguf", BYTES)
    new = hub.add(REPO, "owl.gguf", OTHER)
    text = f"overrides: {{parameters: {{model: owl.gguf}}}}\nfiles: [{{uri: 'hf://{REPO}/owl.gguf', sha256: {SHA}}}]\n"
    with pytest.raises(ConfigError) as caught:
        await planned(around, text)
    assert "wood.yaml:1:1: wood@owl: files: the sha256 of owl.gguf" in caught.value.message
    assert all(what in caught.value.message for what in (SHA, hashlib.sha256(OTHER).hexdigest(), new))
    plan = await planned(around, f"{text}revision: {old}\n")
    assert plan.files[0].uri == f"hf://{REPO}/owl.gguf@{old}" and plan.files[0].sha256 == SHA


async def test_a_revision_is_that_of_the_weights_repo(hub: LoopbackHub, around: Surroundings):
    hub.add(REPO, "owl.gguf", BYTES)
    hub.add(REPO, "owl.gguf", OTHER, revision="v2")
    hub.add(REPO, "draft.gguf", BYTES, revision="v2")
    draft = hub.add("someone/Chick-GGUF", "chick.gguf", BYTES)
    text = f"""
revision: v2
overrides: {{parameters: {{model: owl.gguf}}, draft_model: chick.gguf, lora_adapters: [lora.gguf, 'hf://{REPO}/owl.gguf@main']}}
files:
- {{filename: chick.gguf, uri: 'hf://someone/Chick-GGUF/chick.gguf'}}
- {{uri: 'hf://{REPO}/owl.gguf'}}
- {{filename: lora.gguf, uri: 'hf://{REPO}/draft.gguf'}}
"""
    config = loaded(await planned(around, text), around).config
    assert config is not None
    second = hub.repos[REPO].refs["v2"]
    assert config.weights == f"{REPO}/owl.gguf@{second}"
    assert config.draft_model == f"someone/Chick-GGUF/chick.gguf@{draft}"
    assert config.lora_adapters[0] == f"{REPO}/draft.gguf@{second}"


async def test_a_repo_that_is_gated_is_not_the_entry_s_fault(hub: LoopbackHub, around: Surroundings):
    hub.add(REPO, "owl.gguf", BYTES, gated=True)
    text = f"overrides: {{parameters: {{model: owl.gguf}}}}\nfiles: [{{filename: owl.gguf, uri: 'hf://{REPO}/owl.gguf'}}]"
    with pytest.raises(HubGated) as caught:
        await planned(around, text)
    assert caught.value.message.startswith(f"wood@owl: {REPO} is gated: accept its terms")


async def test_what_the_hub_does_not_have_is_told_with_the_entry(hub: LoopbackHub, around: Surroundings):
    hub.add(REPO, "owl.gguf", BYTES)
    text = f"overrides: {{parameters: {{model: owl.gguf}}}}\nfiles: [{{filename: owl.gguf, uri: 'hf://{REPO}/oul.gguf'}}]"
    with pytest.raises(HubNotFound) as caught:
        await planned(around, text)
    assert caught.value.message.startswith("wood.yaml:1:1: wood@owl: ")


async def test_a_lazy_hub_id_is_pinned_too(hub: LoopbackHub, around: Surroundings):
    commit = hub.add(REPO, "sub/owl.Q4_K_M.gguf", BYTES)
    for written in (f"{REPO}/sub/owl.Q4_K_M.gguf", f"huggingface://{REPO}/sub/owl.Q4_K_M.gguf"):
        plan = await planned(around, f"overrides: {{parameters: {{model: '{written}'}}}}")
        config = loaded(plan, around).config
        assert config is not None and config.weights == f"{REPO}/sub/owl.Q4_K_M.gguf@{commit}"
        assert [file.sha256 for file in plan.files] == [SHA]


async def test_a_split_model_comes_whole(hub: LoopbackHub, around: Surroundings):
    """Also when the entry lists, and names, only its first part, and calls it otherwise."""
    names = [f"q/owl-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for name in names:
        commit = hub.add(REPO, name, name.encode())
    whole = "\n".join(f"- {{filename: 'x/{name}', uri: 'huggingface://{REPO}/{name}'}}" for name in names)
    part = f"- {{filename: owl.gguf, uri: 'https://huggingface.co/{REPO}/resolve/main/{names[0]}'}}"
    for model, files in ((f"x/{names[0]}", whole), ("owl.gguf", part)):
        plan = await planned(around, f"overrides: {{backend: llama-cpp, parameters: {{model: '{model}'}}}}\nfiles:\n{files}\n")
        assert [file.uri for file in plan.files] == [f"hf://{REPO}/{name}@{commit}" for name in names]
        config = loaded(plan, around).config
        assert config is not None and config.weights == f"{REPO}/{names[0]}@{commit}"
        assert not plan.warnings


# --- files from elsewhere ----------------------------------------------------------------------------------------------------


async def test_other_files_go_to_the_store_by_digest(around: Surroundings):
    text = f"""
overrides: {{parameters: {{model: a/owl.gguf}}, lora_adapter: b/owl.gguf}}
files:
- {{filename: a/owl.gguf, uri: 'https://example.org/1/owl.gguf', sha256: {SHA}, size: 104}}
- {{filename: b/owl.gguf, uri: 'github:someone/owls/weights/owl (new).gguf@v1', sha256: {WRONG}, size: 1GB}}
"""
    plan = await planned(around, text)
    assert plan.files == (
        PlannedFile(
            uri="https://example.org/1/owl.gguf",
            name="owl.gguf",
            path=f".files/{SHA}/owl.gguf",
            sha256=SHA,
            size=104,
            inside=True,
        ),
        PlannedFile(
            uri="https://raw.githubusercontent.com/someone/owls/v1/weights/owl (new).gguf",
            name="owl.gguf",
            path=f".files/{WRONG}/owl.gguf",
            sha256=WRONG,
            size=10**9,
            inside=True,
        ),
    )
    config = loaded(plan, around).config
    assert config is not None and config.weights == f".files/{SHA}/owl.gguf"
    assert config.adapters == ((f".files/{WRONG}/owl.gguf", 1.0),)


async def test_parts_of_a_split_model_from_elsewhere_lie_together(around: Surroundings):
    parts = [f"- {{uri: 'https://example.org/owl-0000{n}-of-00002.gguf', sha256: {str(n) * 64}, size: 9}}" for n in (1, 2)]
    text = "overrides: {parameters: {model: owl-00001-of-00002.gguf}}\nfiles:\n" + "\n".join(parts)
    plan = await planned(around, text)
    assert [file.path for file in plan.files] == [f".files/{'1' * 64}/owl-0000{n}-of-00002.gguf" for n in (1, 2)]
    assert [file.sha256 for file in plan.files] == ["1" * 64, "2" * 64]


async def test_a_model_may_be_an_address(around: Surroundings, hub: LoopbackHub):
    hub.add(REPO, "owl.gguf", BYTES, lfs=False)
    where = f"{hub.url.replace('127.0.0.1', 'localhost')}/{REPO}/resolve/main/owl.gguf"
    plan = await planned(around, f"overrides: {{backend: llama-cpp, parameters: {{model: '{where}'}}}}")
    (file,) = plan.files
    assert file.uri == where and file.path is not None and file.path.startswith(".files/uri-") and file.size == len(BYTES)
    config = loaded(plan, around).config
    assert config is not None and config.weights == file.path


@pytest.mark.parametrize(
    "uri, found",
    [
        ("huggingface://a/b/c.gguf", HubReference("a/b", "c.gguf")),
        ("huggingface://a/b@v1/d/c.gguf", HubReference("a/b", "d/c.gguf", revision="v1")),
        ("hf://a/b/c.gguf@v1", HubReference("a/b", "c.gguf", revision="v1")),
        ("hf.co/a/b/resolve/main/c.gguf", HubReference("a/b", "c.gguf")),
        ("https://huggingface.co/a/b/resolve/v1/d/c.gguf?download=true", HubReference("a/b", "d/c.gguf", revision="v1")),
        ("https://huggingface.co/datasets/a/b/resolve/main/c", "https://huggingface.co/datasets/a/b/resolve/main/c"),
        ("https://example.org/c.gguf", "https://example.org/c.gguf"),
        ("http://127.0.0.1:8000/c.gguf", "http://127.0.0.1:8000/c.gguf"),
        ("github:a/b/c/d.gguf@main", "https://raw.githubusercontent.com/a/b/main/c/d.gguf"),
        ("github://a/b/d.gguf", "https://raw.githubusercontent.com/a/b/main/d.gguf"),
    ],
)
def test_addresses(uri, found):
    assert address(uri) == found


@pytest.mark.parametrize(
    "uri, said",
    [
        ("http://example.org/c.gguf", "is not https"),
        ("ftp://example.org/c.gguf", "no address that is read here"),
        ("ollama://gemma:2b", "no address that is read here"),
        ("oci://quay.io/a/b", "no address that is read here"),
        ("file:///etc/passwd", "only galleries of this machine"),
        ("/etc/passwd", "no address that is read here"),
        ("https://", "no address that is read here"),
        ("https://user:secret@example.org/c", "holds a password"),
        ("https://[/c", "is no address"),
        (r"https://example.org/a\nb", "holds control characters"),
        ("huggingface://a", "is no Hub reference"),
        ("hf://a/b/../../c", "is no path inside a Hub repo"),
    ],
)
async def test_what_is_no_address_is_refused_with_the_entry(around: Surroundings, uri, said):
    with pytest.raises(ConfigError) as caught:
        await planned(around, f'overrides: {{parameters: {{model: w.gguf}}}}\nfiles: [{{filename: w.gguf, uri: "{uri}"}}]')
    assert caught.value.message.startswith("wood.yaml:1:1: wood@owl: files: ") and said in caught.value.message
    assert "secret" not in caught.value.message


def test_files_of_this_machine_are_for_its_own_galleries():
    assert address("file:///srv/w.gguf", local=True) == "file:///srv/w.gguf"
    with pytest.raises(ConfigError):
        address("file://elsewhere/srv/w.gguf", local=True)


@pytest.mark.parametrize("name", ["../w.gguf", "a/../../w.gguf", "/etc/w.gguf", "~/w.gguf", "a\\..\\w.gguf", "C:/w.gguf"])
async def test_no_name_leads_out_of_the_folder(around: Surroundings, name):
    for text in (
        f"overrides: {{parameters: {{model: w.gguf}}}}\nfiles: [{{filename: '{name}', uri: 'https://a/w', size: 1}}]",
        f"overrides: {{backend: llama-cpp, parameters: {{model: '{name}'}}}}",
        f"overrides: {{parameters: {{model: w.gguf}}, draft_model: '{name}'}}\nfiles: [{{uri: 'https://a/w.gguf', size: 1}}]",
    ):
        with pytest.raises(ConfigError, match="leads out of the models folder"):
            await planned(around, text)


# --- which files -------------------------------------------------------------------------------------------------------------


async def test_weights_and_projector_that_no_key_names(around: Surroundings):
    text = f"""
overrides: {{backend: llama-cpp}}
files:
- {{uri: 'https://a/owl.gguf', sha256: {SHA}, size: 1}}
- {{uri: 'https://a/owl-mmproj-f16.gguf', sha256: {WRONG}, size: 1}}
- {{uri: 'https://a/README.md', size: 1}}
"""
    plan = await planned(around, text)
    assert [file.name for file in plan.files] == ["owl.gguf", "owl-mmproj-f16.gguf"]
    config = loaded(plan, around).config
    assert config is not None and config.mmproj == f".files/{WRONG}/owl-mmproj-f16.gguf"
    assert plan.warnings[:3] == (
        "parameters.model is not set; taken to be owl.gguf, the only weights among the files",
        "mmproj is not set; taken to be owl-mmproj-f16.gguf, the only projector among the files",
        "files: README.md is not downloaded, as no key of the model names it",
    )


async def test_a_name_that_is_none_of_the_files(around: Surroundings):
    files = f"files: [{{filename: llama-cpp/models/owl.gguf, uri: 'https://a/w', sha256: {SHA}, size: 1}}]"
    plan = await planned(around, f"overrides: {{parameters: {{model: owl.gguf}}}}\n{files}")
    assert plan.warnings == ("parameters.model: owl.gguf is none of the files; taken to be llama-cpp/models/owl.gguf",)
    with pytest.raises(
        ConfigError, match=r"parameters\.model: oul\.gguf is none of the entry's files.*llama-cpp/models/owl\.gguf"
    ):
        await planned(around, f"overrides: {{parameters: {{model: oul.gguf}}}}\n{files}")
    with pytest.raises(ConfigError, match=r"no weights: parameters\.model is missing"):
        await planned(around, "overrides: {backend: llama-cpp}")


async def test_a_whole_repo_is_the_hub_planners(hub: LoopbackHub, around: Surroundings):
    expanded = PlannedFile(uri=f"hf://{REPO}/owl.Q8_0.gguf@{'a' * 40}", name="owl.Q8_0.gguf", sha256=SHA, size=1)

    async def expand(reference: HubReference) -> list[PlannedFile]:
        assert reference == HubReference(REPO, quant="Q8_0")
        return [expanded]

    text = f"overrides: {{backend: llama-cpp, parameters: {{model: '{REPO}:Q8_0'}}}}"
    plan = await planned(Surroundings(specs(), around.pin, expand, OUTSIDE), text)
    assert plan.files == (expanded,)
    config = loaded(plan, around).config
    assert config is not None and config.weights == f"{REPO}/owl.Q8_0.gguf@{'a' * 40}"
    with pytest.raises(ConfigError, match="names no file"):
        await planned(Surroundings(specs(), around.pin, None, OUTSIDE), text)


async def test_files_are_bounded(around: Surroundings):
    files = "\n".join(f"- {{uri: 'https://a/{number}.gguf', size: 1}}" for number in range(MOST_FILES + 1))
    with pytest.raises(ConfigError, match="501 files; at most 500"):
        await planned(around, f"overrides: {{parameters: {{model: 1.gguf}}}}\nfiles:\n{files}")


async def test_a_requests_checksum_is_looked_at(around: Surroundings):
    one = entry("overrides: {parameters: {model: w.gguf}}\nfiles: [{uri: 'https://a/w.gguf', size: 1}]")
    composed = compose(one, None)
    for digest in ("12", "x" * 64):
        bad = [type(file)(file.filename, file.uri, digest, 1) for file in composed.files]
        with pytest.raises(ConfigError, match="64 hexadecimal digits"):
            await plan_entry(one, type(composed)(composed.config, tuple(bad)), around)


# --- who serves it -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["piper", "vllm", "diffusers", "openvino", "something-new"])
async def test_a_missing_backend_is_named_before_anything_is_asked(hub: LoopbackHub, around: Surroundings, backend):
    with pytest.raises(BackendMissing) as caught:
        await planned(around, f"overrides: {{backend: {backend}, parameters: {{model: {REPO}}}}}")
    assert f"wood.yaml:1:1: wood@owl needs the backend {backend}" in caught.value.message
    assert not hub.requests


async def test_no_backend_is_told_by_the_files(around: Surroundings):
    plan = await planned(around, "overrides: {parameters: {model: w.gguf}}\nfiles: [{uri: 'https://a/w.gguf', size: 1}]")
    assert plan.backend == "llama-cpp" and loaded(plan, around)
    with pytest.raises(ConfigError, match="names no backend, and its files do not tell one"):
        await planned(around, f"overrides: {{parameters: {{model: {REPO}}}}}")


async def test_a_backend_without_weights_needs_none(around: Surroundings):
    plan = await planned(around, "overrides: {backend: echo, options: {reply: hello}}")
    assert plan.files == () and loaded(plan, around).backend == "echo"


# --- its keys ----------------------------------------------------------------------------------------------------------------

FILE = "files: [{uri: 'https://a/w.gguf', size: 1}]\n"

GO = b"""
config_file: |
    backend: llama-cpp
    parameters: {model: w.gguf, context_size: 8192, voice: amy}
    template:
        chat: |
            {{.Input -}}
            <|im_start|>assistant
        chat_message: "<|im_start|>{{ .RoleName }}\\n{{.Content }}  \\n\\t<|im_end|>"
        completion: |2
              {{.Input}}
        edit: ""
"""


async def test_go_templates_are_kept_as_they_are(around: Surroundings):
    plan = await planned(around, f"url: base.yaml\n{FILE}", GO)
    model = loaded(plan, around)
    assert model.config is not None
    template = model.config.template
    assert template.chat == "{{.Input -}}\n<|im_start|>assistant\n"
    assert template.chat_message == "<|im_start|>{{ .RoleName }}\n{{.Content }}  \n\t<|im_end|>"
    assert template.completion == "    {{.Input}}\n" and template.edit == ""
    assert (template.use_tokenizer_template, template.preset) == (None, None)
    assert not [warning for warning in (*plan.warnings, *map(str, model.warnings)) if "template" in warning]


async def test_a_go_template_that_does_not_parse_is_told_before_anything_is_fetched(around: Surroundings):
    text = f"overrides: {{parameters: {{model: w.gguf}}, template: {{chat: '{{{{if}}}}'}}}}\n{FILE}"
    with pytest.raises(ConfigError, match="the template does not parse"):
        await planned(around, text)
    text = f"overrides: {{parameters: {{model: w.gguf}}, template: {{completion: '{{{{-.Input}}}}'}}}}\n{FILE}"
    (told,) = [warning for warning in (await planned(around, text)).warnings if "template" in warning]
    assert told.startswith("template.completion: the template does not parse") and told.endswith("without it")


async def test_what_localai_drops_is_lifted_or_told(around: Surroundings):
    plan = await planned(around, f"url: base.yaml\n{FILE}", GO)
    config = loaded(plan, around).config
    assert config is not None and config.context_size == 8192
    assert "parameters.context_size has no meaning there, and is taken as context_size" in plan.warnings
    assert "parameters.voice: not used: it chooses a voice, and no backend here speaks" in plan.warnings
    assert '# Not used here: parameters.voice = "amy"\n' in plan.yaml


async def test_draft_weights_that_the_backend_cannot_use_are_left_out(around: Surroundings):
    text = """
overrides:
  draft_model: d.gguf
  parameters: {model: w.gguf}
  options: ["spec_type:draft-mtp", "spec_n_max:6"]
files: [{uri: 'https://a/w.gguf', size: 1}, {uri: 'https://a/d.gguf', size: 1}]
"""
    plan = await planned(around, text)
    config = loaded(plan, around).config
    assert config is not None and config.draft_model is None and [file.name for file in plan.files] == ["w.gguf"]
    assert "draft_model: d.gguf is left out: backend llama-cpp has no spec_type draft-mtp" in plan.warnings
    assert "# draft_model: d.gguf is left out" in plan.yaml


@pytest.mark.parametrize(
    "overrides, said",
    [
        ("parameters: {model: w.gguf, temperature: hot}", "parameters.temperature: expected a number"),
        ("parameters: {model: w.gguf}, context_size: -1", "context_size: -1 is out of range"),
        ("parameters: {model: w.gguf}, template: {preset: chatm}", "did you mean chatml?"),
        ("parameters: {model: w.gguf}, template: {chat_template: '{% if'}", "the template does not parse"),
    ],
)
async def test_wrong_values_are_told_with_the_entry_and_the_key(around: Surroundings, overrides, said):
    with pytest.raises(ConfigError) as caught:
        await planned(around, f"overrides: {{{overrides}}}\n{FILE}")
    assert caught.value.message.startswith("wood.yaml:1:1: wood@owl: ") and said in caught.value.message
    assert caught.value.hints


async def test_texts_cannot_break_out_of_their_comment(around: Surroundings):
    text = (
        'license: "mit\\nbackend: evil"\ndescription: "# only a heading"\n'
        + f"overrides: {{parameters: {{model: w.gguf}}}}\n{FILE}"
    )
    plan = await planned(around, text)
    config = loaded(plan, around).config
    assert config is not None and config.backend == "llama-cpp" and config.description is None


async def test_long_descriptions_are_cut_at_a_sentence(around: Surroundings):
    text = f"description: {'Sees at night. ' * 40}\noverrides: {{parameters: {{model: w.gguf}}}}\n{FILE}"
    config = loaded(await planned(around, text), around).config
    assert config is not None and config.description is not None
    assert len(config.description) <= 200 and config.description.endswith("Sees at night.")


TEXTS = st.sampled_from(["w.gguf", "", "a/b", "hf://a/b/c.gguf", "x: y", "\u2028#", "llama-cpp", "{{.Input}}", "on", "0x1", "\0"])
TEMPLATE_KEYS = st.sampled_from(sorted(model_levels()["template"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(TEXTS | st.sampled_from(sorted(model_levels()["template"])), inner)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from([
    "parameters", "model", "template", "options", "draft_model", "lora_adapters", "mmproj", "function", "aliases", "name",
    "backend", "download_files", "description", "known_usecases", "on_unsupported", "nonsense", "temperature", "context_size",
])  # fmt: skip


@given(st.dictionaries(KEYS, JSON, max_size=4))
def test_no_request_is_too_strange(overrides):
    """Whatever its overrides: a plan whose text is read, or an error that says what is wrong."""

    async def known(uri: str, inside: bool = False) -> PlannedFile:
        reference = parse_reference(uri)
        if reference is None:
            return PlannedFile(uri=uri, name="x", size=1)
        return PlannedFile(uri=f"hf://{reference.repo}/{reference.file}@{'a' * 40}", name=str(reference.file), size=1)

    around = Surroundings(specs(), known, None, OUTSIDE)
    one = entry(f"overrides: {{backend: llama-cpp, parameters: {{model: w.gguf}}}}\n{FILE}")
    try:
        plan = asyncio.run(plan_entry(one, compose(one, None, overrides), around))
    except GalleryError as error:
        assert error.message
    else:
        loaded(plan, around)


ELSEWHERE = "overrides: {backend: openai, options: {base_url: 'https://evil.example/v1', api_key_env: HF_TOKEN}}\n"


async def given_by(
    around: Surroundings, text: str, source: str, url: str | None = None, base: bytes | None = None
) -> InstallPlan:
    one = msgspec.structs.replace(entry(text), source=source, url=url)
    return await plan_entry(one, compose(one, base), around)


@pytest.mark.parametrize("source", ["https://example.org/index.yaml", "hf://owner/gallery", "github:owner/repo/index.yaml@main"])
async def test_no_gallery_of_others_says_where_keys_of_this_machine_go(around: Surroundings, source: str) -> None:
    for text in (ELSEWHERE, "overrides: {backend: openai}\n", "overrides: {backend: openai, options: ['base_url:http://a']}\n"):
        with pytest.raises(ConfigError, match=r"a model elsewhere .* write a model file of your own"):
            await given_by(around, text, source)
    with pytest.raises(ConfigError, match="a model elsewhere"):
        await given_by(around, "", "wood.yaml", source, f"config_file: {{{ELSEWHERE[12:-2]}}}".encode())
    plan = await given_by(around, ELSEWHERE, "/srv/gallery/index.yaml")
    assert "api_key_env: HF_TOKEN" in plan.yaml and plan.backend == "openai"


@pytest.mark.parametrize(
    "said", ["trust_remote_code: true", "options: {Trust-Remote-Code: true}", "options: ['trust_remote_code:true']"]
)
async def test_no_gallery_of_others_has_code_run(around: Surroundings, said: str) -> None:
    text = f"overrides: {{backend: echo, {said}}}\n"
    with contextlib.suppress(ConfigError):  # echo has no such option: what matters is that it is not there
        plan = await given_by(around, text, "https://example.org/index.yaml")
        config = "\n".join(line for line in plan.yaml.splitlines() if not line.startswith("#"))
        assert "code" not in config and "trust_remote_code is left out" in " ".join(plan.warnings)
        return
    pytest.fail("it is refused, though nothing is left of it")
