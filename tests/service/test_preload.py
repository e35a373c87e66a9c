"""LocalAI's variables for models that are installed at the start."""

from pathlib import Path

import pytest

from llmgallery.catalog.install.job import Asked
from llmgallery.core.errors import ConfigError
from llmgallery.service.install.preload import asked_for, preloads


def test_both_variables_and_all_keys(tmp_path: Path) -> None:
    file = tmp_path / "preload.yaml"
    file.write_text(
        "- url: github:owner/repo/entry.yaml@main\n  name: mine\n  overrides: {context_size: 512}\n"
        "  files:\n  - {uri: https://example.org/a.gguf, filename: a.gguf}\n- config_url: https://example.org/e.yaml\n"
    )
    found = preloads(
        {
            "PRELOAD_MODELS": '[{"id": "localai@qwen", "variant": "localai@qwen-q8_0"}, {"id": "owner/repo:Q8_0"}]',
            "PRELOAD_MODELS_CONFIG": str(file),
        }
    )
    assert found == [
        Asked(reference="localai@qwen:qwen-q8_0"),
        Asked(reference="owner/repo:Q8_0"),
        Asked(
            reference="github:owner/repo/entry.yaml@main",
            name="mine",
            overrides={"context_size": 512},
            files=({"uri": "https://example.org/a.gguf", "filename": "a.gguf"},),
        ),
        Asked(reference="https://example.org/e.yaml"),
    ]
    assert asked_for("owner/repo") == Asked(reference="owner/repo")


@pytest.mark.parametrize("environ", [{}, {"PRELOAD_MODELS": ""}, {"PRELOAD_MODELS": "[]"}, {"PRELOAD_MODELS": "# none"}])
def test_nothing(environ: dict[str, str]) -> None:
    assert preloads(environ) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"^PRELOAD_MODELS: .*; expected a list such as"),
        ('{"id": "qwen"}', r"^PRELOAD_MODELS: Expected `array"),
        ('["qwen"]', r"^PRELOAD_MODELS: Expected `object`, got `str` - at `\$\[0\]`"),
        ('[{"id": 7}]', r"at `\$\[0\]\.id`"),
        ('[{"id": "a"}, {"name": "b"}]', r"^PRELOAD_MODELS\[1\]: neither id nor url"),
        ('[{"id": "a", "files": [{"filename": "x"}]}]', r"missing required field `uri`"),
        ("!!python/object/apply:os.getcwd []", r"^PRELOAD_MODELS: could not determine a constructor"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        preloads({"PRELOAD_MODELS": text})


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"PRELOAD_MODELS_CONFIG=.*: cannot be read: No such file"):
        preloads({"PRELOAD_MODELS_CONFIG": str(tmp_path / "gone")})
    (tmp_path / "large").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="larger than"):
        preloads({"PRELOAD_MODELS_CONFIG": str(tmp_path / "large")})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        preloads({"PRELOAD_MODELS_CONFIG": str(tmp_path / "binary")})
