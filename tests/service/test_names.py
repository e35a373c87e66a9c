"""What names mean, over snapshots made of small folders."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgallery.backends.loader import specs
from llmgallery.catalog.index import Entry, Snapshot
from llmgallery.catalog.reference import parse_reference
from llmgallery.catalog.registry import Registry
from llmgallery.core.errors import InvalidField, ModelBroken, ModelNotFound
from llmgallery.service.names import Absent, near_names, resolve

GGUF = b"GGUF\x03\x00\x00\x00" + bytes(16)


def snapshot(folder: Path, **files: str) -> Snapshot:
    for stem, text in files.items():
        (folder / f"{stem}.yaml").write_text(f"backend: echo\n{text}\n")
    return Registry([folder], specs()).read()


@pytest.fixture
def found(tmp_path: Path) -> Snapshot:
    (tmp_path / "Loose-Weights.gguf").write_bytes(GGUF)
    return snapshot(
        tmp_path,
        alpha="",
        beta="name: owner/repo:Q4@v1\naliases: [b, 'gpt-4*', default]",
        gamma="aliases: ['gpt-*', 'gpt-4o-mini', Shout]",
        delta="name: shout2\naliases: [SHOUT2x]",
        broken="tempratur: 1",
        off="disabled: true",
    )


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("alpha", "alpha"),
        ("owner/repo:Q4@v1", "owner/repo:Q4@v1"),
        ("b", "owner/repo:Q4@v1"),
        ("gpt-4o-mini", "gamma"),
        ("gpt-4o", "owner/repo:Q4@v1"),
        ("gpt-5", "gamma"),
        ("Loose-Weights", "Loose-Weights"),
        ("Loose-Weights.gguf", "Loose-Weights"),
        ("loose-weights", "Loose-Weights"),
        ("ALPHA", "alpha"),
        ("shout", "gamma"),
        ("default", "owner/repo:Q4@v1"),
    ],
)
def test_names(found: Snapshot, name: str, means: str) -> None:
    assert resolve(name, found).name == means


def test_unknown_names_bring_near_ones(found: Snapshot) -> None:
    with pytest.raises(ModelNotFound, match=r"does not exist; did you mean 'alpha'.*alhpa\.yaml") as caught:
        resolve("alhpa", found)
    assert caught.value.hints == ("alpha",)
    assert caught.value.field == "model"
    with pytest.raises(ModelNotFound, match="GET /v1/models"):
        resolve("zzzzzz", found)
    with pytest.raises(ModelNotFound, match=r"acme__nothing\.yaml"):
        resolve("acme/nothing", found)
    assert near_names("weights", found)[0] == "Loose-Weights"


def test_a_broken_model_says_what_is_wrong(found: Snapshot) -> None:
    with pytest.raises(ModelBroken, match=r"broken\.yaml:2:1: tempratur: unknown key") as caught:
        resolve("broken", found)
    assert len(caught.value.hints) == 1


def test_a_template_beside_the_weights_that_is_wrong_is_the_file_that_is_told(tmp_path: Path) -> None:
    (tmp_path / "loose.gguf").write_bytes(GGUF)
    (tmp_path / "loose.gguf.tmpl").write_bytes(b"\xff")
    with pytest.raises(ModelBroken, match=r"cannot be served: \S+loose\.gguf\.tmpl: template\.chat: the template is not UTF-8"):
        resolve("loose", snapshot(tmp_path))


def test_broken_and_disabled_names_do_not_fall_to_a_glob(tmp_path: Path) -> None:
    names = snapshot(tmp_path, any="aliases: ['*']", bad="x: 1", off="disabled: true")
    assert resolve("whatever", names).name == "any"
    with pytest.raises(ModelBroken):
        resolve("bad", names)
    with pytest.raises(ModelNotFound, match="disabled"):
        resolve("off", names)


def test_letters_case_only_where_one_model_fits(tmp_path: Path) -> None:
    names = snapshot(tmp_path, a="name: Twin", b="name: tWin")
    assert resolve("tWin", names).name == "tWin"
    with pytest.raises(ModelNotFound):
        resolve("twin", names)


@pytest.mark.parametrize("name", [None, "", "  "])
def test_without_a_name(found: Snapshot, name: str | None) -> None:
    assert resolve(name, found, token="alpha", default="gamma").name == "alpha"
    assert resolve(name, found, token="sk-1234", default="gamma").name == "gamma"
    assert resolve(name, found, token="gpt-9", default="gamma").name == "gamma"
    assert resolve(name, found, default="gpt-4o").name == "owner/repo:Q4@v1"
    with pytest.raises(InvalidField, match="must provide a model") as caught:
        resolve(name, found)
    assert caught.value.field == "model"
    with pytest.raises(ModelNotFound, match="'gone'"):
        resolve(name, found, default="gone")


def test_the_only_model_needs_no_name(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no model here"):
        resolve(None, snapshot(tmp_path))
    assert resolve(None, snapshot(tmp_path, one="")).name == "one"


def test_unknown_names_may_mean_the_default(found: Snapshot) -> None:
    assert resolve("nonsense", found, default="alpha", unknown="default").name == "alpha"
    assert resolve("gamma", found, default="alpha", unknown="default").name == "gamma"
    with pytest.raises(ModelNotFound, match="'nonsense'"):
        resolve("nonsense", found, default="gone", unknown="default")
    with pytest.raises(ModelNotFound):
        resolve("nonsense", found, unknown="default")


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=600))
def test_any_name_is_a_model_or_a_clear_error(name: str) -> None:
    try:
        resolve(name, Snapshot())
    except ModelNotFound as error:
        assert error.message


def test_far_fetched_names_are_not_suggested(tmp_path: Path) -> None:
    (tmp_path / "\u6a21\u578b.gguf").write_bytes(GGUF)
    names = snapshot(tmp_path, a="name: small/ctx\naliases: [default, ab]")
    for name in ("x", "a", "t", "pk.gguf", "zz", "fau"):
        assert near_names(name, names) == (), name
    assert near_names("ctx", names) == ("small/ctx",)
    assert near_names("small", names) == ("small/ctx",)
    assert near_names("defautl", names) == ("default",)
    assert near_names("my-small/ctx-2", names) == ("small/ctx",)


def refusal(name: str, names: Snapshot) -> str:
    with pytest.raises((ModelNotFound, ModelBroken)) as caught:
        resolve(name, names)
    assert "To add it" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("name", ["tale260K", "tale260K.gguf"])
def test_weights_under_their_own_name_lead_to_the_model_that_a_yaml_makes_of_them(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tale260K.gguf").write_bytes(GGUF)
    names = snapshot(tmp_path, story="parameters: {model: tale260K.gguf}")
    assert refusal(name, names) == f"The model {name!r} does not exist; tale260K.gguf is served as 'story' (story.yaml)."
    names = snapshot(tmp_path, other="parameters: {model: ./tale260K.gguf}")
    assert "served as 'other' (other.yaml) and 'story' (story.yaml)." in refusal(name, names)


def test_a_yaml_that_is_there_is_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = snapshot(
        tmp_path, pocket="", story="name: pocket", named="name: calls-itself", bad="name: worse\nx: 1", off="disabled: true"
    )
    assert "story.yaml:2:1: name: the name 'pocket' is already taken by pocket.yaml" in refusal("story", names)
    assert "bad.yaml:3:1: x: unknown key" in refusal("bad", names)
    assert "named.yaml names its model 'calls-itself'." in refusal("named", names)
    assert "'off' is disabled in off.yaml" in refusal("off.yaml", names)


def test_weights_that_cannot_be_served_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trunc.gguf").write_bytes(b"GG")
    (tmp_path / "void.gguf").write_bytes(b"")
    names = snapshot(tmp_path, a="")
    for name in ("trunc", "trunc.gguf"):
        assert refusal(name, names).endswith("trunc.gguf is in no format that is known here")
    assert "void.gguf is empty" in refusal("void", names)


# --- what could be installed -------------------------------------------------------------------------------------------------


def known(name: str) -> bool:
    return name in ("qwen", "qwen:q8_0", "llmgallery@qwen", "acme/entry", "alpha", "broken", "off")


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("qwen", Absent("qwen")),
        ("qwen:q8_0", Absent("qwen:q8_0")),
        ("llmgallery@qwen", Absent("llmgallery@qwen")),
        ("acme/entry", Absent("acme/entry")),  # a gallery goes before the Hub
        ("owner/other", Absent("owner/other", parse_reference("owner/other"))),
        ("hf://owner/other@main", Absent("owner/other", parse_reference("owner/other"))),
        ("huggingface://o/r@v1/m.gguf", Absent("o/r/m.gguf@v1", parse_reference("o/r/m.gguf@v1"))),
        ("https://huggingface.co/o/r/resolve/main/m.gguf", Absent("o/r/m.gguf", parse_reference("o/r/m.gguf"))),
    ],
)
def test_what_is_absent_may_be_installed(found: Snapshot, name: str, means: Absent) -> None:
    assert resolve(name, found, known=known) == means


@pytest.mark.parametrize("name", ["alpha", "hf://owner/repo:Q4@v1", "huggingface://owner/repo:Q4@v1", "gpt-9"])
def test_the_folder_goes_first_in_every_spelling(found: Snapshot, name: str) -> None:
    assert isinstance(resolve(name, found, known=known), Entry)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("broken", ModelBroken, "tempratur"),
        ("off", ModelNotFound, "is disabled"),
        ("nobody", ModelNotFound, "does not exist; "),
        ("../etc/passwd", ModelNotFound, "does not exist"),
        ("/etc/passwd", ModelNotFound, "does not exist"),
        ("~/model.gguf", ModelNotFound, "does not exist"),
        ("owner/repo@", ModelNotFound, "nothing follows the @"),
        ("owner/re..po", ModelNotFound, "is no Hub repo"),
        ("x" * 300, ModelNotFound, "does not exist"),
    ],
)
def test_what_may_not_be_installed(found: Snapshot, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(name, found, known=known)


def test_a_file_of_the_name_is_not_written_over(tmp_path: Path) -> None:
    found = snapshot(tmp_path, qwen="name: mine", o__r="name: theirs")
    for name in ("qwen", "o/r"):
        with pytest.raises(ModelNotFound, match="names its model"):
            resolve(name, found, known=known)


def test_the_default_may_be_installed_and_comes_after_what_was_asked_for(found: Snapshot) -> None:
    assert resolve(None, found, known=known, default="qwen") == Absent("qwen")
    assert resolve("nobody", found, known=known, default="qwen", unknown="default") == Absent("qwen")
    assert resolve("o/r", found, known=known, default="alpha", unknown="default").name == "o/r"
    assert resolve("nobody", found, known=known, default="alpha", unknown="default").name == "alpha"


def test_without_galleries_nothing_is_installed(found: Snapshot) -> None:
    for name in ("qwen", "owner/other"):
        with pytest.raises(ModelNotFound):
            resolve(name, found)


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_name_means_something_or_raises_what_a_client_is_told(name: str) -> None:
    try:
        meant = resolve(name, Snapshot(), known=known)
    except (ModelNotFound, InvalidField):
        return
    assert isinstance(meant, Absent)
    assert meant.reference is None or str(meant.reference) == meant.name
