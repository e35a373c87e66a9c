from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.catalog.reference import HubReference, choose_file, choose_surely, parse_reference, split_parts
from llmgallery.core.errors import ConfigError, HubNotFound

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "repo", "file", "quant", "revision"),
    [
        ("owner/repo", "owner/repo", None, None, "main"),
        ("owner/repo-GGUF:Q4_K_M", "owner/repo-GGUF", None, "Q4_K_M", "main"),
        ("owner/repo:Q8_0@v1.0", "owner/repo", None, "Q8_0", "v1.0"),
        ("owner/repo@" + SHA, "owner/repo", None, None, SHA),
        ("owner/repo/model.gguf", "owner/repo", "model.gguf", None, "main"),
        ("owner/repo/a/b c/model.gguf@" + SHA, "owner/repo", "a/b c/model.gguf", None, SHA),
        ("owner/repo/model.gguf@refs/pr/1", "owner/repo", "model.gguf", None, "refs/pr/1"),
        ("owner/repo@refs/pr/1/model.gguf", "owner/repo", "model.gguf", None, "refs/pr/1"),
        ("hf://owner/repo:Q4_0", "owner/repo", None, "Q4_0", "main"),
        ("HuggingFace://owner/repo/model.gguf", "owner/repo", "model.gguf", None, "main"),
        ("huggingface://owner/repo@branch/sub/model.gguf", "owner/repo", "sub/model.gguf", None, "branch"),
        ("https://huggingface.co/owner/repo", "owner/repo", None, None, "main"),
        ("https://huggingface.co/owner/repo/tree/dev", "owner/repo", None, None, "dev"),
        ("https://huggingface.co/owner/repo/resolve/main/a%20b.gguf?download=true", "owner/repo", "a b.gguf", None, "main"),
        ("https://hf.co/owner/repo/blob/refs%2Fpr%2F7/x/model.gguf", "owner/repo", "x/model.gguf", None, "refs/pr/7"),
        ("https://huggingface.co/owner/repo:Q8_0", "owner/repo", None, "Q8_0", "main"),
        ("hf.co/owner/repo:Q4_K_M", "owner/repo", None, "Q4_K_M", "main"),
        ("huggingface.co/owner/repo", "owner/repo", None, None, "main"),
        ("hf.co/owner/repo/sub/model.gguf", "owner/repo", "sub/model.gguf", None, "main"),
        ("huggingface.co/owner/repo/resolve/dev/model.gguf", "owner/repo", "model.gguf", None, "dev"),
        (" owner/repo \n", "owner/repo", None, None, "main"),
    ],
)
def test_every_form(text, repo, file, quant, revision):
    assert parse_reference(text) == HubReference(repo, file, quant, revision)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mistral",
        "mistral.gguf",
        "owner/",
        "qwen3-0.6b:q8_0",
        "/models/a/b.gguf",
        "./a/b.gguf",
        "../a/b.gguf",
        ".files/0123abcd/b.gguf",
        "~/a/b.gguf",
        "~me/a/b.gguf",
        "folder/model.gguf",
        "C:\\models\\a.gguf",
        "ollama://a/b",
        "file:///a/b.gguf",
        "https://example.org/owner/repo/resolve/main/x.gguf",
    ],
)
def test_what_is_no_hub_reference(text):
    assert parse_reference(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hf://", "no Hub reference"),
        ("hf://gpt2", "owner/repo"),
        ("hf://owner/", "no Hub reference"),
        ("owner/repo/", "ends with a slash"),
        ("owner/repo:", "colon"),
        ("owner/repo@", "@"),
        ("owner/repo/model.gguf@", "@"),
        ("owner/repo:Q4/model.gguf", "not both"),
        ("owner/repo:Q 4", "quantisation"),
        ("owner/re--po/model.gguf", "no Hub repo"),
        ("ow ner/repo/model.gguf", "no Hub repo"),
        ("owner/repo/../x.gguf", "inside a Hub repo"),
        ("owner/repo/a//x.gguf", "inside a Hub repo"),
        ("hf://owner/repo/a\\..\\x.gguf", "inside a Hub repo"),
        ("owner/repo/x.gguf@../main", "no revision"),
        ("owner/repo@a b", "no revision"),
        ("hf:///etc/passwd", "no Hub reference"),
        ("https://huggingface.co/datasets/owner/repo", "no address of a model repo"),
        ("https://huggingface.co/owner/repo/resolve/main", "names no file"),
        ("https://huggingface.co/owner/repo/resolve/main/%2e%2e/x", "inside a Hub repo"),
    ],
)
def test_malformed_references_say_what_is_wrong(text, said):
    with pytest.raises(ConfigError) as caught:
        parse_reference(text)
    assert said in caught.value.message


@pytest.mark.parametrize(
    "values",
    [
        {"file": "../x"},
        {"file": "/etc/x"},
        {"file": "a/../../x"},
        {"file": "\ud800"},
        {"file": "x\0"},
        {"file": "x" * 256},
        {"revision": "../../x"},
        {"revision": "/x"},
    ],
)
def test_an_unsafe_reference_cannot_be_built(values):
    with pytest.raises(ConfigError):
        HubReference("owner/repo", **values)


@given(st.text(alphabet="ab./:@\\~ %-_hf\0\n", max_size=40) | st.text(max_size=30))
def test_whatever_is_read_is_safe_and_reads_back(text):
    try:
        ref = parse_reference(text)
    except ConfigError:
        return
    if ref is not None:
        for path in (ref.repo, ref.file or "x", ref.revision):
            assert ".." not in path.split("/") and not path.startswith("/")
        if "@" not in (ref.file or ""):
            assert parse_reference("hf://" + str(ref)) == ref


def test_parts_of_a_split_model():
    parts = ["q/m-00001-of-00003.gguf", "q/m-00002-of-00003.gguf", "q/m-00003-of-00003.gguf"]
    assert split_parts(parts[0]) == split_parts(parts[1]) == parts
    assert split_parts("m.gguf") == ["m.gguf"]
    assert split_parts("m-00004-of-00003.gguf") == ["m-00004-of-00003.gguf"]


FILES = [
    "README.md",
    "imatrix.gguf",
    "mmproj-model-f16.gguf",
    "model-IQ4_XS.gguf",
    "model-Q4_K_M.gguf",
    "model-Q4_K_S.gguf",
    "model-UD-Q4_K_M.gguf",
    "Q8_0/model-Q8_0-00001-of-00002.gguf",
    "Q8_0/model-Q8_0-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("quant", "file"),
    [
        (None, "model-Q4_K_M.gguf"),
        ("Q4_K_M", "model-Q4_K_M.gguf"),
        ("q4_k_s", "model-Q4_K_S.gguf"),
        ("UD-Q4_K_M", "model-UD-Q4_K_M.gguf"),
        ("q8", "Q8_0/model-Q8_0-00001-of-00002.gguf"),
        ("Q8_0", "Q8_0/model-Q8_0-00001-of-00002.gguf"),
        ("IQ4_XS", "model-IQ4_XS.gguf"),
        ("model-Q4_K_S", "model-Q4_K_S.gguf"),
    ],
)
def test_choosing_by_quantisation(quant, file):
    assert choose_file(FILES, quant) == file


def test_choosing_without_a_quantisation():
    assert choose_file(["a.Q5_0.gguf", "mmproj-a.gguf"], None) == "a.Q5_0.gguf"
    with pytest.raises(HubNotFound) as caught:
        choose_file(["a.Q5_0.gguf", "a.Q6_K.gguf"], None)
    assert caught.value.hints == ("a.Q5_0.gguf", "a.Q6_K.gguf")
    with pytest.raises(HubNotFound) as caught:
        choose_file(FILES, "Q2_K")
    assert "model-Q4_K_M.gguf" in caught.value.hints and "imatrix.gguf" not in caught.value.hints
    with pytest.raises(HubNotFound, match="no GGUF"):
        choose_file(["model.safetensors"], None)


def test_a_sure_choice_needs_a_whole_name_part():
    assert choose_surely(["model-Q8_0.gguf"], "q8_0") == "model-Q8_0.gguf"
    assert choose_surely(["model-Q8_0.gguf"], "q8") is None
    assert choose_surely(["model-Q8_0.gguf"], None) is None
