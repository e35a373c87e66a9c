"""`llmgallery search`, `install`, `remove`, `jobs`, and what `list` tells of installs: as a user has them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from click.testing import CliRunner
from loopback_hub import LoopbackHub
from terminal import CLI, DEADLINE, Terminal, environment, serving

from llmgallery import paths
from llmgallery.cli import main
from llmgallery.cli.bars import InstallBars
from llmgallery.cli.installs import assigned, fault, meant, state_of, told_rows
from llmgallery.cli.library import read_job
from llmgallery.core.errors import ErrorInfo, GalleryError, HubCorrupt
from llmgallery.core.installs import FileProgress, Install, Phase

REPO, FILE = "tiny/pocket-GGUF", "pocket-f16.gguf"


class Ended(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@dataclass
class Home:
    """A working directory with a models folder, and a gallery whose one file lies on a Hub on loopback."""

    path: Path
    hub: LoopbackHub
    weights: bytes
    env: dict[str, str]

    def held(self) -> threading.Event:
        """Half of the file comes, and the rest once the event is set."""
        return self.hub.hold(FILE, len(self.weights) // 2, least=len(self.weights) // 2)

    def wait_for_half(self) -> None:
        self.hub.wait_for_bytes(FILE, len(self.weights) // 2)

    def run(self, *arguments: object, **env: str) -> Ended:
        """A command to its end, in this process: most of what a process of its own takes is its start."""
        outer = dict.fromkeys(name for name in os.environ if name.startswith(("LLMGALLERY_", "HF_")))
        said = CliRunner(env={**outer, **environment(self.path, **{**self.env, **env})})
        with contextlib.chdir(self.path):
            result = said.invoke(main, [*map(str, arguments)], prog_name="llmgallery")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return Ended(result.exit_code, result.stdout, result.stderr)

    def rows(self, *arguments: object, **env: str) -> dict[str, list[str]]:
        result = self.run(*arguments, **env)
        assert result.returncode == 0, result.stderr
        return {line.split("\t")[0]: line.split("\t")[1:] for line in result.stdout.splitlines()}

    def begun(self, *arguments: object, **env: str) -> subprocess.Popen[str]:
        """A command that goes on, and can be sent signals as a terminal sends them."""
        return subprocess.Popen(
            [*CLI, *map(str, arguments)],
            cwd=self.path,
            env=environment(self.path, **{**self.env, **env}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def entry(name: str, weights: bytes, **more: Any) -> dict[str, Any]:
    digest = hashlib.sha256(weights).hexdigest()
    return {
        "name": name,
        "description": f"The model {name}.\nMore of it.",
        "license": "mit",
        "tags": ["chat", "tiny"],
        "overrides": {"parameters": {"model": FILE, "temperature": 0}},
        "files": [
            {"filename": FILE, "uri": f"huggingface://{REPO}/{FILE}", "sha256": digest, "size": len(weights)}
        ],
        **more,
    }  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, hub: LoopbackHub) -> Iterator[Home]:
    weights = (paths.builtin("models") / FILE).read_bytes()
    hub.add(REPO, FILE, weights)
    (tmp_path / "models").mkdir()
    (tmp_path / "shelf.yaml").write_text(json.dumps([entry("red", weights), entry("scarlet", weights, tags=["vision"])]))
    yield Home(tmp_path, hub, weights, {"HF_ENDPOINT": hub.url, "LLMGALLERY_GALLERIES": f"shelf={tmp_path / 'shelf.yaml'}"})


# --- without a server --------------------------------------------------------------------------------------------------------


def test_a_model_is_found_installed_listed_and_removed(home: Home) -> None:
    found = home.rows("search", "red", "tiny")
    assert found["shelf@red"] == [
        "5.0 MB" if len(home.weights) > 4_950_000 else found["shelf@red"][0],
        "mit",
        "",
        "The model red.",
    ]
    assert home.rows("search", "--tag", "vision", "scarlet").keys() == {"shelf@scarlet"}

    result = home.run("install", "red")
    assert (result.returncode, result.stdout) == (0, "installed red from shelf@red\n"), result.stderr
    assert "downloading red (1 file, " in result.stderr and "Traceback" not in result.stderr
    assert home.rows("list")["red"][0] == "installed"
    assert home.rows("search", "red")["shelf@red"][2] == "installed"
    assert [row[1] for row in home.rows("jobs").values()] == ["installed"]
    sent = home.hub.sent(FILE)
    assert "Paris" in home.run("run", "red", "What is the capital of France?").stdout

    result = home.run("remove", "red")
    assert (result.returncode, result.stdout) == (0, "removed red\n"), result.stderr
    assert "red" not in home.rows("list")
    result = home.run("remove", "red")
    assert result.returncode == 1 and "red" in result.stderr and not result.stdout
    assert home.hub.sent(FILE) == sent


def test_a_name_and_keys_of_ones_own(home: Home) -> None:
    result = home.run("install", "red", "--name", "mine", "--set", "context_size=512", "--set", "parameters.top_k=7")
    assert result.stdout == "installed mine from shelf@red\n", result.stderr
    values = home.rows("show", "mine")
    assert (values["context_size"][0], values["parameters.top_k"][0]) == ("512", "7")


def test_once_more_changes_nothing_but_with_update(home: Home) -> None:
    home.run("install", "red", "--name", "mine", "--set", "context_size=512")
    path = home.path / "models" / "mine.yaml"
    edited = path.read_text() + "# edited\n"
    path.write_text(edited)
    asked = len(home.hub.requests)
    for more in ([], ["--set", "context_size=512"]):
        result = home.run("install", "red", "--name", "mine", *more)
        assert (result.returncode, result.stdout) == (0, "installed mine from shelf@red\n"), result.stderr
    assert len(home.hub.requests) == asked and path.read_text() == edited
    result = home.run("install", "red", "--name", "mine", "--set", "context_size=512", "--update")
    assert result.stdout == "installed mine from shelf@red\n", result.stderr
    assert path.read_text() == edited.removesuffix("# edited\n")
    assert path.with_name("mine.yaml.bak").read_text() == edited


def test_the_commands_of_the_docs_work(home: Home) -> None:
    text = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    _, _, section = text.partition("## Installing models\n")
    section = section.partition("\n## ")[0].partition("<!--")[0]
    commands = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    assert len(commands) == 5
    home.hub.add("lmstudio-community/SmolLM2-135M-Instruct-GGUF", "SmolLM2-135M-Instruct-Q8_0.gguf", home.weights)
    said = []
    for command in commands:
        program, *arguments = shlex.split(command)
        result = home.run(*arguments)
        assert (program, result.returncode) == ("llmgallery", 0), result.stderr
        said.append(result.stdout)
    search, install, list_models, jobs, remove = said
    assert "smollm2" in search and install.startswith("installed small from lmstudio-community/")
    assert "\nsmall\tinstalled\t" in list_models and "\tsmall\tinstalled\t" in jobs and remove == "removed small\n"


def test_what_fails_does_not_stop_the_others(home: Home) -> None:
    result = home.run("install", "reed", "red", "no/such-repo")
    assert result.returncode == 1
    assert result.stdout == "installed red from shelf@red\n"
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 2 and "reed" in errors[0] and "no/such-repo" in errors[1]


def test_a_search_that_finds_nothing(home: Home) -> None:
    result = home.run("search", "zebra-of-nobody")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "Error: no gallery has an entry for 'zebra-of-nobody'\n"


def test_a_gallery_that_cannot_be_read_is_told(home: Home) -> None:
    galleries = f"shelf={home.path / 'shelf.yaml'},lost={home.path / 'nothing.yaml'}"
    result = home.run("search", "red", LLMGALLERY_GALLERIES=galleries)
    assert result.returncode == 0 and "shelf@red" in result.stdout
    assert "the gallery lost cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["install"], "NAMES"),
        (["install", "a", "b", "--name", "c"], "--name is for one model"),
        (["install", "red", "--set", "context_size"], "key=value"),
        (["install", "red", "--set", "contxt_size=5"], "did you mean context_size?"),
        (["install", "red", "--set", "parameters.context_size=5"], "is taken as context_size"),
        (["install", "red", "--set", "a: [=1"], "--set"),
        (["remove"], "NAMES"),
        (["jobs", "--follow"], "llmgallery jobs ID"),
    ],
)
def test_wrong_usage_ends_with_2(home: Home, arguments: list[str], message: str) -> None:
    result = home.run(*arguments)
    assert result.returncode == 2 and message in result.stderr, result.stderr


def test_ctrl_c_leaves_what_can_be_gone_on_with(home: Home) -> None:
    release = home.held()
    process = home.begun("install", "red")
    home.wait_for_half()
    wait_for_line(process, *(f"downloading red {digit}" for digit in "2345"))  # some of it is on the disk
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=DEADLINE)
    release.set()
    assert (process.returncode, stdout) == (130, "")
    assert "`llmgallery install red` goes on from there" in stderr and "Traceback" not in stderr
    assert re.fullmatch(r"installing \d+%|installing", home.rows("list")["red"][0])

    result = home.run("install", "red")
    assert result.stdout == "installed red from shelf@red\n", result.stderr
    asked = home.hub.seen("GET", FILE, "storage")[-1].headers["Range"]
    assert int(re.findall(r"bytes=(\d+)-", asked)[0]) > 0, asked
    assert [row[1] for row in home.rows("jobs").values()] == ["installed"]
    assert home.rows("list")["red"][0] == "installed"


def test_what_was_stopped_can_be_given_up(home: Home) -> None:
    release = home.held()
    process = home.begun("install", "red")
    home.wait_for_half()
    wait_for_line(process, "downloading red ")
    [id] = home.rows("jobs")
    refused = home.run("jobs", id, "--cancel")
    assert refused.returncode == 1 and "another process is at work on the job" in refused.stderr
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=DEADLINE)
    release.set()
    assert home.rows("jobs", id, "--cancel")["state"] == ["cancelled"]
    assert home.rows("jobs") == {} and "red" not in home.rows("list")
    assert not [file for file in (home.path / "hf").rglob("*") if file.suffix == ".part"]


def test_bars_at_a_terminal(home: Home) -> None:
    release = home.held()
    terminal = Terminal("install", "red", cwd=home.path, TERM="xterm", **home.env)
    terminal.until("downloading red")
    terminal.until("MB")
    release.set()
    assert "downloading red" not in terminal.until("installed red from shelf@red").rpartition("\n")[2]
    assert terminal.close() == 0


# --- at a server -------------------------------------------------------------------------------------------------------------


def test_a_server_installs_and_goes_on_without_us(home: Home) -> None:
    models = home.path / "models"
    (home.path / "elsewhere").mkdir()
    away = Home(home.path / "elsewhere", home.hub, home.weights, {})
    with serving(models, **home.env) as server:
        url = {"LLMGALLERY_URL": server.url}
        assert away.rows("search", "red", **url)["shelf@red"][1] == "mit"
        release = home.held()
        process = away.begun("install", "red", **url)
        home.wait_for_half()
        wait_for_line(process, "downloading red")
        state = away.rows("list", **url)["red"][0]
        assert state.startswith("installing")
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=DEADLINE)
        assert process.returncode == 130
        [id] = re.findall(r"`llmgallery jobs (\w+)` tells", stderr)
        assert away.rows("jobs", id, **url)["model"] == ["red"]
        release.set()
        followed = away.run("jobs", id[:10], "--follow", **url)
        assert followed.returncode == 0 and "state\tinstalled" in followed.stdout, followed.stderr
        assert away.run("install", "red", **url).stdout == "installed red from shelf@red\n"
        assert (models / "red.yaml").exists()
        removed = away.run("remove", "red", **url)
        assert removed.stdout == "removed red\n", removed.stderr
        assert not (models / "red.yaml").exists()
        refused = away.run("install", "reed", **url)
        assert refused.returncode == 1 and "reed" in refused.stderr
    assert not list((home.path / "elsewhere").rglob("*.yaml"))


def test_a_job_is_cancelled_at_the_server(home: Home) -> None:
    release = home.held()
    with serving(home.path / "models", **home.env) as server:
        url = {"LLMGALLERY_URL": server.url}
        process = home.begun("install", "red", **url)
        home.wait_for_half()
        wait_for_line(process, "downloading red")
        [id] = home.rows("jobs", **url)
        assert home.rows("jobs", id, "--cancel", **url)["state"] == ["cancelled"]
        release.set()
        _, stderr = process.communicate(timeout=DEADLINE)
    assert process.returncode == 1 and "the job for red was cancelled" in stderr


def test_a_server_that_ends_says_so(home: Home) -> None:
    release = home.held()
    with serving(home.path / "models", **home.env) as server:
        process = home.begun("install", "red", LLMGALLERY_URL=server.url)
        home.wait_for_half()
        wait_for_line(process, "downloading red")
        server.process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=DEADLINE)
        release.set()
        server.process.wait(DEADLINE)
    assert process.returncode == 1 and "goes on when it is started again" in stderr, stderr


def test_a_server_that_is_not_there(home: Home) -> None:
    result = home.run("search", "red", LLMGALLERY_URL="127.0.0.1:9")
    assert result.returncode == 0 and "shelf@red" in result.stdout
    assert "no server answers at http://127.0.0.1:9" in result.stderr
    (home.path / "other").mkdir()
    result = home.run("search", "red", "--models-dir", "other", LLMGALLERY_URL="127.0.0.1:9")
    assert "no server answers" not in result.stderr


def wait_for_line(process: subprocess.Popen[str], *starts: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(starts):
            return
    raise AssertionError(f"{starts} did not come")


# --- words -------------------------------------------------------------------------------------------------------------------


def job(phase: Phase, id: str = "a1", **more: Any) -> Install:
    return Install(id, "red", phase, **more)


HALF = (FileProgress("a", 10, 10), FileProgress("b", 0, 10))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (job("queued"), "queued"),
        (job("planning"), "planning"),
        (job("downloading", files=HALF), "installing 50%"),
        (job("downloading", files=(FileProgress("a", 5),)), "installing"),
        (job("writing", files=(FileProgress("a", 5, 5),)), "installing 100%"),
        (job("done"), "installed"),
        (job("done", deletion=True), "removed"),
        (job("removing", deletion=True), "removing"),
        (job("failed"), "failed"),
        (job("cancelled"), "cancelled"),
    ],
)
def test_states_in_words(state: Install, words: str) -> None:
    assert state_of(state) == words


def test_values_are_read_as_yaml_has_them() -> None:
    assert assigned(["context_size=8192", "a.b=0.5", "a.c=yes", "stopwords=[No, on]", "d=", "e='1'", "f=x=y", "g={h: null}"]) == {
        "context_size": 8192,
        "a": {"b": 0.5, "c": "yes"},
        "stopwords": ["No", "on"],
        "d": None,
        "e": "1",
        "f": "x=y",
        "g": {"h": None},
    }
    for wrong in ("a", "=1", "a..b=1", "a=[", "a=*x"):
        with pytest.raises(click.UsageError, match="--set"):
            assigned([wrong])
    with pytest.raises(click.UsageError, match="a has a value already"):
        assigned(["a=1", "a.b=2"])


def test_a_beginning_of_an_id_is_enough() -> None:
    known = [job("done", "abc1"), job("done", "abd2")]
    assert meant("abd", known).id == "abd2"
    for id, words in (("ab", "2 jobs begin with ab"), ("x", "there is no job x")):
        with pytest.raises(GalleryError, match=words):
            meant(id, known)


def test_why_a_job_failed() -> None:
    error = fault(job("failed", error=ErrorInfo("HubCorrupt", "wrong bytes", hints=("a.gguf",))))
    assert isinstance(error, HubCorrupt) and error.message == "wrong bytes"
    assert "was cancelled" in str(fault(job("cancelled"))) and fault(job("done")) is None
    rows = told_rows(job("failed", files=HALF, error=ErrorInfo("HubCorrupt", "wrong bytes", hints=("a.gguf",))))
    assert rows[2:] == [
        ("state", "failed"), ("file", "a (10 B of 10 B)"), ("file", "b (0 B of 10 B)"), ("error", "wrong bytes"), ("", "a.gguf"),
    ]  # fmt: skip


def test_a_job_crosses_the_wire_whole() -> None:
    import msgspec

    from llmgallery.api.dialects.localai.convert import job_body

    sent = job("failed", name="red", source="shelf@red", files=HALF, error=ErrorInfo("NoSpace", "full"), created=1.5, updated=2.5)
    assert read_job(msgspec.json.decode(msgspec.json.encode(job_body(sent)))) == sent
    with pytest.raises(GalleryError, match="does not tell of its jobs"):
        read_job({"id": 5})


def test_plain_lines_tell_each_quarter_once(capsys: pytest.CaptureFixture[str]) -> None:
    with InstallBars() as bars:
        bars.show(job("queued"))
        bars.show(job("planning"))
        for done in range(0, 101, 5):
            bars.show(job("downloading", name="red", files=(FileProgress("a", done * 10_000, 1_000_000),)))
        bars.show(job("writing", name="red"))
        bars.show(job("done", name="red"))
    assert capsys.readouterr().err.splitlines() == [
        "planning red",
        "downloading red (1 file, 1.0 MB)",
        "downloading red 25% of 1.0 MB",
        "downloading red 50% of 1.0 MB",
        "downloading red 75% of 1.0 MB",
        "downloading red 100% of 1.0 MB",
        "writing red",
    ]
