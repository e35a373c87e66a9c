from __future__ import annotations

import csv
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from llmgallery.catalog.gallery.entry import GalleryEntry
from llmgallery.catalog.gallery.read import read_index

ROOT = Path(__file__).parent.parent.parent
BASE = {"hub_repo": "o/Model-GGUF", "file": "Model-Q4_K_M.gguf", "license": "mit"}
FAMILY = {"file": "f", "title": "T", "preset": "chatml", "tags": ["family"]}
DIGEST = "a" * 64


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("curate_gallery", ROOT / "tools" / "curate_gallery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOL = load_tool()


def made(model: dict[str, Any], *rows: dict[str, str], **family: Any) -> dict[str, GalleryEntry]:
    """What the tool writes for one model, as the gallery reads it."""
    facts = {row["name"]: row for row in rows}
    whole = {**FAMILY, **family, "models": [model]}
    index = read_index(TOOL.text(whole, TOOL.entries(whole, facts)).encode(), "f.yaml", "llmgallery")
    assert index.problems == ()
    assert all(entry.warnings == () for entry in index.entries.values())
    return dict(index.entries)


def test_a_row_becomes_an_entry() -> None:
    row = {**BASE, "name": "maker_m", "sha256": DIGEST, "revision": "b" * 40, "size": "7", "tags": "llm gguf 7b coding"}
    told = {"context_size": "32768", "sampling": '{"temperature": 0.6, "top_k": -1, "other": 1}', "source": "https://s"}
    (entry,) = made({"name": "m", "row": "maker_m", "says": "A model"}, {**row, **told}).values()
    assert (entry.name, entry.licence, entry.description) == ("m", "mit", "A model. Quantised to Q4_K_M.")
    assert entry.tags == ("chat", "family", "code")
    assert entry.urls == ("https://huggingface.co/o/Model-GGUF", "https://s")
    (file,) = entry.files
    assert (file.uri, file.sha256) == (f"huggingface://o/Model-GGUF@{'b' * 40}/Model-Q4_K_M.gguf", DIGEST)
    assert (file.size, entry.size) == (7, 7)
    assert entry.overrides == {
        "backend": "llama-cpp",
        "parameters": {"model": "Model-Q4_K_M.gguf", "temperature": 0.6, "top_k": 0},
        "context_size": 32768,
        "template": {"use_tokenizer_template": True, "preset": "chatml"},
    }


def test_a_large_context_is_told_and_not_set() -> None:
    (entry,) = made({"name": "m", "says": "A model"}, {**BASE, "name": "m", "context_size": "262144"}).values()
    assert "context_size" not in entry.overrides
    assert entry.description.endswith("Trained for 262,144 tokens of context.")


def test_an_indexs_own_name_becomes_an_alias() -> None:
    (entry,) = made({"name": "m", "row": "maker_m", "says": "A model"}, {**BASE, "name": "maker_m"}).values()
    assert entry.aliases == ("maker_m",)


def test_a_quantisation_says_only_what_differs_and_inherits_no_size() -> None:
    rows = {**BASE, "name": "maker_m", "size": "7"}, {**BASE, "name": "m8", "file": "Model-Q8_0.gguf", "license": ""}
    found = made({"name": "m", "row": "maker_m", "says": "A model", "quants": {"q8_0": "m8"}}, *rows)
    assert list(found) == ["m", "m:q8_0"]
    base, other = found.values()
    assert base.variants == ("m:q8_0",)
    assert (other.variants, other.size, other.aliases, other.licence) == ((), None, (), "mit")
    assert other.overrides["parameters"] == {"model": "Model-Q8_0.gguf"}
    assert other.description == "A model. Quantised to Q8_0."


def test_parts_projector_and_draft_are_files_too() -> None:
    sight = {"mmproj_repo": "o/Sight", "mmproj_file": "mmproj-F16.gguf", "mmproj_sha256": DIGEST}
    row = {**BASE, **sight, "name": "m", "file": "Q4/Model-Q4_K_M-00001-of-00003.gguf", "sha256": DIGEST}
    draft = {**BASE, "name": "d", "file": "Draft.gguf", "hub_repo": "o/Draft"}
    (entry,) = made({"name": "m", "says": "A model", "draft": "d"}, row, draft).values()
    names = [f"Model-Q4_K_M-0000{part}-of-00003.gguf" for part in (1, 2, 3)]
    assert [file.filename for file in entry.files] == [*names, "Sight/mmproj-F16.gguf", "Draft.gguf"]
    assert [file.sha256 for file in entry.files] == [DIGEST, None, None, DIGEST, None]
    assert entry.files[2].uri == f"huggingface://o/Model-GGUF/Q4/{names[2]}"
    assert (entry.overrides["mmproj"], entry.overrides["draft_model"]) == ("Sight/mmproj-F16.gguf", "Draft.gguf")
    assert {"vision", "draft"} <= set(entry.tags)


def test_sight_without_a_projector_is_no_tag() -> None:
    (entry,) = made({"name": "m", "says": "A model"}, {**BASE, "name": "m", "tags": "vision math"}).values()
    assert entry.tags == ("chat", "family", "math")


def test_what_embeds_has_no_chat_format() -> None:
    (entry,) = made({"name": "m", "says": "It embeds"}, {**BASE, "name": "m"}, purpose="embeddings").values()
    assert entry.overrides == {
        "backend": "llama-cpp",
        "parameters": {"model": "Model-Q4_K_M.gguf"},
        "embeddings": True,
        "known_usecases": ["embeddings"],
    }
    assert "chat" not in entry.tags


@pytest.mark.parametrize(
    ("model", "row", "message"),
    [
        ({"name": "m", "says": "A model"}, {**BASE, "name": "other"}, "no table has a row called 'm'"),
        ({"name": "m", "says": "A model"}, {**BASE, "name": "m", "license": ""}, "m: no table and no choice has its licence"),
    ],
)
def test_what_no_table_has_is_not_written(model: dict[str, Any], row: dict[str, str], message: str) -> None:
    with pytest.raises(TOOL.Gap, match=message):
        made(model, row)


def test_the_first_table_that_has_a_name_counts(tmp_path: Path) -> None:
    for number in (1, 2):
        with (tmp_path / f"{number}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["name", "hub_repo", "file"], ["m", f"o/{number}", " f.gguf "]])
    facts = TOOL.read_facts([tmp_path / "1.csv", tmp_path / "2.csv"])
    assert facts == {"m": {"name": "m", "hub_repo": "o/1", "file": "f.gguf"}}


def test_a_missing_table_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert TOOL.main(["--check", "/nowhere/facts.csv"]) == 2
    assert "/nowhere/facts.csv" in capsys.readouterr().err


def test_our_own_facts_name_their_source() -> None:
    rows = list(TOOL.read_facts([TOOL.HERE / "facts.csv"]).values())
    assert len(rows) > 20
    for row in rows:
        assert row["source"].startswith(f"https://huggingface.co/{row['hub_repo']}/")
        assert row["file"].endswith(".gguf")
        assert len(row["revision"]) in (0, 40)
        assert not row["revision"] or row["revision"] in row["source"]
        assert len(row["sha256"]) in (0, 64)
