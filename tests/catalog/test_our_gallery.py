from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from llmgallery.backends.base import BackendSpec
from llmgallery.backends.loader import specs
from llmgallery.catalog.gallery.compose import compose
from llmgallery.catalog.gallery.entry import GalleryEntry
from llmgallery.catalog.gallery.quantisation import quantisation
from llmgallery.catalog.gallery.read import read_index
from llmgallery.catalog.gallery.search import Contents
from llmgallery.catalog.install.from_entry import Surroundings, plan_entry
from llmgallery.catalog.install.plan import InstallPlan, PlannedFile
from llmgallery.catalog.reference import HubReference, parse_reference
from llmgallery.config.load import parse_model
from llmgallery.config.outside import Outside
from llmgallery.core.errors import BackendMissing
from llmgallery.paths import builtin
from llmgallery.templates import presets
from llmgallery.templates.jinja import compile_template

NAME = "llmgallery"
COMMIT = "c" * 40
LICENCES = frozenset({
    "apache-2.0", "mit", "gemma", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "lfm1.0", "falcon-llm-license",
    "health-ai-developer-foundations", "nvidia-open-model-license", "deepseek-license", "qwen", "qwen-research", "exaone", "inf",
    "mnpl", "cc-by-nc-4.0", "other",
})  # fmt: skip
PROBE = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]


def read_all() -> dict[str, GalleryEntry]:
    """All entries by name; a name twice is a fault, and so is anything that is not read."""
    found: dict[str, GalleryEntry] = {}
    for path in sorted(builtin("gallery").glob("*.yaml")):
        index = read_index(path.read_bytes(), path.name, NAME)
        assert index.problems == ()
        assert not found.keys() & index.entries.keys(), path
        found |= index.entries
    return found


ENTRIES: Mapping[str, GalleryEntry] = read_all()
CHATS = [entry for entry in ENTRIES.values() if "chat" in entry.tags]
FOLDERS = [entry for entry in ENTRIES.values() if entry.overrides["backend"] == "transformers"]
HERE = [entry for entry in ENTRIES.values() if entry.overrides["backend"] == "llama-cpp"]


def reference(uri: str) -> HubReference:
    found = parse_reference(uri)
    assert found is not None
    return found


async def pin(uri: str, *, inside: bool = False) -> PlannedFile:
    """As the Hub would, of every file that exists."""
    wanted = reference(uri)
    assert wanted.file is not None
    commit = wanted.revision if wanted.pinned else COMMIT
    return PlannedFile(uri=f"hf://{wanted.repo}/{wanted.file}@{commit}", name=wanted.file.rpartition("/")[2])


async def expand(wanted: HubReference) -> list[PlannedFile]:
    """What a repo without GGUF files means."""
    assert wanted.whole is not None
    files = [HubReference(wanted.repo, name, revision=COMMIT) for name in ("config.json", "model.safetensors")]
    return [PlannedFile(uri=f"hf://{file}", name=file.file or "") for file in files]


async def planned(entry: GalleryEntry, known: Mapping[str, BackendSpec] | None = None) -> InstallPlan:
    around = Surroundings(known or specs(), pin, expand, outside=Outside(presets=presets.names()))
    return await plan_entry(entry, compose(entry, None), around)


def test_there_is_something_for_everybody() -> None:
    bases = [entry for entry in CHATS if ":" not in entry.name]
    assert len(bases) >= 120
    assert len([entry for entry in CHATS if entry.variants]) >= 25
    kinds = Counter(tag for entry in ENTRIES.values() for tag in entry.tags)
    assert min(kinds[tag] for tag in ("embeddings", "reranking", "vision", "draft", "transformers", "code", "moe", "small")) >= 3


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_says_what_it_is(name: str) -> None:
    entry = ENTRIES[name]
    assert entry.warnings == ()
    assert len(entry.description) > 10
    assert entry.licence in LICENCES
    assert entry.tags
    assert all(url.startswith("https://") for url in entry.urls)
    assert any(url.startswith("https://huggingface.co/") for url in entry.urls)


@pytest.mark.parametrize("name", ENTRIES)
def test_files_are_of_the_hub_and_safe(name: str) -> None:
    for file in ENTRIES[name].files:
        assert file.uri.startswith("huggingface://")
        where = reference(file.uri)
        assert where.file is not None
        assert where.file.endswith(".gguf")
        assert where.revision == "main" or where.pinned
        assert re.fullmatch(r"(?:[\w.-]+/)?[\w.-]+\.gguf", file.filename)
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)


def test_the_example_in_the_docs_is_an_entry() -> None:
    text = (builtin("gallery").parent / "docs" / "gallery.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (shown,) = read_index(example.encode(), "gallery.md", NAME).entries.values()
    entry = ENTRIES[shown.name]
    kept = {"urls": entry.urls, "source": entry.source, "place": entry.place}
    assert shown.warnings == ()
    assert set(shown.urls) < set(entry.urls)
    assert msgspec.structs.replace(shown, **kept) == entry


def test_a_filename_means_one_file_only() -> None:
    named: dict[str, set[tuple[str, str | None]]] = {}
    for entry in ENTRIES.values():
        for file in entry.files:
            named.setdefault(file.filename, set()).add((file.uri, file.sha256))
    assert {name: files for name, files in named.items() if len(files) > 1} == {}


def test_a_size_is_that_of_the_files() -> None:
    for entry in ENTRIES.values():
        sizes = [file.size for file in entry.files if file.size is not None]
        assert entry.size == (sum(sizes) if sizes and len(sizes) == len(entry.files) else None), entry.name


def test_variants_and_aliases_lead_somewhere() -> None:
    aliases = Counter(alias for entry in ENTRIES.values() for alias in entry.aliases)
    assert not aliases.keys() & ENTRIES.keys()
    assert max(aliases.values()) == 1
    offered = {variant for entry in ENTRIES.values() for variant in entry.variants}
    assert offered <= ENTRIES.keys()
    assert {name for name in ENTRIES if ":" in name} == offered


@pytest.mark.parametrize("name", [name for name, entry in ENTRIES.items() if entry.variants])
def test_a_quantisation_is_found_by_its_name(name: str) -> None:
    contents = Contents({NAME: ENTRIES})
    entry = ENTRIES[name]
    for variant in entry.variants:
        other = ENTRIES[variant]
        assert variant.startswith(f"{name}:")
        assert variant.rpartition(":")[2].upper().replace("-", "_") == quantisation(other)
        found = contents.find(variant.upper())
        assert found is not None
        assert found.entry is other
        assert {file.uri for file in other.files} != {file.uri for file in entry.files}
        assert other.overrides.get("template") == entry.overrides.get("template")
    own = contents.find(f"{name}:{quantisation(entry)}")
    assert own is not None
    assert own.entry is entry


@pytest.mark.parametrize("entry", CHATS, ids=lambda entry: entry.name)
def test_its_format_makes_a_prompt_of_a_chat(entry: GalleryEntry) -> None:
    preset = presets.get(entry.overrides["template"]["preset"])
    variables = {"messages": PROBE, "add_generation_prompt": True, "bos_token": "<s>", "eos_token": "</s>"}
    prompt = compile_template(preset.chat_template).render(variables)
    places = [prompt.index(message["content"]) for message in PROBE]
    assert places == sorted(places)
    assert not prompt.endswith(PROBE[-1]["content"])


@pytest.mark.parametrize("entry", HERE, ids=lambda entry: entry.name)
async def test_a_plan_is_made_of_it(entry: GalleryEntry) -> None:
    plan = await planned(entry)
    loaded = parse_model(plan.yaml.encode(), Path("x.yaml"), specs(), Outside(presets=presets.names()))
    assert loaded.config is not None
    assert loaded.name == entry.name
    assert plan.backend == "llama-cpp"
    assert len(plan.files) == len(entry.files)
    weights = reference(str(loaded.config.weights))
    assert weights.pinned
    assert weights.file == reference(entry.files[0].uri).file
    heard = {warning.key for warning in loaded.warnings}
    assert heard <= {"mmproj"}
    assert [file.sha256 for file in plan.files] == [file.sha256 for file in entry.files]


async def test_parts_projectors_and_drafts_come_along() -> None:
    parts = await planned(ENTRIES["gpt-oss-120b"])
    assert [file.uri.rpartition("-of-")[0][-5:] for file in parts.files] == ["00001", "00002"]
    sight = await planned(ENTRIES["qwen3-vl-4b-instruct"])
    assert "mmproj: unsloth/Qwen3-VL-4B-Instruct-GGUF/mmproj" in sight.yaml
    guessed = await planned(ENTRIES["mistral-small-3.1-24b-instruct-2503-with-draft"])
    assert "draft_model: bartowski/alamios_Mistral-Small-3.1-DRAFT-0.5B-GGUF/" in guessed.yaml


@pytest.mark.parametrize("entry", FOLDERS, ids=lambda entry: entry.name)
async def test_what_needs_a_library_that_is_not_here_says_so(entry: GalleryEntry) -> None:
    with pytest.raises(
        BackendMissing, match="needs no_such_library, not installed here: llmgallery backends install transformers"
    ):
        await planned(entry, {**specs(), "transformers": replace(specs()["transformers"], requires=("no_such_library",))})


@pytest.mark.parametrize("entry", FOLDERS, ids=lambda entry: entry.name)
async def test_folders_of_weights_are_planned(entry: GalleryEntry) -> None:
    plan = await planned(entry, {**specs(), "transformers": replace(specs()["transformers"], requires=())})
    loaded = parse_model(plan.yaml.encode(), Path("x.yaml"), specs(), Outside(presets=presets.names()))
    assert (loaded.problems, loaded.warnings, loaded.backend) == ((), (), "transformers")
    weights = reference(str(loaded.config.weights if loaded.config else ""))
    assert weights.pinned
    assert weights.file is None
    assert [file.name for file in plan.files] == ["config.json", "model.safetensors"]
