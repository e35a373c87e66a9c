import os
from pathlib import Path

import pytest

from llmgallery import paths as places
from llmgallery.backends.base import BackendSpec
from llmgallery.catalog.weights import (
    HubReference,
    LocalFiles,
    backend_for,
    check_format,
    locate,
    malformed,
    near_files,
    recognise,
)
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.core.errors import BadWeights, LoadError

GGUF = b"GGUF\x03\x00\x00\x00" + bytes(16)
POCKET = places.builtin("models") / "pocket-f16.gguf"
SPECS = {"llama-cpp": BackendSpec("llama-cpp", "x:y", formats=("gguf",))}


def config(reference: str | None, base_name: str | None = None) -> ModelConfig:
    return ModelConfig(parameters=Parameters(model=reference), model_base_name=base_name)


def paths(folder: Path, reference: str, base_name: str | None = None) -> list[str]:
    found = locate(config(reference, base_name), folder)
    assert isinstance(found, LocalFiles)
    return [path.relative_to(folder).as_posix() for path in found.paths]


def test_files_under_the_folder_come_first(tmp_path: Path) -> None:
    (tmp_path / "owner" / "repo").mkdir(parents=True)
    (tmp_path / "owner" / "repo" / "x.gguf").write_bytes(GGUF)
    assert paths(tmp_path, "owner/repo/x.gguf") == ["owner/repo/x.gguf"]
    assert locate(config("owner/repo/y.gguf"), tmp_path) == HubReference("owner/repo", "y.gguf")


def test_absolute_paths_are_the_users_own_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "elsewhere.gguf"
    weights.write_bytes(GGUF)
    folder = tmp_path / "models"
    assert locate(config(str(weights)), folder) == LocalFiles((weights,))
    assert locate(config(f"file://{weights}"), folder) == LocalFiles((weights,))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate(config("~/elsewhere.gguf"), folder) == LocalFiles((weights,))
    with pytest.raises(LoadError, match="does not exist") as caught:
        locate(config(str(tmp_path / "elsewher.gguf")), folder)
    assert caught.value.hints == ("elsewhere.gguf",)


@pytest.mark.parametrize("reference", ["../x.gguf", "a/../../x.gguf", "..\\x.gguf", "file://../x.gguf"])
def test_relative_paths_never_leave_the_folder(tmp_path: Path, reference: str) -> None:
    (tmp_path / "x.gguf").write_bytes(GGUF)
    (tmp_path / "models" / "a").mkdir(parents=True)
    with pytest.raises(LoadError, match="leads out of the models folder"):
        locate(config(reference), tmp_path / "models")


def test_what_is_neither_here_nor_a_hub_reference(tmp_path: Path) -> None:
    for name in ("mistral.gguf", "mistrl.yaml", "mistrl.md"):
        (tmp_path / name).write_bytes(GGUF)
    with pytest.raises(LoadError, match=r"no Hub reference; did you mean mistral\.gguf\?") as caught:
        locate(config("mistrl.gguf"), tmp_path)
    assert caught.value.hints == ("mistral.gguf",)
    with pytest.raises(LoadError):
        locate(config("hf://owner"), tmp_path)


def test_backends_without_weights(tmp_path: Path) -> None:
    assert locate(config(None), tmp_path) == LocalFiles(())


def test_all_parts_of_a_split_model_or_none(tmp_path: Path) -> None:
    for number in (1, 3):
        (tmp_path / f"m-0000{number}-of-00003.gguf").write_bytes(GGUF)
    with pytest.raises(BadWeights, match=r"m-00002-of-00003\.gguf is not beside it"):
        locate(config("m-00001-of-00003.gguf"), tmp_path)
    (tmp_path / "m-00002-of-00003.gguf").write_bytes(GGUF)
    assert paths(tmp_path, "m-00003-of-00003.gguf") == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]


def test_a_folder_is_its_only_model_or_the_one_that_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "a.Q4.gguf").write_bytes(GGUF)
    assert paths(tmp_path, "repo") == ["repo/a.Q4.gguf"]
    (folder / "a.Q8.gguf").write_bytes(GGUF)
    with pytest.raises(LoadError, match="model_base_name") as caught:
        locate(config("repo"), tmp_path)
    assert caught.value.hints == ("a.Q4", "a.Q8")
    assert paths(tmp_path, "repo", "a.Q8") == ["repo/a.Q8.gguf"]
    with pytest.raises(LoadError, match=r"called a\.Q5") as caught:
        locate(config("repo", "a.Q5"), tmp_path)
    assert "a.Q4.gguf" in caught.value.hints


def test_a_folder_in_hugging_face_layout_is_taken_whole(tmp_path: Path) -> None:
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    assert paths(tmp_path, "repo") == ["repo"]


def test_base_name_picks_a_file_of_a_hub_repo(tmp_path: Path) -> None:
    found = locate(config("owner/repo@v1", "mistral.Q4_K_M.gguf"), tmp_path)
    assert found == HubReference("owner/repo", quant="mistral.Q4_K_M", revision="v1")
    assert locate(config("owner/repo:Q8_0", "other"), tmp_path) == HubReference("owner/repo", quant="Q8_0")


def test_recognise_by_contents_here_and_by_name_on_the_hub(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(GGUF)
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    assert recognise("weights.bin", tmp_path) == "gguf"
    assert recognise("page.gguf", tmp_path) is None
    assert recognise("owner/repo/x.gguf@main", tmp_path) == "gguf"
    assert recognise("owner/repo:Q4_K_M", tmp_path) == "gguf"
    assert recognise("owner/repo", tmp_path) is None
    assert recognise("../weights.bin", tmp_path) is None


def test_the_backend_for_files_at_hand(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(GGUF)
    (tmp_path / "page.gguf").write_bytes(b"<html>")
    assert backend_for([tmp_path / "weights.bin"], SPECS) == "llama-cpp"
    with pytest.raises(BadWeights, match="in no format that is known here; available backends: llama-cpp"):
        backend_for([tmp_path / "page.gguf"], SPECS)
    with pytest.raises(LoadError, match="set backend:"):
        backend_for([], SPECS)


def test_weights_must_be_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(BadWeights, match=r"x\.gguf is a FIFO, not a regular file"):
        locate(config("x.gguf"), tmp_path)


@pytest.mark.parametrize("reference", ["~nobody-of-this-name/x.gguf", "http://[x/y"])
def test_references_that_no_library_reads_are_load_errors(tmp_path: Path, reference: str) -> None:
    with pytest.raises(LoadError):
        locate(config(reference), tmp_path)
    assert malformed(reference, tmp_path)
    assert recognise(reference, tmp_path) is None


def test_only_what_can_never_be_there_is_malformed(tmp_path: Path) -> None:
    for reference in ("x.gguf", "/no/such.gguf", "owner/repo", "owner/repo/x.gguf@v1", "a" * 300):
        assert malformed(reference, tmp_path) == ""
    assert "nothing follows the @" in malformed("owner/repo/x.gguf@", tmp_path)
    (tmp_path / "owner" / "repo").mkdir(parents=True)
    (tmp_path / "owner" / "repo" / "x.gguf@").write_bytes(GGUF)
    assert malformed("owner/repo/x.gguf@", tmp_path) == ""


def test_near_files_are_not_told_by_their_suffix() -> None:
    names = ["\u6a21\u578b.gguf", "mistral.Q4_K_M.gguf", "mistral.Q8_0.gguf"]
    assert near_files("pk.gguf", names) == ()
    assert near_files("mistrl.Q4_K_M.gguf", names)[0] == "mistral.Q4_K_M.gguf"
    assert near_files("MISTRAL.Q8_0", names)[0] == "mistral.Q8_0.gguf"


def test_the_format_must_be_one_of_the_backends(tmp_path: Path) -> None:
    (tmp_path / "junk.gguf").write_text("no weights")
    with pytest.raises(BadWeights, match=r"in no format that is known here; backend llama-cpp loads gguf"):
        check_format([tmp_path / "junk.gguf"], SPECS["llama-cpp"])
    (tmp_path / "x.gguf").write_bytes(GGUF)
    check_format([tmp_path / "x.gguf"], SPECS["llama-cpp"])


def test_files_that_are_cut_are_told_before_they_are_loaded(tmp_path: Path) -> None:
    whole = POCKET.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[:-1])
    for ask in (lambda: backend_for([POCKET, cut], SPECS), lambda: check_format([cut], SPECS["llama-cpp"])):
        with pytest.raises(BadWeights, match=rf"cut\.gguf is cut: {len(whole) - 1:,} of {len(whole):,} bytes are here"):
            ask()
    cut.write_bytes(whole[:200])
    with pytest.raises(BadWeights, match=r"cut\.gguf: .*at byte"):
        check_format([cut], SPECS["llama-cpp"])
    cut.write_bytes(whole)
    assert backend_for([cut], SPECS) == "llama-cpp"
