"""What may be installed: a table of settings, what is asked for, and the setting that a refusal names."""

import re
from typing import Any

import pytest

from llmgallery.catalog.install.job import Asked
from llmgallery.catalog.install.plan import InstallPlan, PlannedFile
from llmgallery.config.settings import Settings
from llmgallery.config.units import Bytes
from llmgallery.core.errors import InvalidField, NotAllowed
from llmgallery.service.install.brought import check_brought
from llmgallery.service.install.policy import Source, check_asked, check_plan

GIB = 2**30


def plan(**changes: Any) -> InstallPlan:
    file = PlannedFile(uri="hf://Qwen/Qwen3-GGUF/qwen.gguf@" + "a" * 40, name="qwen.gguf", size=3 * GIB)
    told = {"name": "qwen", "source": "llmgallery@qwen", "yaml": "", "files": (file,), "backend": "llama-cpp"}
    return InstallPlan(**{**told, "licence": "apache-2.0", **changes})


@pytest.mark.parametrize(
    ("settings", "source", "refused_by"),
    [
        ({}, "hub", None),
        ({}, "gallery", None),
        ({"host": "0.0.0.0"}, "gallery", None),
        ({"host": "0.0.0.0"}, "hub", "auto_install: hub"),
        ({"host": "0.0.0.0", "auto_install": "hub"}, "hub", None),
        ({"host": "::1", "auto_install": "gallery"}, "hub", "auto_install: hub"),
        ({"auto_install": "off"}, "gallery", "auto_install: gallery"),
        ({"auto_install": "off"}, "hub", "auto_install: hub"),
        ({"hub_owners": ["qwen"]}, "hub", None),
        ({"hub_owners": ["unsloth", "Q*n"]}, "hub", None),
        ({"hub_owners": ["unsloth"]}, "hub", "hub_owners: [unsloth, Qwen]"),
        ({"hub_owners": ["unsloth"]}, "gallery", None),  # whose its files are, the plan tells
        ({"api_keys": ["k"], "auto_install": "gallery"}, "hub", "auto_install: hub"),
        ({"api_keys": ["k"], "auto_install": "gallery"}, "gallery", None),
    ],
)
def test_what_a_request_may_ask_for(settings: dict[str, Any], source: Source, refused_by: str | None) -> None:
    def ask() -> None:
        check_asked(Settings(**settings), "qwen", source, "Qwen" if source == "hub" else None, "request")

    if refused_by is None:
        ask()
        return
    with pytest.raises(NotAllowed) as caught:
        ask()
    assert caught.value.hints == (refused_by,)
    assert f"`{refused_by}` would allow it" in caught.value.message


@pytest.mark.parametrize("source", ["gallery", "hub"])
def test_the_operator_needs_no_auto_install_but_keeps_to_the_limits(source: Source) -> None:
    check_asked(Settings(auto_install="off"), "qwen", source, "Qwen", "operator")
    with pytest.raises(NotAllowed, match="hub_owners"):
        check_asked(Settings(auto_install="off", hub_owners=["x"]), "qwen", "hub", "Qwen", "operator")


def test_a_refusal_tells_why_the_setting_is_as_it_is() -> None:
    with pytest.raises(NotAllowed, match=r"holds while the server listens on 0\.0\.0\.0"):
        check_asked(Settings(host="0.0.0.0"), "qwen", "hub", "Qwen", "request")
    with pytest.raises(NotAllowed) as caught:
        check_asked(Settings(auto_install="off"), "qwen", "hub", "Qwen", "request")
    assert "listens" not in caught.value.message


@pytest.mark.parametrize(
    ("settings", "changes", "refused_by"),
    [
        ({}, {"licence": None}, None),
        ({"licences": ["apache-2.0", "mit"]}, {}, None),
        ({"licences": ["APACHE*"]}, {}, None),
        ({"licences": ["mit"]}, {}, "licences: [mit, apache-2.0]"),
        ({"licences": ["mit"]}, {"licence": None}, "licences: []"),
        ({"licences": ["*"]}, {"licence": None}, None),
        ({"hub_owners": ["Qwen"]}, {}, None),
        ({"hub_owners": ["bartowski"]}, {}, "hub_owners: [bartowski, Qwen]"),
        ({"install_size_limit": 3 * GIB}, {}, None),
        ({"install_size_limit": 3 * GIB - 1}, {}, "install_size_limit: 3GiB"),
        ({"install_size_limit": 2 * GIB}, {"files": ()}, None),
    ],
)
def test_what_a_plan_may_be(settings: dict[str, Any], changes: dict[str, Any], refused_by: str | None) -> None:
    if refused_by is None:
        check_plan(Settings(**settings), plan(**changes))
        return
    with pytest.raises(NotAllowed) as caught:
        check_plan(Settings(**settings), plan(**changes))
    assert caught.value.hints == (refused_by,)


def test_a_file_of_unknown_size_does_not_slip_past_a_limit() -> None:
    files = (PlannedFile(uri="https://example.org/m.gguf", name="m.gguf"),)
    with pytest.raises(NotAllowed, match=r"the size of m\.gguf is not known"):
        check_plan(Settings(install_size_limit=Bytes(GIB)), plan(files=files))
    check_plan(Settings(), plan(files=files))


def test_files_from_elsewhere_have_no_owner() -> None:
    files = (PlannedFile(uri="https://example.org/m.gguf", name="m.gguf", size=1),)
    check_plan(Settings(hub_owners=["Qwen"]), plan(files=files))


@pytest.mark.parametrize(
    "name", ["weights.pt", "a.pth", "model.ckpt", "x.PKL", "y.pickle", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin"]
)
def test_pickles_are_never_installed(name: str) -> None:
    files = (PlannedFile(uri=f"hf://Qwen/x/{name}@{'a' * 40}", name=name, size=1),)
    with pytest.raises(NotAllowed, match="pickle"):
        check_plan(Settings(), plan(files=files))


@pytest.mark.parametrize("name", ["ggml-model.bin", "model.gguf.bin", "model.safetensors", "openvino_model.bin", "x.gguf"])
def test_other_formats_are(name: str) -> None:
    check_plan(Settings(), plan(files=(PlannedFile(uri="https://example.org/x", name=name, size=1),)))


@pytest.mark.parametrize(
    ("brought", "field"),
    [
        ({}, None),
        ({"overrides": {"context_size": 512, "parameters": {"temperature": 0}}}, None),
        ({"files": ({"uri": "https://example.org/m.gguf"},)}, "files[0].uri"),
        ({"overrides": {"parameters": {"model": "owner/other"}}}, "overrides.parameters.model"),
        ({"overrides": {"model": "owner/other"}}, "overrides.model"),
        ({"overrides": {"lora_adapters": ["owner/other/a.gguf"]}}, "overrides.lora_adapters.0"),
        ({"overrides": {"download_files": {"uri": "https://example.org/x"}}}, "overrides.download_files[0].uri"),
        ({"overrides": {"parameters": "model"}}, None),
    ],
)
def test_an_entry_is_no_cover_for_files_of_the_requests_own(brought: dict[str, Any], field: str | None) -> None:
    asked = Asked(reference="qwen", name="mine", **brought)
    check_brought(Settings(auto_install="hub"), asked)
    if field is None:
        check_brought(Settings(auto_install="gallery"), asked)
        return
    for setting in ("gallery", "off"):
        with pytest.raises(NotAllowed, match=re.escape(f"the model 'mine': {field} is a file of the request's own")) as caught:
            check_brought(Settings(auto_install=setting), asked)
        assert caught.value.hints == ("auto_install: hub",)


@pytest.mark.parametrize(
    ("brought", "field"),
    [
        ({"files": ({"uri": "FILE:///etc/passwd"},)}, "files[0].uri"),
        ({"files": ({"uri": "https://example.org/m.gguf"}, {"uri": " http://10.0.0.1/x "})}, "files[1].uri"),
        ({"overrides": {"lora_adapter": "http://localhost:9/x.gguf"}}, "overrides.lora_adapter"),
        ({"overrides": {"download_files": [{"uri": "https://[::1]/x"}]}}, "overrides.download_files[0].uri"),
        ({"overrides": {"parameters": {"prompt_cache_path": "x"}}}, "overrides.prompt_cache_path"),
        ({"overrides": {"backend": "openai"}}, "overrides.backend"),
    ],
)
def test_what_no_request_may_bring(brought: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        check_brought(Settings(auto_install="hub"), Asked(reference="qwen", **brought))
    assert caught.value.field == field
