"""Ledgers, drafts and how files are written."""

from __future__ import annotations

import errno
import os

import pytest
from importing_scene import imported, models, told, written

from llmgallery.cli.importing import KINDS
from llmgallery.core.errors import ConfigError
from llmgallery.importers.base import SECRET, Imported, WrittenFile, save, write
from llmgallery.importers.jsontext import read_json
from llmgallery.importers.ledger import UNREAD, Ledger, read_yaml
from llmgallery.importers.recognise import importer_for, importers


def table_of(text, tmp_path, *, folded=False):
    path = tmp_path / "source.yaml"
    path.write_text(text)
    ledger = Ledger(path)
    return ledger, ledger.table(read_yaml(path), folded=folded)


def test_what_nobody_read_is_told_with_its_place(tmp_path):
    ledger, table = table_of("a: 1\nb: {c: 2, d: [3]}\ne: x\nf:\n", tmp_path)
    assert table.get("a", int) == 1
    assert table.table("b").get("c", int) == 2
    assert [str(problem).removeprefix(str(tmp_path)) for problem in ledger.close()] == [
        f"/source.yaml:2:11: b.d: {UNREAD}",
        f"/source.yaml:3:1: e: {UNREAD}",
    ]
    assert ledger.left == {"b.d": [3], "e": "x"}


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3", int, 3),
        ("3.0", int, 3),
        ("3", float, 3),
        ("yes", bool, True),
        ("0123", str, "0123"),
        ("12", str, "12"),
        ("[a, 2]", list, ["a", "2"]),
        ("a", list, ["a"]),
        ("null", int, None),
    ],
)
def test_values_are_read_as_they_are_wanted(text, kind, value, tmp_path):
    ledger, table = table_of(f"key: {text}\n", tmp_path)
    assert table.get("key", kind) == value
    assert not ledger.close()


@pytest.mark.parametrize(
    ("text", "kind"), [("x", int), ("3.5", int), ("true", float), ("1", bool), ("[a]", str), ("{a: 1}", list)]
)
def test_a_value_of_another_kind_is_told(text, kind, tmp_path):
    ledger, table = table_of(f"key: {text}\n", tmp_path)
    assert table.get("key", kind) is None
    [problem] = ledger.close()
    assert (problem.key, problem.line) == ("key", 1)
    assert problem.message.startswith("expected ")
    assert list(ledger.left) == ["key"]


def test_folded_keys_are_found_in_any_spelling(tmp_path):
    ledger, table = table_of("AntiPrompts: [a]\ntop_k: 3\nTopK: 4\n", tmp_path, folded=True)
    assert table.get("Antiprompts", list) == ["a"]
    assert table.get("TopK", int) == 3
    assert ["means the same" in problem.message for problem in ledger.close()] == [True]


def test_a_source_that_is_no_mapping_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"source.yaml:1:1: expected a mapping, found a list"):
        table_of("- a\n", tmp_path)


# --- JSON --------------------------------------------------------------------------------------------------------------------


def test_json_with_comments_commas_and_escapes(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{\n  // one\n\t"a": "\\ud83d\\ude00 // no comment", /* two\n */ "b": [1, 2,],\n}')
    ledger = Ledger(path)
    table = ledger.table(read_json(path, ledger))
    assert table.get("a", str) == "\N{GRINNING FACE} // no comment"
    assert table.get("b", list) == ["1", "2"]
    assert not ledger.close()


def test_brackets_that_close_nothing_are_told(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": {"b": 1}}\n} ]\n')
    ledger = Ledger(path)
    table = ledger.table(read_json(path, ledger))
    assert table.table("a").get("b", int) == 1
    [problem] = ledger.close()
    assert (problem.line, problem.column) == (2, 1)


@pytest.mark.parametrize("text", ['{"a": 1', '{"a": 1}} {"b": 2}', '{"a": "x', "{,}"])
def test_what_is_no_json_is_refused_with_its_place(text, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json:\d+:\d+: "):
        read_json(path, Ledger(path))


# --- writing -----------------------------------------------------------------------------------------------------------------


def test_files_are_written_with_their_modes_and_only_once(tmp_path):
    folder = tmp_path / "new" / "models"
    found = Imported((WrittenFile("a.yaml", "name: a\n", model="a"), WrittenFile("key", "secret\n", SECRET)))
    assert save(found, folder) == [folder / "a.yaml", folder / "key"]
    assert (folder / "a.yaml").read_text() == "name: a\n"
    assert (folder / "key").stat().st_mode & 0o777 == 0o600
    assert save(found, folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ["a.yaml", "key"]


def test_nothing_is_replaced_unless_it_is_asked_for(tmp_path):
    (tmp_path / "b.yaml").write_text("mine\n")
    found = Imported((WrittenFile("a.yaml", "name: a\n"), WrittenFile("b.yaml", "name: b\n")))
    with pytest.raises(ConfigError, match=r"b\.yaml is there already, with another text: nothing was written; --force"):
        save(found, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.yaml"]
    assert len(save(found, tmp_path, force=True)) == 2
    assert (tmp_path / "b.yaml").read_text() == "name: b\n"


def test_a_key_that_others_can_read_is_written_anew(tmp_path):
    (tmp_path / "key").write_text("secret\n")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(ConfigError, match="is there already"):
        save(Imported((WrittenFile("key", "secret\n", SECRET),)), tmp_path)
    save(Imported((WrittenFile("key", "secret\n", SECRET),)), tmp_path, force=True)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"):
        save(Imported((WrittenFile("a.yaml", ""),)), tmp_path / "file")


# --- recognising -------------------------------------------------------------------------------------------------------------


def test_the_command_knows_every_importer():
    assert tuple(importer.kind for importer in importers()) == KINDS


def test_what_nobody_knows_is_told_with_what_is_known(tmp_path):
    (tmp_path / "x.txt").write_text("hello")
    for source in (tmp_path, tmp_path / "x.txt"):
        with pytest.raises(ConfigError, match=r"is in no format that is known here\. These are: .*localai: "):
            importer_for(source)
    with pytest.raises(ConfigError, match="there is no file or folder"):
        importer_for(tmp_path / "gone")


@pytest.mark.parametrize("name", ["a.yaml", "a.json"])
def test_what_cannot_be_read_is_told_with_its_place(name, tmp_path):
    with pytest.raises(ConfigError, match=rf"{name}:1:15: the bracket"):
        importer_for(written(tmp_path, {name: '{"backend": [1}\n'}) / name)


# --- drafts ------------------------------------------------------------------------------------------------------------------


def test_what_the_server_would_refuse_is_left_out_and_told_where_it_stands(tmp_path):
    text = "name: a\nbackend: echo\nparameters:\n  top_p: 7\n  temperature: 1\nstopwords: ['', x, '']\nthreads: many\n"
    found = imported(written(tmp_path, {"a.yaml": text}) / "a.yaml", tmp_path / "out")
    assert models(found) == {"a": {"name": "a", "backend": "echo", "parameters": {"temperature": 1}, "stopwords": ["x"]}}
    assert told(found) == ["parameters.top_p", "stopwords", "threads"]
    assert sorted(warning.line for warning in found.warnings) == [4, 6, 6, 7]
    head = [line for line in found.files[0].text.splitlines() if line.startswith("#")]
    assert "# Not used here: parameters.top_p = 7" in head
    assert '# Not used here: threads = "many"' in head


def test_a_backend_that_is_not_here_stays_and_one_that_is_none_does_not(tmp_path):
    listed = "- {name: a, backend: vllm, parameters: {model: x}}\n- {name: b, backend: [echo], parameters: {model: x.gguf}}\n"
    found = imported(written(tmp_path, {"list.yaml": listed}) / "list.yaml", tmp_path / "out")
    assert {name: config.get("backend") for name, config in models(found).items()} == {"a": "vllm", "b": None}
    backend = [warning for warning in found.warnings if warning.key.endswith("backend")]
    assert ["is not available yet" in warning.message for warning in backend] == [True, False]


def test_models_of_one_name_do_not_overwrite_each_other(tmp_path):
    listed = "- {name: a/b, backend: echo}\n- {name: a__b, backend: echo}\n- {name: a/b, backend: echo}\n"
    found = imported(written(tmp_path, {"list.yaml": listed}) / "list.yaml", tmp_path / "out")
    assert [file.name for file in found.files] == ["a__b.yaml", "a__b_2.yaml", "a__b_3.yaml"]
    assert sorted(file.name for file in found.files)[0] == "a__b.yaml", "the registry serves the first"
    (warning,) = found.warnings
    assert (warning.key, warning.line) == ("name", 3) and "a/b is the name of another model in this file" in warning.message


def test_what_is_no_file_is_not_waited_for(tmp_path):
    folder = written(tmp_path, {"a.yaml": "name: a\nbackend: echo\n"})
    os.mkfifo(folder / "x.yaml")
    found = imported(folder, tmp_path / "out")
    assert list(models(found)) == ["a"]
    assert "it is a FIFO, not a regular file" in str(found.problems[0])
    os.mkfifo(folder / "y.json")
    with pytest.raises(ConfigError, match="FIFO"):
        importer_for(folder / "y.json")


def test_all_that_is_left_out_of_a_list_is_kept_in_a_comment_but_no_secret(tmp_path):
    text = "name: a\nbackend: echo\nstopwords: [1, {b: 2}, x]\nhf_token: hf_123\nfoo_token: kept\n"
    found = imported(written(tmp_path, {"a.yaml": text}) / "a.yaml", tmp_path / "out")
    lines = found.files[0].text.splitlines()
    assert "# Not used here: hf_token = (a secret)" in lines and '# Not used here: foo_token = "kept"' in lines
    assert sum("stopwords[0]" in line for line in lines) == 2 and "hf_123" not in found.files[0].text


def test_a_file_system_without_hard_links_is_written_to(tmp_path, monkeypatch):
    def refused(*names):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    path = tmp_path / "a.yaml"
    write(path, "name: a\n")
    with pytest.raises(FileExistsError):
        write(path, "name: b\n")
    assert path.read_text() == "name: a\n" and list(tmp_path.iterdir()) == [path]
