"""Reading of single files beyond the cases: sources that lie, bounds, templates, and hostile input."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgallery.backends.loader import specs
from llmgallery.config.load import LoadedModel, load_model, parse_model
from llmgallery.config.nodes import MAX_BYTES, MAX_VISITS
from llmgallery.config.outside import Outside
from llmgallery.config.readers import MAX_PROBLEMS
from llmgallery.templates import jinja

HERE = Path("x.yaml")


def parse(text: str | bytes, outside: Outside | None = None) -> LoadedModel:
    data = text if isinstance(text, bytes) else text.encode()
    return parse_model(data, HERE, specs(), outside)


def messages(loaded: LoadedModel) -> list[str]:
    return [str(problem) for problem in loaded.problems]


def test_a_file_that_cannot_be_opened_is_a_problem(tmp_path: Path) -> None:
    loaded = load_model(tmp_path / "gone.yaml", specs())
    assert loaded.name == "gone"
    assert "cannot be read: No such file" in messages(loaded)[0]
    folder = tmp_path / "dir.yaml"
    folder.mkdir()
    assert "cannot be read" in messages(load_model(folder, specs()))[0]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"backend: echo\n" + b"#" * MAX_BYTES)
    (message,) = messages(load_model(path, specs()))
    assert f"at most {MAX_BYTES:,} are read" in message


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "a: " + "[" * 50_000 + "]" * 50_000,
        "- " * 200_000,
        "? " * 100_000,
        "{a: " * 50_000,
        "a:\n" + "".join(" " * n + "a:\n" for n in range(1, 1200)),
    ],
)
def test_deep_nesting_is_refused_and_does_not_end_the_process(text: str) -> None:
    (message,) = messages(parse(text))
    assert "nested too deeply" in message or "not valid YAML" in message


def test_merges_are_counted_as_aliases_are() -> None:
    wide = ", ".join(f"k{n}: 1" for n in range(2000))
    merges = "".join(f"  {a}: &{a} {{<<: [{', '.join([f'*{b}'] * 9)}]}}\n" for a, b in ("ba", "cb", "dc", "ed"))
    loaded = parse(f"backend: echo\nchat_template_kwargs:\n  a: &a {{{wide}}}\n{merges}")
    assert [f"more than {MAX_VISITS:,} values" in message for message in messages(loaded)] == [True]


def test_many_problems_are_cut_short() -> None:
    loaded = parse("".join(f"key{n}: 1\n" for n in range(5000)))
    assert len(loaded.problems) == MAX_PROBLEMS + 1 + 1  # the cut, and the weights that are missing
    assert any("more problems than are listed" in message for message in messages(loaded))


@pytest.mark.parametrize(("written", "value"), [("yes", True), ("Off", False), ("TRUE", True), ("no", False)])
def test_yes_and_no_count_where_a_bool_is_expected(written: str, value: bool) -> None:
    config = parse(f"backend: echo\npinned: {written}\nsystem_prompt: {'x' if written == 'TRUE' else written}").config
    assert config is not None
    assert config.pinned is value
    assert config.system_prompt == ("x" if written == "TRUE" else written)


@pytest.mark.parametrize("line", ["parameters: {seed: 9223372036854775808}", "chat_template_kwargs: {a: [99999999999999999999]}"])
def test_numbers_that_no_worker_can_be_sent(line: str) -> None:
    (message,) = messages(parse(f"backend: echo\n{line}"))
    assert "does not fit 64 bits" in message


def test_a_quoted_yes_is_no_bool() -> None:
    (message,) = messages(parse('backend: echo\npinned: "yes"'))
    assert "expected true or false" in message


def test_a_key_without_a_value_counts_as_not_written() -> None:
    config = parse("backend: echo\nparameters:\ncontext_size: ~\nstopwords:\n").config
    assert config is not None
    assert config.context_size is None
    assert config.stopwords == []


def test_the_backend_is_told_by_the_weights() -> None:
    outside = Outside(recognise=lambda reference, folder: "gguf" if "gguf" in reference else None)
    assert parse("model: a.gguf", outside).backend == "llama-cpp"
    unknown = parse("model: owner/repo", outside)
    assert unknown.config is not None
    assert unknown.backend is None


def test_backend_names_in_any_case_and_by_alias() -> None:
    assert parse("backend: LlamaCPP\nmodel: a.gguf").backend == "llama-cpp"
    assert parse("backend: ECHO").backend == "echo"


def test_the_line_of_a_template_fault() -> None:
    outside = Outside(template=jinja.check)
    block = "backend: echo\ntemplate:\n  chat_template: >-\n    {{ a }}\n\n    {% if %}\n"
    (problem,) = parse(block, outside).problems
    assert problem.line >= 4
    inline = parse("backend: echo\ntemplate: {chat_template: '{% if %}'}", outside)
    assert [problem.line for problem in inline.problems] == [2]


def test_a_fault_in_a_template_file_names_that_file(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("ok\n{% if %}\n")
    path = tmp_path / "m.yaml"
    path.write_text("backend: echo\ntemplate: {chat_template_file: t.jinja}\n")
    (problem,) = load_model(path, specs(), Outside(template=jinja.check)).problems
    assert (problem.path, problem.line) == (tmp_path / "t.jinja", 2)


def test_jinja_that_looks_a_little_like_go_is_jinja() -> None:
    source = "{%- if messages[0].role == 'system' -%}{{ messages[0].content }}{%- endif -%}{{ x.Input }}"
    loaded = parse_model(
        f"backend: echo\ntemplate:\n  chat_template: |\n    {source}\n".encode(), HERE, specs(), Outside(jinja.check)
    )
    assert not loaded.problems


@pytest.mark.parametrize("key", ["temprature", "parameter", "stopword", "kontext_size"])
def test_near_keys_are_suggested(key: str) -> None:
    loaded = parse(f"backend: echo\n{key}: x\n")
    assert "did you mean" in messages(loaded)[0] or "belongs" in messages(loaded)[0]


def test_a_key_of_the_top_level_written_below_is_told_with_its_level() -> None:
    for key, meant in (("gpu_layer", "gpu_layers"), ("n_ctx", "context_size"), ("cache_type", "cache_type_k or cache_type_v")):
        loaded = parse(f"backend: echo\nparameters: {{{key}: 1}}\n")
        assert messages(loaded)[0].endswith(f"did you mean {meant} (at the top level)?")
    assert messages(parse("backend: echo\ngpu_layer: 1"))[0].endswith("did you mean gpu_layers?")


def test_a_list_of_aliases_under_alias_is_told_once() -> None:
    loaded = parse("parameters: {model: x.gguf}\nalias: [tale]\n")
    (message,) = messages(loaded)
    assert message.endswith("alias: expected text, found a list; did you mean aliases?")
    assert not loaded.warnings


WORDS = st.sampled_from([
    "name", "backend", "parameters", "model", ":", ": ", "\n", "\n  ", "\t", "- ", "[", "]", "{", "}", '"', "'", "\\'", "&a ",
    "*a", "<<: ", "!!str ", "!x ", "---\n", "# ", "|\n", "echo", "1e5", "yes", "~", "\x00", "é", "%", "@", "? ", "\ufeff",
    "\u2028",
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=25).map("".join))
def test_any_text_gives_a_config_or_problems(text: str) -> None:
    loaded = parse(text.encode())
    assert (loaded.config is None) == bool(loaded.problems)
    assert all(str(problem) for problem in loaded.problems)
    assert msgspec.msgpack.encode(loaded.config), "a worker gets it"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_give_a_config_or_problems(data: bytes) -> None:
    loaded = parse(data)
    assert (loaded.config is None) == bool(loaded.problems)


@pytest.mark.parametrize(("written", "good"), [("0", False), ("-1", True), ("1", True), ("-2", False)])
def test_an_answer_has_room_for_one_token_at_least(written: str, good: bool) -> None:
    loaded = parse(f"backend: echo\nparameters: {{max_tokens: {written}}}")
    assert (not loaded.problems) is good
    if not good:
        assert "out of range" in messages(loaded)[0] and (loaded.problems[0].line, loaded.problems[0].column) == (2, 26)


def test_the_first_part_of_keys_suggests_them() -> None:
    assert "did you mean parameters.top_k or parameters.top_p?" in messages(parse("backend: echo\ntop: 1"))[0]
    assert "did you mean parameters.top_k or parameters.top_p?" in messages(parse("backend: echo\nparameters: {top: 1}"))[0]
    assert "did you mean parameters.repeat_penalty" in messages(parse("backend: echo\nrepeat: 1"))[0]


def test_an_unknown_item_of_an_option_list_says_why_it_is_no_error() -> None:
    loaded = parse('backend: echo\noptions: ["foo:bar"]')
    assert not loaded.problems
    assert "LocalAI's lists hold keys for other builds" in loaded.warnings[0].message


def test_a_reference_is_judged_only_where_weights_are_needed() -> None:
    outside = Outside(malformed=lambda reference, folder: "no good" if "@" in reference else "")
    assert not parse("backend: echo\nmodel: x@", outside).problems
    (problem,) = parse("backend: llama-cpp\nmodel: x@", outside).problems
    assert (problem.line, problem.column, problem.message) == (2, 8, "no good")
    assert len(parse("backend: llama-cpp\nmodel: ../x@", outside).problems) == 1


@pytest.mark.parametrize("line_break", ["\n  ", "\r\n  ", "\r  ", "\x85  ", "\u2028  ", "\U0001f600", "\ufeff"])
def test_escaped_apostrophes_after_any_line_break(line_break: str) -> None:
    loaded = parse(f'backend: echo\nsystem_prompt: "one{line_break}it{chr(92)}\'s"\n')
    assert loaded.config is not None, messages(loaded)
    assert (loaded.config.system_prompt or "").endswith("it's")


def test_an_escape_after_a_strange_line_break_is_no_crash() -> None:
    assert parse('"\u2028' + chr(92) + "'").problems


@pytest.mark.parametrize(("line", "quotes"), [("keep_alive: true", False), ("owned_by: 5", True), ("description: true", True)])
def test_quotes_are_advised_only_where_they_would_help(line: str, quotes: bool) -> None:
    (message,) = messages(parse(f"backend: echo\n{line}"))
    assert ("put it in quotes" in message) is quotes
