"""Templates in files beside the YAML: LocalAI's NAME.tmpl, the one beside the weights; what does not parse, and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmgallery.backends.loader import specs
from llmgallery.config.load import LoadedModel, load_model
from llmgallery.config.model import Template
from llmgallery.config.outside import Outside
from llmgallery.templates import jinja
from llmgallery.templates.gotmpl import check_go

OUTSIDE = Outside(jinja.check, absent=lambda reference, folder: "", go_template=check_go)


def load(folder: Path, text: str, outside: Outside = OUTSIDE) -> LoadedModel:
    path = folder / "m.yaml"
    path.write_text(f"backend: echo\nmodel: w.gguf\n{text}")
    return load_model(path, specs(), outside)


def template(folder: Path, text: str, outside: Outside = OUTSIDE) -> Template:
    loaded = load(folder, text, outside)
    assert loaded.config is not None, loaded.problems
    return loaded.config.template


def faults(folder: Path, text: str) -> list[tuple[str, int, int, str]]:
    loaded = load(folder, text)
    return [(Path(fault.path).name, fault.line, fault.column, fault.key) for fault in (*loaded.problems, *loaded.warnings)]


# --- NAME.tmpl ---------------------------------------------------------------------------------------------------------------


def test_a_template_may_be_the_name_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "llama-chat.tmpl").write_bytes("\ufeff{{.Input}}\r\nA:".encode())
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "done.tmpl").write_text("{{.Input}} done")
    found = template(tmp_path, "template: {chat: llama-chat, completion: sub/done, edit: '{{.Input}}'}")
    assert (found.chat, found.completion, found.edit) == ("{{.Input}}\r\nA:", "{{.Input}} done", "{{.Input}}")
    assert load(tmp_path, "template: {chat: llama-chat}").depends == (tmp_path / "llama-chat.tmpl", tmp_path / "w.gguf.tmpl")


def test_a_name_without_a_file_is_no_template(tmp_path: Path) -> None:
    (problem,) = load(tmp_path, "template: {chat: llama-chat}").problems
    assert (problem.line, problem.key) == (3, "template.chat")
    assert "llama-chat.tmpl" in problem.message and "every prompt would be this very text" in problem.suggestion
    assert load(tmp_path, "template: {chat: llama-chat}").depends == (tmp_path / "llama-chat.tmpl", tmp_path / "w.gguf.tmpl")
    assert template(tmp_path, "template: {chat: llama-chat}", Outside()).chat == "llama-chat"


def test_texts_of_several_lines_are_no_names(tmp_path: Path) -> None:
    assert template(tmp_path, "template:\n  chat: |\n    one\n    two\n").chat == "one\ntwo\n"
    assert template(tmp_path, f"template: {{multimodal: plain, chat: '{'x' * 300}'}}").multimodal == "plain"


@pytest.mark.parametrize("name", ["../secret", "/etc/secret", "link"])
def test_files_outside_of_the_folder_are_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.tmpl").write_text("{{.Input}}")
    inner = tmp_path / "models"
    inner.mkdir()
    (inner / "link.tmpl").symlink_to(tmp_path / "secret.tmpl")
    (problem,) = load(inner, f"template: {{chat: {name}}}").problems
    assert "outside the folder" in problem.message


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.tmpl").write_bytes(b"\xff")
    (tmp_path / "dir.tmpl").mkdir()
    assert "is not UTF-8" in load(tmp_path, "template: {chat: bad}").problems[0].message
    assert "cannot read dir.tmpl" in load(tmp_path, "template: {chat: dir}").problems[0].message


# --- beside the weights ------------------------------------------------------------------------------------------------------


def test_the_template_beside_the_weights_stands_in_for_those_that_are_not_written(tmp_path: Path) -> None:
    assert load(tmp_path, "").depends == (tmp_path / "w.gguf.tmpl",)
    (tmp_path / "w.gguf.tmpl").write_text("side {{.Input}}")
    found = template(tmp_path, "template: {completion: '{{.Input}}', chat_message: '{{.Content}}', chat: ''}")
    assert (found.chat, found.completion, found.edit) == ("side {{.Input}}", "{{.Input}}", "side {{.Input}}")
    assert (found.chat_message, found.function) == ("{{.Content}}", None)


@pytest.mark.parametrize("key", ["preset: chatml", "chat_template: x", "engine: gatogpt", "adapter: {user_start: U}"])
def test_what_the_yaml_says_comes_before_a_file_that_lies_there(tmp_path: Path, key: str) -> None:
    (tmp_path / "w.gguf.tmpl").write_text("side {{.Input}}")
    assert template(tmp_path, f"template: {{{key}}}").chat is None


def test_a_template_beside_the_weights_that_does_not_parse_is_told(tmp_path: Path) -> None:
    (tmp_path / "w.gguf.tmpl").write_text("{{.Input}}\n {{if}}")
    assert faults(tmp_path, "")[0][:2] == ("w.gguf.tmpl", 2)
    (tmp_path / "w.gguf.tmpl").write_bytes(b"\xff")
    assert "not UTF-8" in load(tmp_path, "").problems[0].message
    (tmp_path / "w.gguf.tmpl").write_bytes(b"x" * (1024 * 1024 + 1))
    assert "larger than" in load(tmp_path, "").problems[0].message


# --- places ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("template:\n  chat: '{{foo}}'\n", 4, 12),
        ("template: {chat: 'ab {{foo}}'}\n", 3, 24),
        ("template:\n  chat: |\n    one\n    {{foo}}\n", 6, 7),
        ("template:\n    chat: |-\n\n            {{ foo }}\n", 6, 16),
        ("template:\n  chat: {{foo}}\n", 0, 0),
        ('template:\n  chat: "a\\n{{foo}}"\n', 4, 9),
        ("template:\n  chat: >\n    one\n    {{foo}}\n", 5, 1),
    ],
)
def test_where_a_template_in_the_yaml_is_wrong(tmp_path: Path, text: str, line: int, column: int) -> None:
    (fault, *_) = load(tmp_path, text).problems
    if line:
        assert (fault.line, fault.column, fault.key) == (line, column, "template.chat")
        assert "the template does not parse: " in fault.message and "foo" in fault.message
    else:
        assert "quotes" in fault.suggestion


def test_where_a_template_in_a_file_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "t.tmpl").write_text("one\n  {{foo}}")
    assert faults(tmp_path, "template: {chat: t}") == [("t.tmpl", 2, 5, "template.chat")]


def test_prompts_there_are_without_their_template_so_a_fault_in_it_is_a_warning(tmp_path: Path) -> None:
    loaded = load(tmp_path, "template: {completion: '{{-.Input}}', edit: '{{if}}', chat: '{{.Input}}'}")
    assert loaded.config is not None
    assert [(warning.key, warning.suggestion) for warning in loaded.warnings] == [
        ("template.completion", "prompts go to the model without it"),
        ("template.edit", "prompts go to the model without it"),
    ]


# --- what nobody uses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("template: {use_tokenizer_template: true, chat: '{{.Input}}', edit: '{{.Input}}'}", ["template.chat"]),
        (
            "template: {chat_template: x, chat: '{{.Input}}', chat_message: '{{.Content}}'}",
            ["template.chat", "template.chat_message"],
        ),
        ("template: {adapter: {user_start: U}, function: '{{.Input}}'}", ["template.function"]),
        ("template: {preset: chatml, chat: '{{.Input}}'}", ["template.preset"]),
        (
            "template: {chat: '{{.Input}}', generation: x, variables: {InputPrefix: x}}",
            ["template.generation", "template.variables"],
        ),
        ("template: {preset: gatogpt/chatml, variables: {InputPrefix: x}}", []),
        ("template: {engine: gatogpt, chat: '{{ Nothing of Go }}', function: x}", ["template.function"]),
        ("template: {chat: '{{.Input}}'}\nsystem_prompt: x", ["system_prompt"]),
        ("template: {chat: '{{.SystemPrompt}}{{.Input}}'}\nsystem_prompt: x", []),
        ("template: {completion: '{{.Input}}'}\nsystem_prompt: x", []),
    ],
)
def test_templates_that_are_not_used_are_told(tmp_path: Path, text: str, keys: list[str]) -> None:
    loaded = load(tmp_path, text)
    assert loaded.config is not None, loaded.problems
    assert [warning.key for warning in loaded.warnings if "not used" in warning.message] == keys


WITH_WEIGHTS = "as use_tokenizer_template is set"
NEITHER = f"not used: the weights' template writes the chats, {WITH_WEIGHTS}, and without one template.adapter"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "template: {use_tokenizer_template: true, adapter: {user_start: U}, engine: gatogpt, chat: x, preset: alpaca}",
            {
                "template.adapter": f"not used where the weights bring a template, {WITH_WEIGHTS}",
                "template.chat": NEITHER,
                "template.preset": NEITHER,
            },
        ),
        (
            "template: {use_tokenizer_template: true, chat_template: x}",
            {"template.chat_template": f"not used where the weights bring a template, {WITH_WEIGHTS}"},
        ),
        ("template: {use_tokenizer_template: true, preset: chatml}", {}),
        (
            "template: {chat_template: x, adapter: {user_start: U}, engine: ollama, chat: '{{.Prompt}}', preset: chatml}",
            dict.fromkeys(
                ("template.adapter", "template.chat", "template.preset"), "not used: template.chat_template writes the chats"
            ),
        ),
        (
            "template: {chat_template_file: t.jinja, preset: chatml}",
            {"template.preset": "not used: template.chat_template_file writes the chats"},
        ),
        (
            "template: {engine: ollama, chat: '{{.Prompt}}', preset: chatml}",
            {"template.preset": "not used: template.chat writes the chats"},
        ),
        (
            "template: {adapter: {user_start: U}, engine: gatogpt, completion: x, generation: y}",
            dict.fromkeys(("template.completion", "template.generation"), "not used: template.adapter writes the chats"),
        ),
        ("template: {engine: gatogpt, chat: x, preset: gatogpt/chatml}", {}),
        ("template: {use_tokenizer_template: true}", {}),
    ],
)
def test_what_is_used_instead_is_named(tmp_path: Path, text: str, told: dict[str, str]) -> None:
    (tmp_path / "t.jinja").write_text("x")
    loaded = load(tmp_path, text)
    assert loaded.config is not None, loaded.problems
    assert {warning.key: warning.message for warning in loaded.warnings if "not used" in warning.message} == told


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_chat_template_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.jinja").write_text(text)
    for key, value in (("chat_template", f'"{text}"'.replace(chr(10), chr(92) + "n")), ("chat_template_file", "t.jinja")):
        loaded = load(tmp_path, f"template:\n  {key}: {value}\n")
        (problem,) = loaded.problems
        assert (problem.line, problem.column, problem.key) == (4, 3, f"template.{key}")
        assert "the template is empty" in problem.message


def test_localais_yaml_with_escaped_apostrophes_loads(tmp_path: Path) -> None:
    found = template(tmp_path, "template:\n  chat: \"{\\'name\\': {{.Input}}}\"\n")
    assert found.chat == "{'name': {{.Input}}}"
