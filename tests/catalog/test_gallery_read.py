"""Index files: LocalAI's quirks, places of what is wrong, and that a bad entry costs no other."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgallery.catalog.gallery import read
from llmgallery.catalog.gallery.entry import EntryFile, GalleryEntry, Index
from llmgallery.catalog.gallery.read import read_base, read_index
from llmgallery.core.errors import ConfigError

DIGEST = "0123456789abcdef" * 4

QUIRKS = f"""---
# An index with what indexes of this kind hold.
- &family
  name: "owl-7b-q4"
  url: "github:someone/models/gallery/virtual.yaml@master"
  urls:
    - https://example.org/owl
  description: |
    # Owl

    Sees at night.
  license: apache-2.0
  tags: [llm, gguf, 2024]
  icon: https://example.org/owl.png
  last_checked: "2026-08-19"
  variants:
    - model: owl-7b-q8
    - owl-7b:tiny
  size: 4.5GB
  overrides:
    backend: llama-cpp
    options: [use_jinja:true, "parallel:2"]
    stopwords: [No, "</s>"]
    parameters: {{model: owl/q4.gguf, temperature: 0.7}}
  files:
    - filename: owl/q4.gguf
      sha256: {DIGEST.upper()}
      uri: huggingface://someone/Owl-GGUF/q4.gguf
- !!merge <<: *family
  name: owl-7b-q8
  variants: []
  overrides:
    parameters:
      model: owl-q8.gguf
  files:
    - {{uri: "https://example.org/owl-q8.gguf?download=true", sha256: "", size: 7 GiB}}
- name: owl-7b:tiny
  parameters: {{temperature: 1}}
  Training Data: forests
  overrides:
    parameters:
      model: someone/Owl-tiny
- name: 7
"""


def index(text: str) -> Index:
    return read_index(text.encode(), "index.yaml", "wood")


def only(text: str) -> GalleryEntry:
    found = index(text)
    assert not found.problems, found.problems
    (entry,) = found.entries.values()
    return entry


def test_an_entry_is_read_with_all_its_keys():
    entry = index(QUIRKS).entries["owl-7b-q4"]
    assert entry == GalleryEntry(
        name="owl-7b-q4",
        gallery="wood",
        description="# Owl\n\nSees at night.\n",
        licence="apache-2.0",
        tags=("llm", "gguf", "2024"),
        urls=("https://example.org/owl",),
        icon="https://example.org/owl.png",
        url="github:someone/models/gallery/virtual.yaml@master",
        overrides={
            "backend": "llama-cpp",
            "options": ["use_jinja:true", "parallel:2"],
            "stopwords": ["No", "</s>"],
            "parameters": {"model": "owl/q4.gguf", "temperature": 0.7},
        },
        files=(EntryFile("owl/q4.gguf", "huggingface://someone/Owl-GGUF/q4.gguf", DIGEST),),
        variants=("owl-7b-q8", "owl-7b:tiny"),
        size=4_500_000_000,
        last_checked="2026-08-19",
        source="index.yaml",
        place=(3, 3),
    )
    assert entry.id == "wood@owl-7b-q4" and entry.where == "index.yaml:3:3"


def test_a_merged_entry_inherits_what_it_does_not_say():
    found = index(QUIRKS)
    child = found.entries["owl-7b-q8"]
    assert child.licence == "apache-2.0" and child.variants == () and child.url is not None
    assert child.overrides == {"parameters": {"model": "owl-q8.gguf"}}, "merges are shallow"
    assert child.files == (EntryFile("owl-q8.gguf", "https://example.org/owl-q8.gguf?download=true", None, 7 * 2**30),)
    assert list(found.entries) == ["owl-7b-q4", "owl-7b-q8", "owl-7b:tiny", "7"] and not found.problems


def test_stray_keys_are_told_and_cost_nothing():
    assert index(QUIRKS).entries["owl-7b:tiny"].warnings == (
        "index.yaml:38:3: parameters: unknown key, not read",
        "index.yaml:39:3: Training Data: unknown key, not read",
    )


@pytest.mark.parametrize(
    "written, names",
    [
        ("name: one\n---\nname: two\n", ["one", "two"]),
        ("- name: one\n---\nname: two\n...\n", ["one", "two"]),
        ("name: one", ["one"]),
        ("[]", []),
        ("", []),
        ("# nothing yet\n", []),
        ("---\n---\n", []),
        ("\ufeff- name: one\r\n  license: mit\r\n", ["one"]),
    ],
)
def test_a_file_is_a_list_or_one_entry_a_document(written, names):
    found = index(written)
    assert list(found.entries) == names and not found.problems


@pytest.mark.parametrize(
    "key, value, field, expected",
    [
        ("licence", "mit", "licence", "mit"),
        ("license", "2.0", "licence", "2.0"),
        ("tags", "one", "tags", ("one",)),
        ("tags", "[a, a, ~, b]", "tags", ("a", "b")),
        ("urls", "https://a", "urls", ("https://a",)),
        ("size", "4683073952", "size", 4683073952),
        ("size", "12 apples", "size", None),
        ("revision", "1234567", "revision", "1234567"),
        ("aliases", "[x, y]", "aliases", ("x", "y")),
        ("overrides", "{aliases: [z]}", "aliases", ("z",)),
        ("config", "{backend: echo}", "config", {"backend": "echo"}),
        ("config_file", "{backend: echo}", "config", {"backend": "echo"}),
        ("config_file", '"backend: echo"', "config", {"backend": "echo"}),
        ("config_file", '""', "config", {}),
        ("overrides", "{mmap: no, f16: true, big: 0x10}", "overrides", {"mmap": "no", "f16": True, "big": 16}),
        ("description", "[a]", "description", ""),
        ("overrides", "", "overrides", {}),
    ],
)
def test_values_as_people_write_them(key, value, field, expected):
    assert getattr(only(f"- name: a\n  {key}: {value}\n"), field) == expected


def test_what_is_only_shown_is_passed_over_with_a_warning():
    entry = only("- name: a\n  icon: {b: c}\n  size: large\n  tags: [[x], y]\n  license: mit\n  licence: mit\n")
    assert entry.tags == ("y",) and entry.icon is None
    assert [warning.partition(" ")[0] for warning in entry.warnings] == [
        "index.yaml:2:9:",
        "index.yaml:3:9:",
        "index.yaml:4:10:",
        "index.yaml:6:3:",
    ]


PROBLEMS = [
    ("- files: []\n", "index.yaml:1:3: name: the key is missing; an entry is asked for by its name"),
    ("- name: ' '\n", "index.yaml:1:3: name: a name must not be empty, nor begin or end with a space"),
    ("- name: [a]\n", "index.yaml:1:9: name: expected text, found a list"),
    ("- just text\n", "index.yaml:1:3: expected an entry (`name: ...`), found the text 'just text'"),
    ("- name: a\n  overrides: 3\n", "index.yaml:2:14: overrides: expected a model file's keys, found the number 3"),
    ("- name: a\n  files: {}\n", "index.yaml:2:10: files: expected a list of files (`- uri: ...`), found a mapping"),
    ("- name: a\n  files: [x]\n", "index.yaml:2:11: files[0]: expected a file (`uri: ...`), found the text 'x'"),
    (
        "- name: a\n  files: [{filename: b}]\n",
        "index.yaml:2:11: files[0]: the key uri is missing; write where the file comes from",
    ),
    (
        "- name: a\n  files: [{uri: b, sha256: 12ab}]\n",
        "index.yaml:2:28: files[0].sha256: expected 64 hexadecimal digits, found the text '12ab'; leave out what you do not know",
    ),
    ("- name: a\n  variants: [{model: }]\n", "index.yaml:2:14: variants[0]: expected `model: name`, found a mapping"),
    ("- name: a\n  url: [b]\n", "index.yaml:2:8: url: expected text, found a list"),
    ("- name: a\n  name: b\n", "index.yaml:2:3: name: the key is already in line 1; keep one of them"),
    ("- name: a\n  overrides: {b: !!binary aa}\n", "index.yaml:2:18: overrides.b: the tag !!binary is not read here; "),
    (
        "- name: a\n  config_file: |\n    backend: echo\n    f16: true\n    f16: no\n",
        "index.yaml:5:5: config_file: f16: the key is already in line 4; keep one of them",
    ),
    (
        "- name: a\n  config_file: |\n    backend: [echo\n",
        "index.yaml:4:5: config_file: the bracket opened in line 3 is not closed",
    ),
    ("- name: a\n  config_file: '- b'\n", "index.yaml:2:16: config_file: expected a model file's keys, found a list"),
]


@pytest.mark.parametrize("written, said", PROBLEMS, ids=range(len(PROBLEMS)))
def test_a_bad_entry_is_a_problem_with_its_place_and_the_others_stay(written, said):
    alone = index(written)
    assert not alone.entries and str(alone.problems[0]).startswith(said)
    beside = index(f"- name: before\n{written}- name: after\n")
    assert list(beside.entries) == ["before", "after"]
    assert [problem.line for problem in beside.problems] == [problem.line + 1 for problem in alone.problems]


def test_of_two_entries_of_one_name_the_first_counts():
    found = index("- {name: a, license: mit}\n- {name: a, license: other}\n")
    assert found.entries["a"].licence == "mit"
    assert [str(problem) for problem in found.problems] == [
        "index.yaml:2:3: name: the name 'a' is already that of the entry in line 1"
    ]


# --- what is no YAML ---------------------------------------------------------------------------------------------------------

BROKEN = [
    ('- name: "bad\n  license: mit\n', (2, 9)),
    ("- name: bad\n  tags: [a, b\n", (4, 1)),
    ("- name: bad\n   tags: [a]\n", (3, 8)),
    ("- name: bad\n\ttags: [a]\n", (3, 1)),
    ("- name: *nobody\n", (2, 9)),
    ("- name: bad\n  description: `code`\n", (3, 16)),
    ("- }\n", (2, 3)),
]


@pytest.mark.parametrize("written, at", BROKEN)
def test_an_entry_that_is_no_yaml_costs_no_other(written, at):
    found = index(f"- name: first\n{written}- name: last\n  description: 'it''s \"quoted\"'\n")
    assert list(found.entries) == ["first", "last"]
    assert [(problem.line, problem.column) for problem in found.problems] == [at]


def test_who_builds_on_a_broken_entry_is_told_so():
    found = index(
        '- &a\n  name: "a\n  overrides: &o {f16: true}\n'
        "- {!!merge <<: *a, name: child}\n- {name: other, overrides: *o}\n- {name: well}\n"
    )
    assert list(found.entries) == ["well"]
    assert [str(problem) for problem in found.problems] == [
        "index.yaml:2:9: the quote that begins here is not closed; close it",
        "index.yaml:4:3: it builds on the entry in line 1, which cannot be read",
        "index.yaml:5:3: it builds on the entry in line 1, which cannot be read",
    ]


def test_a_broken_document_costs_no_other():
    found = index("name: first\n---\nname: [\n---\nname: last\n")
    assert list(found.entries) == ["first", "last"] and len(found.problems) == 1


def test_backslash_and_quote_as_go_reads_it():
    assert only('- name: a\n  description: "it\\\'s"\n').description == "it's"


@pytest.mark.parametrize(
    "data, said",
    [
        (b"- name: \xff\n", "index.yaml:1:9: the file is not UTF-8"),
        (b"just text", "index.yaml:1:1: expected a list of entries (`- name: ...`), or one entry (`name: ...`), found the text"),
        (b"- name: a\x01\n", "index.yaml:1:10: a control character"),
        (b"[" * 100_000, "index.yaml:1:1: nested too deeply"),
    ],
)
def test_what_is_no_index(data, said):
    found = read_index(data, "index.yaml", "wood")
    assert not found.entries and str(found.problems[0]).startswith(said)


def test_an_index_is_bounded(monkeypatch):
    monkeypatch.setattr(read, "MAX_INDEX", 20)
    (problem,) = read_index(b"- name: " + b"a" * 20, "i", "g").problems
    assert "28 bytes; at most 20" in str(problem)


def test_aliases_of_aliases_are_bounded_for_the_whole_index(monkeypatch):
    """Each entry alone is within its bound; all together are not."""
    monkeypatch.setattr(read, "MAX_VALUES", 30_000)
    tens = "[" + ", ".join("x" * 10) + "]"
    bomb = f"- &a {{name: bomb, overrides: {{k: &l {tens}, l: &m [{', '.join(['*l'] * 100)}], m: [{', '.join(['*m'] * 10)}]}}}}\n"
    found = index(bomb + "".join(f"- {{<<: *a, name: n{number}}}\n" for number in range(5)))
    assert list(found.entries) == ["bomb", "n0", "n1"]
    assert "more than 30,000 values: the entries from here on are not read" in str(found.problems[-1])


@given(st.lists(st.sampled_from([*QUIRKS.splitlines(keepends=True), "- \n", "}\n", '"', "*x ", "\t", "&family "]), max_size=30))
def test_no_file_is_too_strange(pieces):
    found = index("".join(pieces))
    assert all(problem.message for problem in found.problems)


@given(st.text(alphabet="ab:[]{}'\"\\|>&*!-#,% \n\t?`", max_size=40), st.integers(0, 3))
def test_whatever_one_entry_is_the_others_are_read(garbage, where):
    """Its lines are indented, as an entry's are."""
    entries = [f"- name: n{number}\n  tags: [a]\n" for number in range(4)]
    entries.insert(where, "- " + garbage.replace("\n", "\n  ") + "\n")
    found = index("".join(entries))
    assert {"n0", "n1", "n2", "n3"} <= found.entries.keys(), found.problems


def test_a_large_index_is_read_in_time():
    """As large as LocalAI's: 1,709 entries, most of them merged. Measured 0.3 s; the bound leaves room for a busy machine."""
    text = ["  " + "x" * 80 + "\n"] * 12
    head = "".join(["  description: |\n", *("  " + line for line in text)])
    entries = []
    for number in range(1709):
        start = f"- &f{number}\n" if number % 28 == 0 else f"- !!merge <<: *f{number - number % 28}\n"
        body = (
            f"  name: model-{number}\n{head}  tags: [llm, gguf, chat]\n  overrides:\n    parameters: {{model: {number}.gguf}}\n"
        )
        file = f"  files:\n  - filename: {number}.gguf\n    sha256: {DIGEST}\n    uri: huggingface://a/b/{number}.gguf\n"
        entries.append(start + body + file)
    begun = time.perf_counter()
    found = index("".join(entries))
    assert time.perf_counter() - begun < 5
    assert len(found.entries) == 1709 and not found.problems


def test_the_documents_example_means_what_it_says():
    text = (Path(__file__).parents[2] / "docs" / "gallery-format.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    found = index(example)
    assert not found.problems and list(found.entries) == ["owl-7b", "owl-7b:q8_0"]
    first, second = found.entries.values()
    assert not first.warnings and first.variants == ("owl-7b:q8_0",) and second.variants == ()
    assert second.files[0].filename == "owl-7b.Q8_0.gguf" and "backend" not in second.overrides


# --- base files --------------------------------------------------------------------------------------------------------------

BASE = """---
name: base
license: N/A
config_file: |
    backend: llama-cpp
    stopwords:
    - <|end|>
    template:
        chat: |
            {{.Input -}}
            "it\\'s"
"""


def test_a_base_file_holds_its_keys_as_text():
    base = read_base(BASE.encode(), "base.yaml")
    assert base.config["template"] == {"chat": '{{.Input -}}\n"it\\\'s"\n'}
    assert base.licence == "N/A" and base.config["stopwords"] == ["<|end|>"]


@pytest.mark.parametrize("written", ["", "name: virtual\n", "config_file: {}\n", "# nothing\n"])
def test_a_base_file_may_say_nothing(written):
    assert read_base(written.encode(), "b").config == {}


def test_what_is_wrong_in_a_base_file_has_its_place():
    with pytest.raises(ConfigError) as caught:
        read_base(BASE.replace("    stopwords:", "    f16: true\n    f16: false\n    stopwords:").encode(), "base.yaml")
    assert caught.value.hints[0].startswith("base.yaml:7:5: config_file: f16: the key is already in line 6")
    with pytest.raises(ConfigError, match=r"base\.yaml:1:1: expected a base file"):
        read_base(b"- a", "base.yaml")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_base(b"\xff", "base.yaml")


def test_an_anchor_may_be_defined_again():
    """YAML 1.2.2, 7.1: an alias means the last definition above it. PyYAML refuses the whole text."""
    text = """
- &family
  name: one
  overrides: {backend: llama-cpp}
- !!merge <<: *family
  name: two
- &family
  name: three
  description: "it\\'s *family, not &family"
  overrides: {backend: transformers}
- {<<: *family, name: four}
- &family {name: five, overrides: {backend: openvino}}
- {<<: *family, name: six}
"""
    index = read_index(text.encode(), "index.yaml", "test")
    assert index.problems == ()
    backends = {name: entry.overrides["backend"] for name, entry in index.entries.items()}
    assert backends == {
        **dict.fromkeys(("one", "two"), "llama-cpp"),
        **dict.fromkeys(("three", "four"), "transformers"),
        **dict.fromkeys(("five", "six"), "openvino"),
    }
    assert index.entries["four"].description == "it's *family, not &family"
    broken = read_index(text.replace("{name: five", "{name: [five").encode(), "index.yaml", "test")
    assert set(broken.entries) == {"one", "two", "three", "four"}
    assert broken.problems[0].line == 12


def test_anchors_defined_again_cost_little():
    text = "".join(f"- &q\n  name: m{i}\n  overrides: {{n: {i}}}\n- {{<<: *q, name: n{i}}}\n" for i in range(2000))
    began = time.process_time()
    index = read_index(text.encode(), "index.yaml", "test")
    assert time.process_time() - began < 2
    assert len(index.entries) == 4000 and index.entries["n1999"].overrides == {"n": 1999}


@pytest.mark.parametrize("size", ["9" * 400 + "GB", "9" * 5000, "9" * 30, "99999999TB", "-1"])
def test_a_size_beyond_all_disks_is_none(size: str):
    index = read_index(f"- name: owl\n  size: '{size}'\n- name: other\n".encode(), "index.yaml", "test")
    assert [entry.size for entry in index.entries.values()] == [None, None]
    assert "size" in index.entries["owl"].warnings[0]
