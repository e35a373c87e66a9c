"""The text of an installed model's YAML."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from llmgallery.backends.loader import specs
from llmgallery.catalog.install.write import WIDTH, checked, comment, file_name, yaml_text
from llmgallery.config.load import parse_model
from llmgallery.core.errors import ConfigError

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
NUMBERS = st.floats(0, 100, allow_nan=False) | st.just(1e-05) | st.just(1e-10)


@given(TEXTS.filter(bool), TEXTS, NUMBERS, TEXTS)
@example("12:30:45", "no", 1e-05, "x")
@example("0o17", "{{ x }}\n  {% if y %}\n\tz\n{% endif %}\n\n", 1.0, "#")
@example("1e3", "\n", 0.5, " - a")
@example("~", "|\n|", 0.1, "a: b")
@example("null", "  a\nb", 2e-7, "...\n---")
def test_every_text_is_read_back_as_it_is(stop: str, prompt: str, temperature: float, description: str):
    written = {
        "name": "m",
        "description": description,
        "backend": "echo",
        "parameters": {"temperature": temperature},
        "system_prompt": prompt,
        "stopwords": [stop, "x"],
    }
    text = yaml_text(written, [description, "From there."], {"stopwords": stop})
    loaded = parse_model(text.encode(), Path("m.yaml"), specs())
    if loaded.config is None:  # a description or a stop string may hold what no model file may, whatever its text
        assert yaml.safe_load(text) == written
        return
    assert loaded.config.stopwords == [stop, "x"]
    assert (loaded.config.system_prompt, loaded.config.description) == (prompt, description)
    assert loaded.config.parameters.temperature == pytest.approx(temperature)
    assert yaml.safe_load(text) == written


@given(st.text(max_size=300))
def test_comments_stay_comments(text: str):
    lines = comment(text).splitlines()
    assert all(line.startswith("# ") for line in lines)
    assert all(len(line) <= WIDTH or " " not in line[2:] for line in lines)


def test_the_text_is_for_people():
    text = yaml_text(
        {
            "name": "owner/repo:Q8_0",
            "parameters": {"model": "owner/repo/m.gguf@abc", "temperature": 0.7},
            "template": {"chat_template": "{% for m in messages %}\n  {{ m.content }}\n{% endfor %}\n"},
            "stopwords": ["<|im_end|>"],
        },
        ["From https://huggingface.co/owner/repo."],
        {"parameters": "The weights."},
    )
    assert text == (
        "# From https://huggingface.co/owner/repo.\n"
        "name: owner/repo:Q8_0\n"
        "# The weights.\n"
        "parameters:\n"
        "  model: owner/repo/m.gguf@abc\n"
        "  temperature: 0.7\n"
        "template:\n"
        "  chat_template: |\n"
        "    {% for m in messages %}\n"
        "      {{ m.content }}\n"
        "    {% endfor %}\n"
        "stopwords:\n"
        '  - "<|im_end|>"\n'
    )


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("qwen3-0.6b", "qwen3-0.6b.yaml"),
        ("owner/repo:Q8_0", "owner__repo-Q8_0.yaml"),
        ("owner/repo/sub/f.gguf@rev", "owner__repo__sub__f.gguf@rev.yaml"),
        (".hidden", "_hidden.yaml"),
        ("a\x00b\n*", "a-b--.yaml"),
        ("../../etc/passwd", "_.__..__etc__passwd.yaml"),
    ],
)
def test_a_files_name(name: str, file: str):
    assert file_name(name) == file


@given(st.text(min_size=1, max_size=400))
def test_a_files_name_is_one(name: str):
    found = file_name(name)
    assert "/" not in found and "\0" not in found and not found.startswith(".")
    assert len(found.encode(errors="replace")) <= 255


def test_long_names_stay_apart():
    first, second = (file_name(string.ascii_letters * 10 + end) for end in "ab")
    assert first != second


def test_what_would_be_no_model_file_is_refused_with_all_its_problems(tmp_path: Path):
    with pytest.raises(ConfigError, match="the model file for m would not be valid") as caught:
        checked("name: m\nbackend: echo\nparameters: {temperature: hot}\ncontext_size: -1\n", "m", tmp_path, specs())
    assert len(caught.value.hints) == 2
    assert all(f"{tmp_path}/m.yaml:" in hint or "m.yaml:" in hint for hint in caught.value.hints)
    assert checked("name: m\nbackend: echo\n", "m", tmp_path, specs()).backend == "echo"
