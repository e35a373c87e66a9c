"""KoboldCpp's settings files become model files that the server reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmgallery.backends.loader import specs
from llmgallery.config.load import parse_model
from llmgallery.core.errors import ConfigError
from llmgallery.importers import kobold
from llmgallery.importers.base import SECRET, Around, Imported
from llmgallery.importers.recognise import recognise

LEGACY: dict[str, Any] = {
    "model": None, "model_param": "mistral.Q4_K_M.gguf", "port": 5001, "port_param": 5001, "host": "", "launch": False,
    "config": None, "threads": 7, "usecublas": ["normal", "1", "mmq"], "usevulkan": None, "useclblast": None, "usecpu": False,
    "contextsize": 8192, "gpulayers": 33, "tensor_split": None, "ropeconfig": [0.0, 10000.0], "blasbatchsize": 1024,
    "blasthreads": 6, "lora": None, "noshift": False, "nommap": True, "usemlock": True, "noavx2": False, "debugmode": 0,
    "onready": "", "benchmark": None, "prompt": "", "promptlimit": 100, "multiuser": 1, "highpriority": False,
    "preloadstory": None, "quiet": False, "ssl": None, "nocertify": False, "mmproj": None, "password": None,
    "ignoremissing": False, "chatcompletionsadapter": "AutoGuess", "flashattention": True, "quantkv": 2, "forceversion": 0,
    "smartcontext": False, "hordemodelname": "", "hordekey": "", "hordemaxctx": 0, "hordegenlen": 0, "sdmodel": "",
    "sdthreads": 0, "sdclamped": 0, "sdquant": False, "whispermodel": "",
}  # fmt: skip
"""What KoboldCpp 1.7 and 1.8 save."""


def read(tmp_path: Path, settings: dict[str, Any] | str, name: str = "mine.kcpps", **around: Any) -> Imported:
    source = tmp_path / "kobold"
    source.mkdir(exist_ok=True)
    text = settings if isinstance(settings, str) else json.dumps(settings, indent=2)
    (source / name).write_text(text)
    return kobold.read(source / name, Around(specs(), tmp_path / "models", **around))


def config_of(imported: Imported, name: str = "mine.yaml") -> dict[str, Any]:
    """The YAML that was written, without the name; the server must read it without a problem."""
    [(text, model)] = [(file.text, file.model) for file in imported.files if file.name == name]
    assert parse_model(text.encode(), Path(name), specs()).problems == ()
    config: dict[str, Any] = yaml.safe_load(text)
    assert config.pop("name") == model
    return config


def imported(tmp_path: Path, **keys: Any) -> dict[str, Any]:
    return config_of(read(tmp_path, {"model_param": "x.gguf", **keys}))


def warned(imported: Imported) -> dict[str, str]:
    """All but that weights are not there (yet)."""
    return {warning.key: warning.message for warning in imported.warnings if "there is no file" not in warning.message}


def test_a_file_as_koboldcpp_saves_it(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "kobold").mkdir()
    (tmp_path / "kobold" / "mistral.Q4_K_M.gguf").write_bytes(b"GGUF")
    found = read(tmp_path, LEGACY)
    assert config_of(found) == {
        "aliases": ["koboldcpp/mistral.Q4_K_M"],
        "parameters": {"model": str(tmp_path / "kobold" / "mistral.Q4_K_M.gguf"), "batch": 1024},
        "context_size": 8192,
        "gpu_layers": 33,
        "threads": 7,
        "options": {"threads_batch": 6},
        "mmap": False,
        "mmlock": True,
        "main_gpu": 1,
        "flash_attention": "on",
        "cache_type_k": "q4_0",
        "cache_type_v": "q4_0",
        "template": {"adapter": "AutoGuess"},
    }
    assert warned(found) == {"promptlimit": "has no counterpart here: not imported"}
    assert (found.problems, found.notes, found.settings, found.default) == ((), (), {}, "mine")


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"usecpu": True}, {"gpu_layers": 0}),
        ({"usecublas": ["lowvram", "all"]}, {"no_kv_offloading": True}),
        ({"usecuda": ["0", "normal"], "usecublas": None}, {"main_gpu": 0}),
        ({"noflashattention": True, "flashattention": False}, {"flash_attention": "off"}),
        ({"noflashattention": False, "quantkv": "q8_0"}, {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}),
        ({"flashattention": False, "quantkv": 1}, {"cache_type_k": "q8_0"}),
        ({"quantkv": "f16", "gpulayers": -1, "threads": -1, "maingpu": -1, "usemmap": False}, {}),
        ({"usemmap": True, "batchsize": 512}, {"mmap": True}),
        ({"tensor_split": [7.0, 3.0]}, {"tensor_split": [7.0, 3.0]}),
        ({"draftmodel": "/d/small.gguf", "draftamount": 5}, {"draft_model": "/d/small.gguf", "n_draft": 5}),
        ({"draftamount": 8}, {}),
        ({"lora": ["/d/l.gguf"], "loramult": 0.5}, {"lora_adapters": ["/d/l.gguf"], "lora_scales": [0.5]}),
        ({"lora": ["/d/l.gguf"], "loramult": 1.0}, {"lora_adapters": ["/d/l.gguf"]}),
        ({"jinja": True}, {"template": {"use_tokenizer_template": True, "adapter": "AutoGuess"}}),
        ({"jinja_tools": True}, {"template": {"use_tokenizer_template": True, "adapter": "AutoGuess"}}),
        (
            {"jinja_kwargs": '{"enable_thinking": false}'},
            {
                "chat_template_kwargs": {"enable_thinking": False},
                "template": {"use_tokenizer_template": True, "adapter": "AutoGuess"},
            },
        ),
        ({"chatcompletionsadapter": "chatml"}, {"template": {"adapter": "ChatML"}}),
        ({"chatcompletionsadapter": "kcpp_adapters/Llama-3.json"}, {"template": {"adapter": "Llama-3"}}),
        ({"chatcompletionsadapter": "{'user_start': 'U:'}"}, {"template": {"adapter": {"user_start": "U:"}}}),
        ({"chatcompletionsadapter": {"templates": {"user": {"end": "x"}}}}, {"template": {"adapter": {"user_end": "x"}}}),
    ],
)
def test_what_keys_mean(tmp_path: Path, keys: dict[str, Any], expected: dict[str, Any]) -> None:
    found = imported(tmp_path, **keys)
    plain = {"aliases": ["koboldcpp/x"], "parameters": {"model": "x.gguf"}, "template": {"adapter": "AutoGuess"}}
    assert found == {**plain, **expected}


def test_parameters(tmp_path: Path) -> None:
    found = imported(tmp_path, ropeconfig=[0.25, 20000.0], defaultgenamt=768)
    assert found["parameters"] == {"model": "x.gguf", "rope_freq_scale": 0.25, "rope_freq_base": 20000, "max_tokens": 768}
    assert imported(tmp_path, ropeconfig=[0.5])["parameters"]["rope_freq_base"] == 10000


def test_an_adapters_length_counts_before_the_general_one(tmp_path: Path) -> None:
    found = imported(tmp_path, defaultgenamt=768, chatcompletionsadapter={"max_length": 90, "user_start": "U:"})
    assert found["parameters"]["max_tokens"] == 90
    assert found["template"] == {"adapter": {"user_start": "U:"}}


def test_no_adapter_is_koboldcpps_own_format(tmp_path: Path) -> None:
    found = read(tmp_path, {"model_param": "x.gguf", "chatcompletionsadapter": None})
    assert config_of(found)["template"] == {
        "adapter": {"user_start": "\n### Instruction:\n", "assistant_start": "\n### Response:\n"}
    }
    assert "written with KoboldCpp's defaults" in found.notes[0]


def test_an_adapter_may_be_a_file_beside_the_settings(tmp_path: Path) -> None:
    (tmp_path / "kobold").mkdir()
    (tmp_path / "kobold" / "own.json").write_text('{"user_start": "\\ud83d\\ude00", "colour": "red"}')
    found = read(tmp_path, {"model_param": "x.gguf", "chatcompletionsadapter": "own.json"})
    assert config_of(found)["template"] == {"adapter": {"user_start": "\U0001f600"}}
    assert warned(found)["chatcompletionsadapter"].startswith("colour: no such key in an adapter")


@pytest.mark.parametrize("adapter", ["nowhere.json", 5, [{"search": []}]])
def test_an_adapter_that_nobody_knows_is_told(tmp_path: Path, adapter: Any) -> None:
    found = read(tmp_path, {"model_param": "x.gguf", "chatcompletionsadapter": adapter})
    assert "chatcompletionsadapter" in warned(found)
    assert "template" not in config_of(found)


def test_a_jinja_template_of_its_own_is_taken_in(tmp_path: Path) -> None:
    (tmp_path / "kobold").mkdir()
    (tmp_path / "kobold" / "t.jinja").write_text("{% for m in messages %}\n{{ m.content }}\n{% endfor %}")
    found = imported(tmp_path, jinjatemplate="t.jinja", jinja=True)
    assert found["template"]["chat_template"] == "{% for m in messages %}\n{{ m.content }}\n{% endfor %}"
    unused = read(tmp_path, {"model_param": "x.gguf", "jinjatemplate": "t.jinja"})
    assert warned(unused)["jinjatemplate"] == "is not used without jinja, there as here"


@pytest.mark.parametrize(
    ("path", "reference"),
    [
        ("C:\\Models\\some.Q8_0.gguf", "some.Q8_0.gguf"),
        ("D:/m/some.gguf", "some.gguf"),
        ("https://huggingface.co/o/r-GGUF/resolve/main/some.Q4_K_M.gguf?download=true", "o/r-GGUF/some.Q4_K_M.gguf"),
        ("/models/some.gguf", "/models/some.gguf"),
    ],
)
def test_weights_are_named_as_we_name_them(tmp_path: Path, path: str, reference: str) -> None:
    found = read(tmp_path, {"model_param": path})
    assert config_of(found)["parameters"]["model"] == reference
    foreign = path[1] == ":"
    assert ("path of another machine" in warned(found).get("model_param", "")) is foreign


def test_weights_that_lie_in_the_models_folder_are_named_from_there(tmp_path: Path) -> None:
    assert imported(tmp_path, model_param="../models/deep/x.gguf")["parameters"]["model"] == "deep/x.gguf"


@pytest.mark.parametrize(("key", "value"), [("model", ["x.gguf"]), ("model", "x.gguf"), ("model_param", "x.gguf")])
def test_all_ways_to_name_weights(tmp_path: Path, key: str, value: Any) -> None:
    assert config_of(read(tmp_path, {key: value, "contextsize": 512}))["parameters"]["model"] == "x.gguf"


def test_files_without_a_text_model_are_a_problem(tmp_path: Path) -> None:
    found = read(tmp_path, {"model_param": "", "sdmodel": "pony.safetensors"})
    assert found.files == ()
    assert "no text model is named" in found.problems[0].message
    elsewhere = read(tmp_path, {"model_param": "https://example.org/x.gguf"})
    assert "is no address of the Hugging Face Hub" in elsewhere.problems[0].message


def test_a_password_is_kept_apart_and_other_secrets_not_at_all(tmp_path: Path) -> None:
    found = read(
        tmp_path, {"model_param": "x.gguf", "password": "sesame", "hordekey": "k-1", "adminpassword": "k-2", "port_param": 80}
    )
    [key] = [file for file in found.files if file.mode == SECRET]
    assert (key.name, key.text) == ("mine.key", "sesame\n")
    assert found.settings == {"api_key_file": str(tmp_path / "models" / "mine.key"), "port": 80}
    said = "".join(map(str, found.warnings)) + next(file.text for file in found.files if file is not key)
    assert not any(secret in said for secret in ("sesame", "k-1", "k-2"))
    assert {"hordekey", "adminpassword"} <= set(warned(found))


def test_what_has_no_counterpart_is_told_with_its_place_and_why(tmp_path: Path) -> None:
    found = read(
        tmp_path, '{"model_param": "x.gguf",\n  "sdmodel": "a.gguf", "smartcontext": true,\n  "brandnew": 7, "nothing": false}'
    )
    assert [str(warning).partition("mine.kcpps:")[2] for warning in found.warnings if warning.key in warned(found)] == [
        "2:14: sdmodel: not imported: images are not made here",
        "2:40: smartcontext: not imported: a conversation that is too long is refused, never cut",
        "3:15: brandnew: has no counterpart here: not imported",
    ]
    assert "# Not used here: brandnew = 7\n" in found.files[0].text


def test_a_model_for_embeddings_becomes_one_of_its_own(tmp_path: Path) -> None:
    keys = {"model_param": "x.gguf", "embeddingsmodel": "/m/nomic.gguf", "embeddingsmaxctx": 2048, "embeddingsgpu": False}
    found = read(tmp_path, keys)
    assert config_of(found, "nomic.yaml") == {
        "parameters": {"model": "/m/nomic.gguf"},
        "embeddings": True,
        "context_size": 2048,
        "gpu_layers": 0,
    }


def test_a_folder_of_settings(tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    for name, password in (("a", "p1"), ("b", "p2")):
        (folder / f"{name}.kcpps").write_text(json.dumps({"model_param": "x.gguf", "password": password}))
    (folder / "c.kcpps").write_text("{")
    (folder / "notes.txt").write_text("x")
    found = kobold.read(folder, Around(specs(), tmp_path))
    assert [file.name for file in found.files] == ["a.yaml", "b.yaml", "a.key"]
    assert found.files[2].text == "p1\np2\n"
    assert found.settings == {"api_key_file": str(tmp_path / "a.key")}
    assert config_of(found, "a.yaml")["aliases"] == ["koboldcpp/x"]
    assert "aliases" not in config_of(found, "b.yaml")
    assert len(found.problems) == 1
    with pytest.raises(ConfigError):
        kobold.read(folder / "c.kcpps", Around(specs(), tmp_path))


def test_names(tmp_path: Path) -> None:
    found = read(tmp_path, {"model_param": "x.gguf", "hordemodelname": "koboldcpp/Nice Name"}, name="Rôle play.kcpps")
    assert config_of(found, "Rôle play.yaml")["aliases"] == ["koboldcpp/Nice Name"]
    assert [file.name for file in read(tmp_path, {"model_param": "x.gguf"}, name="t.kcppt").files] == ["t.yaml"]


@pytest.mark.parametrize(
    ("name", "text", "known"),
    [
        ("a.kcpps", "{}", True),
        ("a.kcppt", "{}", True),
        ("a.json", '{"model_param": "x", "contextsize": 1}', True),
        ("a.json", '{"model": "x", "contextsize": 1}', False),
        ("a.yaml", "name: x", False),
    ],
)
def test_recognition(tmp_path: Path, name: str, text: str, known: bool) -> None:
    (tmp_path / name).write_text(text)
    assert kobold.recognises(tmp_path / name) is known
    if known:
        importer = recognise(tmp_path / name)
        assert importer is not None
        assert importer.kind == "kobold"


KEYS = [
    *(
        "model",
        "model_param",
        "contextsize",
        "gpulayers",
        "threads",
        "usecublas",
        "usecuda",
        "usecpu",
        "tensor_split",
        "ropeconfig",
    ),
    *(
        "quantkv",
        "flashattention",
        "lora",
        "loramult",
        "draftmodel",
        "draftamount",
        "mmproj",
        "jinja",
        "jinja_kwargs",
        "jinjatemplate",
    ),
    *("chatcompletionsadapter", "embeddingsmodel", "embeddingsmaxctx", "embeddingsgpu", "host", "port", "port_param", "password"),
    *("hordemodelname", "hordekey", "defaultgenamt", "batchsize", "blasbatchsize", "usemmap", "nommap", "sdmodel", "other"),
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 70000)
    | st.floats(-2, 2)
    | st.sampled_from(["", "x.gguf", "0", "{", "C:\\x", "~", "a/b"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3)
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8))
def test_whatever_a_file_holds_it_is_read_and_told(tmp_path: Path, keys: dict[str, Any]) -> None:
    found = read(tmp_path, keys)
    for file in found.files:
        if file.model is not None:
            config_of(found, file.name)
    assert found.files or found.problems


def test_a_port_that_is_none_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, {"model_param": "x.gguf", "port_param": 99999})
    assert "port" not in found.settings and "65535" in warned(found)["port_param"]
