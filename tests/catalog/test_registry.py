import os
import shutil
import socket
import threading
from pathlib import Path

import pytest

from llmgallery import paths
from llmgallery.backends.loader import specs
from llmgallery.catalog.index import Entry, Snapshot
from llmgallery.catalog.registry import Registry
from llmgallery.config.model import Template
from llmgallery.config.outside import Outside

POCKET = paths.builtin("models") / "pocket-f16.gguf"
GGUF = b"GGUF\x03\x00\x00\x00" + bytes(16)


def write(folder: Path, **files: str) -> None:
    folder.mkdir(exist_ok=True)
    for stem, text in files.items():
        (folder / f"{stem}.yaml").write_text(f"backend: echo\n{text}\n")


def registry(*folders: Path) -> Registry:
    return Registry(folders, specs())


def notes(snapshot: Snapshot, name: str) -> list[str]:
    return [problem.message for problem in snapshot.warnings(snapshot.entries[name])]


def test_before_the_first_read_there_is_nothing(tmp_path: Path) -> None:
    write(tmp_path, a="")
    found = registry(tmp_path)
    assert not found.ready
    assert found.snapshot == Snapshot()
    assert list(found.read().entries) == ["a"]
    assert found.ready


def test_one_broken_file_keeps_no_other_from_being_served(tmp_path: Path) -> None:
    write(tmp_path, good="", bad="tempratur: 1", worse="[")
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfe\x00")
    found = registry(tmp_path).read()
    assert list(found.entries) == ["good"]
    assert set(found.broken) == {"bad", "worse", "binary"}
    assert "did you mean parameters.temperature?" in str(found.broken["bad"].problems[0])


def test_only_yaml_files_right_in_the_folder_and_no_editors_leftovers(tmp_path: Path) -> None:
    write(tmp_path, a="", b="")
    (tmp_path / "a.yaml").rename(tmp_path / "A.YML")
    write(tmp_path / "sub", c="")
    for name in (".hidden.yaml", "x.yaml~", "#x.yaml#", ".x.yaml.swp", "x.yaml.tmp", "x.yaml.bak", "4913"):
        (tmp_path / name).write_text("backend: echo\n")
    found = registry(tmp_path).read()
    assert list(found.entries) == ["A", "b"]
    assert not found.broken


def test_of_two_files_with_one_name_the_first_serves(tmp_path: Path) -> None:
    write(tmp_path, b="name: same\ndescription: second", a="name: same\ndescription: first", c="name: other")
    found = registry(tmp_path).read()
    assert found.entries["same"].config.description == "first"
    (problem,) = found.broken["b.yaml"].problems
    assert (problem.line, problem.key) == (2, "name")
    assert "already taken by" in problem.message and "a.yaml" in problem.message


def test_the_users_file_overrides_the_built_in_one_silently(tmp_path: Path) -> None:
    write(tmp_path / "user", pocket="description: mine\naliases: [default]")
    write(tmp_path / "builtin", pocket="description: theirs", extra="aliases: [default]")
    found = registry(tmp_path / "user", tmp_path / "builtin").read()
    assert found.entries["pocket"].config.description == "mine"
    assert found.aliases["default"].name == "pocket"
    assert not found.broken
    assert not notes(found, "extra")


def test_one_folder_given_twice_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "models", a="")
    (tmp_path / "link").symlink_to(tmp_path / "models")
    found = registry(tmp_path / "models", tmp_path / "link").read()
    assert list(found.entries) == ["a"]
    assert not found.broken


def test_the_first_file_keeps_an_alias_and_the_other_is_warned(tmp_path: Path) -> None:
    write(tmp_path, a="aliases: [x, 'g*']", b="aliases: [x, 'g*', a, y]")
    found = registry(tmp_path).read()
    assert (found.aliases["x"].name, found.aliases["y"].name) == ("a", "b")
    assert [pattern for pattern, _ in found.globs] == ["g*"]
    assert [message.split(" already")[0] for message in notes(found, "b")] == ["'x'", "'g*'", "'a'"]
    assert notes(found, "a") == []


def test_a_disabled_model_is_listed_and_not_served(tmp_path: Path) -> None:
    write(tmp_path, a="disabled: true\naliases: [x]")
    found = registry(tmp_path).read()
    assert not found.entries and not found.aliases
    assert list(found.disabled) == ["a"]


def test_adding_editing_and_deleting_touch_only_that_model(tmp_path: Path) -> None:
    write(tmp_path, a="", b="", c="aliases: [x]")
    (tmp_path / "w.gguf").write_bytes(GGUF)
    found = registry(tmp_path)
    before = found.read()
    write(tmp_path, d="")
    write(tmp_path, b="description: new")
    (tmp_path / "c.yaml").unlink()
    after = found.refresh()
    assert set(after.entries) == {"a", "b", "d", "w"}
    assert after.entries["a"] is before.entries["a"]
    assert after.entries["w"] is before.entries["w"]
    assert after.entries["b"].config.description == "new"
    assert "c" in before.entries and "x" in before.aliases, "a snapshot never changes"
    assert "x" not in after.aliases


def test_touching_a_file_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, a="")
    found = registry(tmp_path)
    before = found.read().entries["a"]
    os.utime(tmp_path / "a.yaml", ns=(1, 1))
    assert found.refresh().entries["a"] is before


def test_a_mended_file_is_served_and_a_spoilt_one_is_listed(tmp_path: Path) -> None:
    write(tmp_path, a="x: 1", b="")
    found = registry(tmp_path)
    assert set(found.read().broken) == {"a"}
    write(tmp_path, a="description: mended", b="y: 1")
    after = found.refresh()
    assert set(after.entries) == {"a"}
    assert set(after.broken) == {"b"}


def test_an_edit_that_leaves_size_and_time_is_read_when_it_is_told(tmp_path: Path) -> None:
    write(tmp_path, a="description: one")
    path = tmp_path / "a.yaml"
    found = registry(tmp_path)
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    found.read()
    write(tmp_path, a="description: two")
    os.utime(path, ns=times)
    assert found.refresh({path}).entries["a"].config.description == "two"


def test_the_template_file_belongs_to_the_model(tmp_path: Path) -> None:
    write(tmp_path, a="template: {chat_template_file: t.jinja}", b="")
    found = registry(tmp_path)
    before = found.read()
    assert set(before.broken) == {"a"}
    (tmp_path / "t.jinja").write_text("one")
    one = found.refresh()
    assert one.entries["a"].config.template.chat_template == "one"
    (tmp_path / "t.jinja").write_text("second")
    assert found.refresh().entries["a"].config.template.chat_template == "second"
    assert one.entries["b"] is before.entries["b"]


def test_templates_and_presets_are_checked_from_outside(tmp_path: Path) -> None:
    class Fault:
        line, column, message = 1, 1, "no good"

    write(tmp_path, a="template: {chat_template: bad}", b="template: {preset: chatlm}", c="template: {chat_template: fine}")
    outside = Outside(template=lambda source: Fault() if source == "bad" else None, presets=("chatml",))
    found = Registry([tmp_path], specs(), outside).read()
    assert list(found.entries) == ["c"]
    assert "no good" in found.broken["a"].problems[0].message
    assert found.broken["b"].problems[0].suggestion == "did you mean chatml?"


def test_a_template_beside_weights_without_a_yaml_is_theirs(tmp_path: Path) -> None:
    """As LocalAI serves bare weights."""
    (tmp_path / "tiny.gguf").write_bytes(GGUF)
    found = registry(tmp_path)
    assert found.read().entries["tiny"].config.template == Template()
    (tmp_path / "tiny.gguf.tmpl").write_text("{{.Input}} and so on")
    entry = found.refresh().entries["tiny"]
    assert (entry.config.template.chat, entry.config.template.completion) == ("{{.Input}} and so on",) * 2
    assert found.is_current(entry) and found.refresh().entries["tiny"] is entry
    (tmp_path / "tiny.gguf.tmpl").write_text("{{.Input}}")
    assert not found.is_current(entry) and found.refresh().entries["tiny"].config.template.chat == "{{.Input}}"


def test_a_template_beside_weights_that_does_not_parse_breaks_them(tmp_path: Path) -> None:
    class Fault:
        line, column, message = 1, 8, "no good"

    (tmp_path / "tiny.gguf").write_bytes(GGUF)
    (tmp_path / "tiny.gguf.tmpl").write_text("broken")
    outside = Outside(go_template=lambda source: Fault() if source == "broken" else None)
    found = Registry([tmp_path], specs(), outside)
    (problem,) = found.read().broken["tiny"].problems
    assert (problem.path, problem.line, problem.column) == (tmp_path / "tiny.gguf.tmpl", 1, 8)
    (tmp_path / "tiny.gguf.tmpl").write_text("mended")
    assert found.refresh().entries["tiny"].config.template.chat == "mended"


def test_a_later_folder_does_not_answer_in_the_name_of_a_broken_file(tmp_path: Path) -> None:
    write(tmp_path / "mine", a="tempratur: 1")
    write(tmp_path / "builtin", a="", b="")
    found = Registry([tmp_path / "mine", tmp_path / "builtin"], specs()).read()
    assert set(found.entries) == {"b"} and found.broken["a"].path == tmp_path / "mine" / "a.yaml"


def test_bare_weights_do_not_answer_in_the_name_of_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(GGUF)
    write(tmp_path, tiny="parameters: {model: tiny.gguf, temperature: hot}\nsystem_prompt: Be brief.")
    found = registry(tmp_path).read()
    assert set(found.broken) == {"tiny"} and set(found.entries) == {"tiny.gguf"}


def test_weights_without_a_yaml_are_models_under_both_names(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf.bin").write_bytes(GGUF)
    (tmp_path / "UPPER.GGUF").write_bytes(GGUF)
    (tmp_path / "notes.bin").write_bytes(b"no weights")
    (tmp_path / "copying.gguf.part").write_bytes(GGUF)
    found = registry(tmp_path).read()
    assert list(found.entries) == ["UPPER", "tiny"]
    entry = found.entries["tiny"]
    assert (entry.backend, entry.config.weights, entry.aliases) == ("llama-cpp", "tiny.gguf.bin", ("tiny.gguf.bin",))
    assert found.aliases["UPPER.GGUF"].name == "UPPER"


def test_weights_that_a_yaml_names_are_no_models_of_their_own(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf", "c.gguf", "d.gguf"):
        (tmp_path / name).write_bytes(GGUF)
    (tmp_path / "x.yaml").write_text("model: a.gguf\nmmproj: ./b.gguf\n")
    (tmp_path / "y.yaml").write_text(f"parameters: {{model: {tmp_path}/c.gguf}}\n")
    assert set(registry(tmp_path).read().entries) == {"x", "y", "d"}


def test_weights_whose_short_name_is_taken_keep_the_long_one(tmp_path: Path) -> None:
    write(tmp_path, a="aliases: [tiny]", b="")
    for name in ("a.gguf", "tiny.gguf"):
        (tmp_path / name).write_bytes(GGUF)
    found = registry(tmp_path)
    before = found.read()
    assert set(before.entries) == {"a", "b", "a.gguf", "tiny.gguf"}
    assert before.entries["a"].path.name == "a.yaml"
    assert before.entries["tiny.gguf"].config.name == "tiny.gguf"
    assert found.refresh().entries["tiny.gguf"] is before.entries["tiny.gguf"]


def test_a_folder_of_weights_that_no_backend_loads_is_listed(tmp_path: Path) -> None:
    folder = tmp_path / "hf-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    found = Registry([tmp_path], {"llama-cpp": specs()["llama-cpp"]}).read()
    assert "holds safetensors weights, which no backend here loads" in found.broken["hf-model"].problems[0].message
    assert registry(tmp_path).read().entries["hf-model"].backend == "transformers"


def test_a_folder_that_is_not_whole_is_listed_broken(tmp_path: Path) -> None:
    folder = tmp_path / "hf-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    found = registry(tmp_path).read()
    assert "model-00002-of-00002.safetensors is missing" in found.broken["hf-model"].problems[0].message


def test_the_backend_appears_when_the_weights_do(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("model: later.bin\n")
    found = registry(tmp_path)
    assert found.read().entries["a"].backend is None
    (tmp_path / "later.bin").write_bytes(GGUF)
    assert found.refresh().entries["a"].backend == "llama-cpp"


def test_folders_may_be_missing_go_and_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "models"
    found = registry(folder)
    assert not found.read().entries
    write(folder, a="")
    assert set(found.refresh().entries) == {"a"}
    (folder / "a.yaml").unlink()
    folder.rmdir()
    after = found.refresh()
    assert not after.entries and not after.problems


def test_a_file_in_the_folders_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("")
    (problem,) = registry(tmp_path / "models").read().problems
    assert "the folder cannot be read: Not a directory" in str(problem)


def test_a_dangling_link_is_a_broken_model(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").symlink_to(tmp_path / "nowhere.yaml")
    assert "No such file" in str(registry(tmp_path).read().broken["a"].problems[0])


@pytest.mark.parametrize("name", ["a", "b"])
def test_created_is_the_files_time(tmp_path: Path, name: str) -> None:
    write(tmp_path, **{name: ""})
    os.utime(tmp_path / f"{name}.yaml", (1_700_000_000, 1_700_000_000))
    entry = registry(tmp_path).read().entries[name]
    assert isinstance(entry, Entry)
    assert (entry.created, entry.folder) == (1_700_000_000, tmp_path)


def within_a_deadline(found: Registry) -> Snapshot:
    """The first reading, which must not block: what hangs in a thread of its own can still be told."""
    reading = threading.Thread(target=found.read, daemon=True)
    reading.start()
    reading.join(20)
    assert not reading.is_alive(), "the reading blocks"
    return found.snapshot


def test_fifos_and_sockets_do_not_block_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pipe.yaml", "pipe.gguf", "weights", "t.jinja"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder" / "x.gguf")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("talk.yaml")
        write(tmp_path, a="", b="template: {chat_template_file: t.jinja}")
        (tmp_path / "c.yaml").write_text("model: weights\n")
        found = within_a_deadline(registry(tmp_path))
    assert set(found.entries) == {"a", "c"}
    assert "it is a FIFO, not a regular file" in str(found.broken["pipe"].problems[0])
    assert "it is a socket, not a regular file" in str(found.broken["talk"].problems[0])
    (problem,) = found.broken["b"].problems
    assert (problem.line, problem.key) == (2, "template.chat_template_file") and "a FIFO" in problem.message


def test_a_file_that_becomes_a_regular_one_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.yaml")
    found = registry(tmp_path)
    assert set(within_a_deadline(found).broken) == {"a"}
    (tmp_path / "a.yaml").unlink()
    write(tmp_path, a="")
    assert set(found.refresh().entries) == {"a"}


@pytest.mark.parametrize(
    "reference", ["owner/repo/x.gguf@", "owner/repo:", "http://[x/y", "~nobody-of-this-name/x.gguf", "my models/x/y.gguf"]
)
def test_a_reference_that_can_mean_nothing_breaks_its_own_file_alone(tmp_path: Path, reference: str) -> None:
    write(tmp_path, good="")
    (tmp_path / "bad.yaml").write_text(f"description: x\nmodel: {reference!r}\n")
    found = registry(tmp_path).read()
    assert set(found.entries) == {"good"}
    (problem,) = found.broken["bad"].problems
    assert (problem.line, problem.column, problem.key) == (2, 8, "model")


def test_a_bad_reference_means_a_file_once_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("parameters: {model: my models/x/y.gguf}\n")
    found = registry(tmp_path)
    assert set(found.read().broken) == {"a"}
    (tmp_path / "my models" / "x").mkdir(parents=True)
    (tmp_path / "my models" / "x" / "y.gguf").write_bytes(GGUF)
    assert found.refresh().entries["a"].backend == "llama-cpp"


@pytest.mark.parametrize("reference", ["none.gguf", "/no/such.gguf", "x" * 300])
def test_weights_that_are_missing_now_break_nothing(tmp_path: Path, reference: str) -> None:
    (tmp_path / "a.yaml").write_text(f"model: {reference}\nbackend: llama-cpp\n")
    assert set(registry(tmp_path).read().entries) == {"a"}


def test_names_that_no_file_system_takes_break_their_own_file_alone(tmp_path: Path) -> None:
    write(tmp_path, good="", bad='template: {chat_template_file: "a\\0b"}', turn="template: {chat_template_file: l}")
    (tmp_path / "l").symlink_to(tmp_path / "l")
    found = registry(tmp_path)
    assert set(found.read().entries) == {"good"}
    assert set(found.refresh().broken) == {"bad", "turn"}


def test_a_folder_of_several_models_needs_a_yaml_that_chooses(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "two" / name).write_bytes(GGUF)
    found = registry(tmp_path)
    before = found.read()
    assert not before.entries
    (problem,) = before.broken["two"].problems
    assert "several models (a.gguf, b.gguf) and no YAML chooses one" in problem.message
    assert problem.suggestion == "write a YAML with `parameters: {model: two/a.gguf}`"
    (tmp_path / "x.yaml").write_text("parameters: {model: two/a.gguf}\n")
    after = found.refresh()
    assert set(after.entries) == {"x"} and not after.broken


def test_a_folder_whose_only_model_a_yaml_names_is_no_model_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.gguf").write_bytes(GGUF)
    assert set(registry(tmp_path).read().entries) == {"one"}
    (tmp_path / "x.yaml").write_text("parameters: {model: one/a.gguf}\n")
    assert set(registry(tmp_path).read().entries) == {"x"}


def test_what_a_loud_folder_hides_is_listed(tmp_path: Path) -> None:
    (tmp_path / "w.gguf").write_bytes(GGUF)
    write(tmp_path / "asked", x="name: same\ndescription: asked for")
    (tmp_path / "asked" / "x.yaml").write_text(f"name: same\nmodel: {tmp_path / 'w.gguf'}\n")
    write(tmp_path / "user", y="name: same")
    folders = [tmp_path / "asked", tmp_path / "user"]
    assert not Registry(folders, specs()).read().broken
    found = Registry(folders, specs(), loud=[tmp_path / "user"]).read()
    (problem,) = found.broken["y.yaml"].problems
    assert (problem.line, problem.key) == (2, "name")
    assert "the name 'same' is already taken by" in problem.message and "w.gguf" in problem.message
    assert found.entries["same"].folder == tmp_path / "asked"


def test_files_named_like_weights_that_hold_none_are_told(tmp_path: Path) -> None:
    for name, data in {"void.gguf": b"", "odd.GGUF.bin": b"hello", "notes.bin": b"hello", "LICENSE": b"", "x.iso": b"x"}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "next-00002-of-00002.gguf").write_bytes(GGUF)
    found = registry(tmp_path).read()
    assert not found.entries
    told = {name: broken.problems[0].message for name, broken in found.broken.items()}
    assert told == {"void": "is empty: it has 0 bytes", "odd": "is in no format that is known here"}


def test_weights_that_are_cut_are_told_until_they_are_whole(tmp_path: Path) -> None:
    whole = (paths.builtin("models") / "pocket-f16.gguf").read_bytes()
    path = tmp_path / "tale.gguf"
    found = registry(tmp_path)
    for size, message in [
        (0, "empty"),
        (3, "no format"),
        (900, "at byte"),
        (4_000_000, f"cut: 4,000,000 of {len(whole):,} bytes"),
    ]:
        path.write_bytes(whole[:size])
        assert message in found.refresh().broken["tale"].problems[0].message
    path.write_bytes(whole)
    after = found.refresh()
    assert set(after.entries) == {"tale"} and not after.broken


def test_of_a_folder_the_file_that_is_at_fault_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "tale"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "model.safetensors").write_bytes(b"")
    message = registry(tmp_path).read().broken["tale"].problems[0].message
    assert message.startswith("model.safetensors is no safetensors file")


def test_a_context_beyond_the_weights_training_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("parameters: {model: w.gguf}\ncontext_size: 4096\n")
    (tmp_path / "b.yaml").write_text("parameters: {model: w.gguf}\ncontext_size: 4096\nrope_scaling: yarn\n")
    (tmp_path / "c.yaml").write_text("parameters: {model: w.gguf, rope_freq_scale: 0.25}\ncontext_size: 4096\n")
    (tmp_path / "d.yaml").write_text("parameters: {model: w.gguf}\ncontext_size: 1024\n")
    found = registry(tmp_path)
    assert not found.read().entries["a"].warnings
    shutil.copy(paths.builtin("models") / "pocket-f16.gguf", tmp_path / "w.gguf")
    after = found.refresh()
    (warning,) = after.entries["a"].warnings
    assert (warning.line, warning.key) == (2, "context_size")
    assert warning.message == "4096 is more than the 1024 tokens that the weights were trained for"
    assert not any(after.entries[name].warnings for name in "bcd")
    assert found.refresh().entries["a"] is after.entries["a"]


def test_entries_of_every_kind_are_current_until_their_files_change(tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    write(tmp_path, plain="", templated="template: {chat_template_file: chat.jinja}")
    (tmp_path / "hub.yaml").write_text("parameters: {model: owner/repo}\n")
    (tmp_path / "loose.gguf").write_bytes(POCKET.read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "only.gguf").write_bytes(POCKET.read_bytes())
    ours = registry(tmp_path)
    entries = ours.read().entries
    assert set(entries) == {"plain", "templated", "hub", "loose", "folder"}
    assert [name for name, entry in entries.items() if not ours.is_current(entry)] == []
    (tmp_path / "chat.jinja").write_text("{{ messages[0] }}")
    (tmp_path / "plain.yaml").unlink()
    assert [name for name, entry in entries.items() if not ours.is_current(entry)] == ["plain", "templated"]
    ours.refresh()
    assert all(ours.is_current(entry) for entry in ours.snapshot.entries.values())
