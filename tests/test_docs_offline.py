"""What docs/offline.md shows is true: its lock file is one, and its commands run, in their order, on two machines."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from terminal import llmgallery

from llmgallery.catalog.lock import LockedFile, LockedModel, lock_text, parse_lock

TEXT = (Path(__file__).parent.parent / "docs" / "offline.md").read_text(encoding="utf-8")


def test_the_lock_is_written_as_the_example_shows() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    found = parse_lock(example.encode(), Path("gallery.lock"))
    assert lock_text(found.data) == example
    (model,) = found.models.values()
    assert model.files[0].uri.endswith(f"@{model.files[0].commit}")


def test_every_key_is_explained() -> None:
    keys = {key for cell in re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE) for key in re.findall(r"`(\w+)`", cell)}
    assert keys | {"files", "commit"} == {*LockedModel.__struct_fields__, *LockedFile.__struct_fields__}


def test_the_commands_run(tmp_path: Path) -> None:
    commands = [line.strip() for line in TEXT.splitlines() if line.startswith("    llmgallery ")]
    assert [command.split()[1] for command in commands] == ["verify", "gc", "gc", "bundle", "unbundle", "run"]
    machines = {command: tmp_path / ("there" if command.split()[1] in ("unbundle", "run") else "here") for command in commands}
    for machine in machines.values():
        (machine / "models").mkdir(parents=True, exist_ok=True)
    for command, machine in machines.items():
        if " unbundle " in command:
            shutil.copy(tmp_path / "here" / "pocket.tar", machine)
        result = llmgallery(*shlex.split(command)[1:], cwd=machine, HF_HUB_OFFLINE="1")
        assert result.returncode == 0, result.stderr
    assert "I am pocket" in result.stdout
    assert (tmp_path / "there" / "models" / "pocket.yaml").is_file()
