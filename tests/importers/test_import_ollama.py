"""Modelfiles, and what Ollama keeps on a machine, become model files that the server reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.backends.loader import specs
from llmgallery.config.load import parse_model
from llmgallery.core.errors import ConfigError
from llmgallery.importers import modelfile, ollama, ollama_store
from llmgallery.importers.base import Around, Imported
from llmgallery.importers.local_files import stem_of
from llmgallery.importers.recognise import recognise

HERE = Path("Modelfile")


def values(text: str) -> list[tuple[str, str, str, int]]:
    found, odd = modelfile.parse(text, HERE)
    assert odd == []
    return [(one.name, one.word, one.value, one.line) for one in found]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("FROM llama3.2", [("FROM", "", "llama3.2", 1)]),
        ("from\t./a b.gguf  \r\n", [("FROM", "", "./a b.gguf", 1)]),
        ("# comment\n\n  FROM x # not a comment", [("FROM", "", "x # not a comment", 3)]),
        ('SYSTEM "one\ntwo"\nFROM x', [("SYSTEM", "", "one\ntwo", 1), ("FROM", "", "x", 3)]),
        ('SYSTEM """\nSay "hi"  \n# kept\n"""', [("SYSTEM", "", '\nSay "hi"  \n# kept\n', 1)]),
        ('SYSTEM """a"""', [("SYSTEM", "", "a", 1)]),
        ('SYSTEM ""', [("SYSTEM", "", "", 1)]),
        ('parameter stop "a b"', [("PARAMETER", "stop", "a b", 1)]),
        ("PARAMETER  num_ctx\t 4096", [("PARAMETER", "num_ctx", "4096", 1)]),
        ("MESSAGE user Is it: true?", [("MESSAGE", "user", "Is it: true?", 1)]),
        ('SYSTEM It\'s "quoted" inside', [("SYSTEM", "", 'It\'s "quoted" inside', 1)]),
    ],
)
def test_modelfiles_are_read_as_ollama_reads_them(text: str, expected: list[tuple[str, str, str, int]]) -> None:
    assert values(text) == expected


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("FROM x\nFORM y", 2, "is no instruction of a Modelfile"),
        ("FROM x\n- y", 2, "is no instruction of a Modelfile"),
        ("FROM", 1, "nothing follows the instruction"),
        ("FROM x\nPARAMETER stop", 2, "expected a parameter's name and its value"),
        ("FROM x\nMESSAGE user ", 2, "expected a role and what it says"),
    ],
)
def test_odd_lines_are_told(text: str, place: int, message: str) -> None:
    _, [odd] = modelfile.parse(text, HERE)
    assert odd.line == place
    assert message in odd.message


def test_quotes_must_close() -> None:
    with pytest.raises(ConfigError, match="Modelfile:2:1: SYSTEM: the quotes are never closed"):
        modelfile.parse('FROM x\nSYSTEM """a\nb', HERE)


@given(st.text(alphabet='FROM SYTEPA"\n\t#ab:', max_size=60))
def test_whatever_stands_there_is_read_or_refused(text: str) -> None:
    try:
        found, odd = modelfile.parse(text, HERE)
    except ConfigError:
        return
    assert all(one.name in modelfile.INSTRUCTIONS for one in found)
    assert len(found) + len(odd) <= text.count("\n") + 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_marks(encoding: str) -> None:
    assert modelfile.decoded("FROM ü".encode(encoding)) == "FROM ü"


# --- to a model file ---------------------------------------------------------------------------------------------------------


def read(tmp_path: Path, text: str, name: str = "Modelfile", **around: Any) -> Imported:
    source = tmp_path / "mario"
    source.mkdir(exist_ok=True)
    (source / name).write_text(text)
    around.setdefault("env", {"OLLAMA_MODELS": str(tmp_path / "store")})
    return ollama.read(source / name, Around(specs(), tmp_path / "models", **around))


def config_of(imported: Imported, name: str = "x.yaml") -> dict[str, Any]:
    [(text, model)] = [(file.text, file.model) for file in imported.files if file.name == name]
    assert parse_model(text.encode(), Path(name), specs()).problems == ()
    config: dict[str, Any] = yaml.safe_load(text)
    assert config.pop("name") == model
    return config


def warned(imported: Imported) -> dict[str, str]:
    """All but that weights are not there (yet)."""
    return {warning.key: warning.message for warning in imported.warnings if "there is no file" not in warning.message}


def test_a_modelfile(tmp_path: Path) -> None:
    text = """
# a comment
FROM /models/x.gguf
PARAMETER temperature 0.7
PARAMETER num_ctx 4096
PARAMETER stop "<|im_end|>"
PARAMETER stop </s>
PARAMETER use_mmap false
PARAMETER seed 42
PARAMETER num_predict -2
PARAMETER num_gpu 999
SYSTEM \"\"\"You are Mario.
Be brief.\"\"\"
ADAPTER /models/lora.gguf
LICENSE \"\"\"MIT\"\"\"
"""
    found = read(tmp_path, text)
    assert config_of(found) == {
        "parameters": {"model": "/models/x.gguf", "temperature": 0.7, "seed": 42, "max_tokens": -1},
        "context_size": 4096,
        "stopwords": ["<|im_end|>", "</s>"],
        "mmap": False,
        "gpu_layers": 999,
        "system_prompt": "You are Mario.\nBe brief.",
        "lora_adapters": ["/models/lora.gguf"],
    }
    assert [(file.name, file.text) for file in found.files if file.model is None] == [("x.license.txt", "MIT\n")]
    assert warned(found) == {}
    assert found.problems == ()
    assert "which is called x here; --name says another" in found.notes[0]


PARAMETERS = {
    "repeat_last_n": (64, "parameters.repeat_last_n"),
    "repeat_penalty": (1.1, "parameters.repeat_penalty"),
    "top_k": (40, "parameters.top_k"),
    "top_p": (0.9, "parameters.top_p"),
    "min_p": (0.05, "parameters.min_p"),
    "typical_p": (0.7, "parameters.typical_p"),
    "presence_penalty": (0.5, "parameters.presence_penalty"),
    "frequency_penalty": (0.5, "parameters.frequency_penalty"),
    "mirostat": (2, "parameters.mirostat"),
    "mirostat_tau": (4.5, "parameters.mirostat_tau"),
    "mirostat_eta": (0.2, "parameters.mirostat_eta"),
    "num_thread": (3, "threads"),
    "num_batch": (256, "parameters.batch"),
    "main_gpu": (1, "main_gpu"),
    "use_mlock": (True, "mmlock"),
    "numa": (True, "numa"),
    "embedding_only": (True, "embeddings"),
    "rope_frequency_base": (20000, "parameters.rope_freq_base"),
    "rope_frequency_scale": (0.5, "parameters.rope_freq_scale"),
}


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_parameters(tmp_path: Path, name: str) -> None:
    value, key = PARAMETERS[name]
    found = read(tmp_path, f"FROM /m/x.gguf\nPARAMETER {name} {json.dumps(value)}")
    here: Any = config_of(found)
    for step in key.split("."):
        here = here[step]
    assert here == value
    assert warned(found) == {}


@pytest.mark.parametrize(
    ("line", "key", "message"),
    [
        ("PARAMETER num_keep 24", "PARAMETER.num_keep", "not imported: a conversation that is too long is refused"),
        ("PARAMETER tfs_z 0.9", "PARAMETER.tfs_z", "not imported: llama.cpp has no tail-free sampling any more"),
        ("PARAMETER colour red", "PARAMETER.colour", "has no counterpart here: not imported"),
        ("PARAMETER num_ctx many", "PARAMETER.num_ctx", "expected a whole number"),
        ("PARAMETER temperature -3", "PARAMETER.temperature", "not imported: "),
        ("PARAMETER num_predict 0", "PARAMETER.num_predict", "0 tokens: not imported"),
        ("MESSAGE user hi", "MESSAGE user", "not imported: an example conversation"),
        ("REQUIRES 0.14.0", "REQUIRES", "not imported: it is about versions of Ollama"),
        ("RENDERER qwen3", "RENDERER", "not imported: it is a part of Ollama"),
        ("FROM /m/other.gguf", "FROM", "one model has one set of weights: not imported"),
        ("FORM x", "FORM", "is no instruction of a Modelfile: not imported"),
    ],
)
def test_what_has_no_counterpart_is_told(tmp_path: Path, line: str, key: str, message: str) -> None:
    found = read(tmp_path, f"FROM /m/x.gguf\n{line}\n")
    [warning] = [warning for warning in found.warnings if "there is no file" not in warning.message]
    assert (warning.key, warning.line) == (key, 2)
    assert message in warning.message
    assert config_of(found) == {"parameters": {"model": "/m/x.gguf"}}


def test_the_last_of_a_parameter_counts(tmp_path: Path) -> None:
    found = read(tmp_path, "FROM /m/x.gguf\nPARAMETER top_k 1\nPARAMETER top_k 2\nSYSTEM a\nSYSTEM b")
    assert config_of(found) == {"parameters": {"model": "/m/x.gguf", "top_k": 2}, "system_prompt": "b"}
    assert warned(found) == {"PARAMETER top_k": "line 3 says it again, which counts"}


def test_a_system_message_may_stand_among_the_messages(tmp_path: Path) -> None:
    found = read(tmp_path, "FROM /m/x.gguf\nMESSAGE system Be brief.\nMESSAGE user a\nMESSAGE user b")
    assert config_of(found)["system_prompt"] == "Be brief."
    assert len(found.warnings) == 3  # two messages, and the weights that are not there


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("hf.co/o/r-GGUF:Q4_K_M", "o/r-GGUF:Q4_K_M"),
        ("huggingface.co/o/r-GGUF", "o/r-GGUF"),
        ("C:\\m\\x.gguf", "x.gguf"),
        ("~/x.gguf", str(Path("~/x.gguf").expanduser())),
    ],
)
def test_weights_from_elsewhere(tmp_path: Path, text: str, reference: str) -> None:
    found = read(tmp_path, f"FROM {text}", name="x.Modelfile")
    assert config_of(found)["parameters"]["model"] == reference


def test_weights_beside_the_modelfile(tmp_path: Path) -> None:
    folder = tmp_path / "mario"
    folder.mkdir()
    for name in ("a-00001-of-00002.gguf", "a-00002-of-00002.gguf"):
        (folder / name).write_bytes(b"GGUF")
    first = str(folder / "a-00001-of-00002.gguf")
    for text in ("FROM ./a-*.gguf", "FROM .", "FROM a-00001-of-00002.gguf\nFROM ./a-00002-of-00002.gguf"):
        found = read(tmp_path, text, name="x.modelfile")
        assert config_of(found)["parameters"]["model"] == first
        assert warned(found) == {}


def test_a_projector_is_no_second_model(tmp_path: Path) -> None:
    found = read(tmp_path, "FROM /m/x.gguf\nFROM /m/mmproj-x.gguf")
    assert config_of(found)["mmproj"] == "/m/mmproj-x.gguf"


def test_a_name_of_the_library_needs_weights(tmp_path: Path) -> None:
    found = read(tmp_path, "FROM llama3.2")
    assert found.files == ()
    [problem] = found.problems
    assert (problem.line, problem.key) == (1, "FROM")
    assert "llama3.2 is a model of Ollama's library" in problem.message
    assert "`ollama pull llama3.2` gets it" in problem.suggestion
    named = read(tmp_path, "FROM llama3.2\nSYSTEM hi", weights="o/r:Q8_0", name="mario.Modelfile")
    assert config_of(named, "mario.yaml") == {"parameters": {"model": "o/r:Q8_0"}, "system_prompt": "hi"}


def test_nothing_without_a_from(tmp_path: Path) -> None:
    assert "needs a FROM" in read(tmp_path, "SYSTEM hi").problems[0].message


CHATML = "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n"


def test_a_template_is_kept_as_it_is(tmp_path: Path) -> None:
    found = read(tmp_path, f'FROM /m/x.gguf\nTEMPLATE """{CHATML}"""')
    assert config_of(found)["template"] == {"engine": "ollama", "chat": CHATML}
    assert warned(found) == {}


def test_a_template_that_ollama_would_not_use_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, "FROM /m/x.gguf\nTEMPLATE {{ .Prompt }}\nRENDERER qwen3")
    assert "template" not in config_of(found)
    assert "Ollama uses its RENDERER instead" in warned(found)["TEMPLATE"]
    broken = read(tmp_path, "FROM /m/x.gguf\nTEMPLATE {{ .Prompt }}{{ end }}")
    assert "template" not in config_of(broken)
    assert warned(broken)["TEMPLATE"].startswith("does not parse (line 1, column 17: unexpected {{end}}")


# --- Ollama's own store ------------------------------------------------------------------------------------------------------


def layer(store: Path, kind: str, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (store / "blobs").mkdir(parents=True, exist_ok=True)
    (store / "blobs" / f"sha256-{digest}").write_bytes(data)
    return {"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}


def keep(store: Path, name: str, layers: list[dict[str, Any]]) -> None:
    path = store / "manifests" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))


def llama(store: Path) -> str:
    """Keeps llama3.2; returns where its weights are."""
    weights = layer(store, "model", b"GGUF-weights")
    params = json.dumps({"stop": ["<|eot_id|>", "x"], "temperature": 0.2, "num_keep": 3}).encode()
    layers = [weights, layer(store, "params", params), layer(store, "system", b"Base."), layer(store, "license", b"LLAMA")]
    layers.append(layer(store, "template", CHATML.encode()))
    keep(store, "registry.ollama.ai/library/llama3.2/latest", layers)
    return str(store / "blobs" / weights["digest"].replace(":", "-"))


def test_a_model_that_ollama_keeps_is_the_base(tmp_path: Path) -> None:
    weights = llama(tmp_path / "store")
    found = read(tmp_path, "FROM llama3.2\nPARAMETER top_k 3\nPARAMETER temperature 1", name="mario.Modelfile")
    assert config_of(found, "mario.yaml") == {
        "parameters": {"model": weights, "top_k": 3, "temperature": 1},
        "stopwords": ["<|eot_id|>", "x"],
        "system_prompt": "Base.",
        "template": {"engine": "ollama", "chat": CHATML},
    }
    assert warned(found) == {"PARAMETER.num_keep": "not imported: a conversation that is too long is refused, never cut"}
    own = read(tmp_path, "FROM llama3.2:latest\nSYSTEM Own.\nPARAMETER stop y", name="mario.Modelfile")
    assert config_of(own, "mario.yaml")["system_prompt"] == "Own."
    assert config_of(own, "mario.yaml")["stopwords"] == ["y"]


def test_a_renderer_that_the_base_has_counts_before_its_template(tmp_path: Path) -> None:
    store = tmp_path / "store"
    layers = [layer(store, "model", b"GGUF"), layer(store, "template", b"{{ .Prompt }}")]
    keep(store, "registry.ollama.ai/library/qwen3/latest", layers)
    config = layer(store, "config", b'{"renderer": "qwen3", "parser": "qwen3", "model_family": "qwen3"}')
    manifest = store / "manifests" / "registry.ollama.ai" / "library" / "qwen3" / "latest"
    manifest.write_text(json.dumps({"config": config, "layers": layers}))
    found = read(tmp_path, "FROM qwen3", name="mario.Modelfile")
    assert list(config_of(found, "mario.yaml")) == ["parameters"]
    assert {"TEMPLATE", "RENDERER", "PARSER"} <= set(warned(found))


def test_all_that_ollama_keeps(tmp_path: Path) -> None:
    store = tmp_path / "store"
    weights = llama(store)
    keep(store, "registry.ollama.ai/me/mario/v1", [layer(store, "model", b"GGUF-two"), layer(store, "projector", b"GGUF-eye")])
    keep(store, "hf.co/o/r/Q4_K_M", [layer(store, "model", b"GGUF-three")])
    (store / "manifests" / "registry.ollama.ai" / "library" / "broken").mkdir()
    (store / "manifests" / "registry.ollama.ai" / "library" / "broken" / "latest").write_text("{")
    importer = recognise(store)
    assert importer is not None
    assert importer.kind == "ollama"
    found = importer.read(store, Around(specs(), tmp_path / "models"))
    assert {file.model for file in found.files if file.model} == {"llama3.2", "me/mario:v1", "hf.co/o/r:Q4_K_M"}
    assert config_of(found, "llama3.2.yaml")["parameters"]["model"] == weights
    assert config_of(found, "llama3.2.yaml")["aliases"] == ["llama3.2:latest"]
    assert "mmproj" in config_of(found, "me__mario-v1.yaml")
    assert [problem.message.partition(":")[0] for problem in found.problems] == ["broken:latest cannot be read".partition(":")[0]]


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b/c/d", "", "llama3.2:..", "/x", "a//b"])
def test_names_never_leave_the_store(tmp_path: Path, name: str) -> None:
    assert ollama_store.manifest_of(tmp_path, name) is None


@pytest.mark.parametrize(
    ("name", "text", "known"),
    [
        ("Modelfile", "FROM x", True),
        ("Modelfile.mario", "x", True),
        ("mario.modelfile", "", True),
        ("recipe.txt", "# mario\nFROM llama3.2\nSYSTEM hi", True),
        ("Dockerfile", "FROM python:3.12\nRUN pip install x", False),
        ("model.yaml", "name: x\nparameters:\n  model: y", False),
        ("notes.txt", "nothing", False),
    ],
)
def test_recognition(tmp_path: Path, name: str, text: str, known: bool) -> None:
    (tmp_path / name).write_text(text)
    assert ollama.recognises(tmp_path / name) is known
    assert ollama.recognises(tmp_path) is (name == "Modelfile")


def test_every_adapter_is_loaded_and_a_second_draft_model_is_told(tmp_path: Path) -> None:
    found = read(tmp_path, "FROM ./x.gguf\nADAPTER ./a.gguf\nADAPTER ./b.gguf\nDRAFT ./c.gguf\nDRAFT ./d.gguf\n")
    config = config_of(found)
    assert [Path(each).name for each in config["lora_adapters"]] == ["a.gguf", "b.gguf"]
    assert Path(config["draft_model"]).name == "d.gguf" and "c.gguf, which is not imported" in warned(found)["DRAFT"]


def test_what_is_no_utf8_is_told(tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_bytes(b"FROM hf.co/a/b:Q4_0\nSYSTEM caf\xe9\n")
    found = ollama.read(tmp_path / "Modelfile", Around(specs(), tmp_path / "models"))
    assert [(warning.line, warning.message.partition(":")[0]) for warning in found.warnings] == [(2, "is not UTF-8")]


@pytest.mark.parametrize(
    ("text", "stem"), [("llama3.2", "llama3.2"), ("./Qwen2.5-0.5B", "Qwen2.5-0.5B"), ("a/x.Q4_K_M.gguf", "x.Q4_K_M")]
)
def test_a_version_is_no_suffix(text: str, stem: str) -> None:
    assert stem_of(text) == stem
