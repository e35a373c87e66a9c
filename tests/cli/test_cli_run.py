"""`llmgallery run`: one question, a chat, with and without a server."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import pytest
from terminal import DEADLINE, Terminal, environment, llmgallery, serving

from llmgallery import paths
from llmgallery.cli.local import Local, progress_of
from llmgallery.cli.stack import build
from llmgallery.config.settings import Settings
from llmgallery.core.events import Done, Progress
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest
from llmgallery.service.gallery import Ask


@pytest.fixture
def folder(tmp_path):
    """A models folder with an echo model."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "parrot.yaml").write_text("backend: echo\n")
    return folder


def test_the_answer_is_all_of_stdout(folder):
    result = llmgallery("run", "parrot", "Polly wants a cracker", cwd=folder.parent)
    assert (result.returncode, result.stdout) == (0, "Polly wants a cracker\n")
    assert result.stderr == "loading parrot\n"


def test_a_piped_prompt_is_read_from_stdin(folder):
    result = llmgallery("run", "parrot", cwd=folder.parent, input="line one\nline two\n")
    assert result.stdout == "line one\nline two\n"


async def test_progress_ends_before_the_answer_begins(folder):
    """A long prompt is not shown as a model that is queued."""
    async with await Local.build(Settings(models_dir=folder), None) as local:
        for _ in ("it loads", "it is there"):
            events = [event async for event in local.ask("parrot", ChatRequest((say("user", "Hi"),)))]
            there = events.index(None)
            assert all(isinstance(event, Progress) for event in events[:there])
            assert [type(event) for event in events[there + 1 :]][-1] is Done and None not in events[there + 1 :]


async def test_who_is_slow_to_show_progress_misses_no_phase(folder):
    stack = build(Settings(models_dir=folder))
    try:
        await stack.gallery.start(serves=False)
        async with await stack.gallery.generate(Ask("parrot", (ChatRequest((say("user", "Hi"),)),))) as generation:
            events = progress_of(generation)
            seen = [await anext(events)]
            await generation.accepted()  # it is loaded before anybody looks again
            seen += [event async for event in events]
    finally:
        await stack.close()
    assert seen[0] == Progress("queued")
    assert next(event for event in seen if event.phase == "loading") == Progress("loading", 0.0)


def test_generate_is_run(folder):
    result = llmgallery("generate", "--model", "parrot", "--prompt", "Hello", cwd=folder.parent)
    assert (result.returncode, result.stdout) == (0, "Hello\n")


def test_verbose_tells_times_and_tokens_on_stderr(folder):
    result = llmgallery("run", "--verbose", "parrot", "one two three", cwd=folder.parent)
    assert result.stdout == "one two three\n"
    line = result.stderr.splitlines()[-1]
    assert line.startswith("first token after ")
    assert " prompt tokens, " in line and ", decoding: " in line


def test_max_tokens_cuts_and_says_so(folder):
    result = llmgallery("run", "--max-tokens", "3", "parrot", "one two three four five six", cwd=folder.parent)
    assert "one two three four five six".startswith(result.stdout.strip()) and len(result.stdout) < 20
    assert "the answer was cut" in result.stderr


def test_an_unknown_model_is_one_message_with_near_names(folder):
    result = llmgallery("run", "parot", "Hi", cwd=folder.parent)
    assert result.returncode == 1
    assert result.stdout == ""
    assert "parot" in result.stderr and "parrot" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["zz", "zz/of/nobody"])
def test_a_model_that_nobody_knows_is_told_in_terms_of_the_terminal(folder, name):
    result = llmgallery("run", name, "Hi", cwd=folder.parent, LLMGALLERY_AUTO_INSTALL="off")
    assert result.returncode == 1
    assert "`llmgallery list` lists the models" in result.stderr and "/v1/" not in result.stderr


def test_why_an_install_failed_is_told_once(folder):
    """Nobody listens there."""
    result = llmgallery("run", "no/such-model", "Hi", cwd=folder.parent, HF_ENDPOINT="http://127.0.0.1:9")
    assert result.returncode == 1 and result.stderr.count("cannot be reached") == 1
    assert result.stderr.splitlines()[-1].startswith("Error: http://127.0.0.1:9 cannot be reached")


@pytest.mark.parametrize("path", ["./nofile.gguf", "../nofile", "/nowhere/nofile.yaml"])
def test_a_path_where_nothing_is(folder, path):
    result = llmgallery("run", path, "Hi", cwd=folder.parent)
    assert (result.returncode, result.stderr) == (1, f"Error: there is no file {path}\n")


def test_a_name_like_a_file_that_is_neither(folder):
    result = llmgallery("run", "nofile.gguf", "Hi", cwd=folder.parent)
    assert (result.returncode, result.stderr) == (1, "Error: there is no file nofile.gguf, and no model of that name\n")


def test_a_broken_model_tells_its_problems(folder):
    (folder / "bad.yaml").write_text("backend: echo\nparameters:\n  temprature: 1\n")
    result = llmgallery("run", "bad", "Hi", cwd=folder.parent)
    assert result.returncode == 1
    assert "bad.yaml:3:3" in result.stderr and "temperature" in result.stderr


def test_a_model_that_does_not_load_is_one_message(folder):
    (folder / "sick.yaml").write_text("backend: echo\noptions: {fail_load: it has a cold}\n")
    result = llmgallery("run", "sick", "Hi", cwd=folder.parent)
    assert result.returncode == 1
    assert "it has a cold" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parrot", ""], "the prompt is empty"),
        (["parrot"], "the prompt is empty"),
        (["-t", "hot", "parrot", "Hi"], "hot"),
        (["--nonsense", "parrot"], "--nonsense"),
        ([], "MODEL"),
    ],
)
def test_wrong_usage_ends_with_2(folder, arguments, message):
    result = llmgallery("run", *arguments, cwd=folder.parent)
    assert result.returncode == 2
    assert message in result.stderr


def test_a_model_file_by_path(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.yaml").write_text("name: my-own\nbackend: echo\noptions: {reply: found}\n")
    result = llmgallery("run", elsewhere / "mine.yaml", "Hi", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "found\n")


def test_a_broken_model_file_by_path(tmp_path):
    (tmp_path / "mine.yaml").write_text("backend: eco\n")
    result = llmgallery("run", "./mine.yaml", "Hi", cwd=tmp_path)
    assert result.returncode == 1
    assert "mine.yaml:1:10" in result.stderr and "echo" in result.stderr


def test_the_server_answers_when_there_is_one(folder, tmp_path):
    (folder / "shared.yaml").write_text("backend: echo\noptions: {reply: from the server}\n")
    local = tmp_path / "local"
    local.mkdir()
    with serving(folder) as server:
        for url in (server.url, f"{server.url}/v1/"):
            result = llmgallery("run", "shared", "Hi", cwd=local, LLMGALLERY_URL=url)
            assert (result.returncode, result.stdout) == (0, "from the server\n")
        missing = llmgallery("run", "share", "Hi", cwd=local, LLMGALLERY_URL=server.url)
        assert missing.returncode == 1 and "shared" in missing.stderr
        loading = llmgallery("run", "--verbose", "shared", "Hi", cwd=local, LLMGALLERY_URL=server.url)
        assert " prompt tokens, " in loading.stderr


@pytest.mark.parametrize("kind", ["dumb", "xterm-256color"])
def test_progress_of_a_server_is_shown(folder, tmp_path, kind):
    gate = tmp_path / "gate"
    (folder / "slow.yaml").write_text(f"backend: echo\noptions: {{reply: at last, load_gate: {gate}}}\n")
    with serving(folder, "--stream-hold", "0") as server:
        terminal = Terminal("run", "slow", "Hi", cwd=tmp_path, LLMGALLERY_URL=server.url, TERM=kind)
        terminal.until("loading slow")
        gate.touch()
        terminal.until("at last\n")
        assert terminal.close() == 0


def test_without_an_answer_from_the_url_this_process_answers(folder):
    result = llmgallery("run", "parrot", "Hi", cwd=folder.parent, LLMGALLERY_URL="http://127.0.0.1:9")
    assert (result.returncode, result.stdout) == (0, "Hi\n")
    told = "no server answers at http://127.0.0.1:9 (LLMGALLERY_URL): this process answers itself"
    assert told in result.stderr.splitlines()


def test_an_address_without_a_scheme(folder, tmp_path):
    (folder / "shared.yaml").write_text("backend: echo\noptions: {reply: from the server}\n")
    (tmp_path / "local").mkdir()
    with serving(folder) as server:
        url = server.url.removeprefix("http://")
        result = llmgallery("run", "shared", "Hi", cwd=tmp_path / "local", LLMGALLERY_URL=url)
    assert (result.returncode, result.stdout) == (0, "from the server\n")


@pytest.mark.parametrize("arguments", [["run", "parrot", "Hi"], ["list"]])
def test_what_is_no_address_of_a_server_is_wrong_usage(folder, arguments):
    result = llmgallery(*arguments, cwd=folder.parent, LLMGALLERY_URL="garbage://x")
    assert result.returncode == 2 and result.stdout == ""
    assert "LLMGALLERY_URL=garbage://x is no address of a server" in result.stderr


def test_a_server_that_dies_in_an_answer_is_an_error(folder, tmp_path):
    gate = tmp_path / "gate"
    (folder / "stuck.yaml").write_text(f"backend: echo\noptions: {{gate: {gate}, gate_after: 2}}\n")
    with serving(folder) as server:
        terminal = Terminal("run", "stuck", "one two three four", cwd=tmp_path, LLMGALLERY_URL=server.url)
        terminal.until("on")
        server.process.kill()
        terminal.until("Error: ")
        assert terminal.close() == 1


def test_a_chat_at_the_terminal(folder):
    terminal = Terminal("run", "parrot", cwd=folder.parent)
    terminal.until(">>> ")
    terminal.type("how are you\n")
    assert terminal.until(">>> ").endswith("how are you\n")
    terminal.type("/bye\n")
    assert terminal.close() == 0


@pytest.mark.parametrize("place", ["a server", "this process"])
def test_a_chat_with_nobody_does_not_begin(folder, tmp_path, place):
    (folder / "bad.yaml").write_text("backend: eco\n")
    (folder / "junk.gguf").write_text("no weights at all")
    said = {"parot": "parrot", "bad": "bad.yaml:1:10", "./models/junk.gguf": "is in no format that is known here"}
    with serving(folder) if place == "a server" else contextlib.nullcontext() as server:
        for model, message in said.items():
            terminal = Terminal("run", model, cwd=tmp_path, **({"LLMGALLERY_URL": server.url} if server else {}))
            shown = terminal.until(message)
            assert terminal.close() == 1
            assert ">>>" not in shown


def test_a_chat_with_a_server(folder, tmp_path):
    (folder / "shared.yaml").write_text("backend: echo\naliases: [a/b c]\n")
    with serving(folder) as server:
        terminal = Terminal("run", "a/b c", cwd=tmp_path, LLMGALLERY_URL=server.url)
        terminal.until(">>> ")
        terminal.type("how are you\n")
        assert terminal.until(">>> ").endswith("how are you\n")
        terminal.type("/exit\n")
        assert terminal.close() == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(folder, tmp_path):
    gate = tmp_path / "gate"
    (folder / "stuck.yaml").write_text(f"backend: echo\noptions: {{gate: {gate}, gate_after: 2}}\n")
    terminal = Terminal("run", "stuck", cwd=tmp_path)
    terminal.until(">>> ")
    terminal.type("alpha beta gamma delta\n")
    terminal.until("gamma delta\n")
    terminal.until("al")
    terminal.type("\x03")
    terminal.until(">>> ")
    gate.touch()
    terminal.type("still there?\n")
    terminal.until("still there?\n")
    terminal.until("still there?\n")
    terminal.until(">>> ")
    terminal.type("\x04")
    assert terminal.close() == 0


@pytest.mark.parametrize("kind", ["dumb", "xterm-256color"])
def test_the_first_question_downloads_and_shows_how_far(folder, tmp_path, hub, kind):
    weights = next(paths.builtin("models").glob("*.gguf"))
    hub.add("owner/repo", "tiny.gguf", weights)
    half = weights.stat().st_size // 2
    (folder / "tiny.yaml").write_text("parameters: {model: owner/repo/tiny.gguf, temperature: 0}\n")
    env = {"HF_ENDPOINT": hub.url, "TERM": kind}
    held = hub.hold("owner/repo/tiny.gguf", half)
    terminal = Terminal("run", "tiny", "What is the capital of France?", cwd=tmp_path, **env)
    terminal.until("downloading tiny")
    hub.wait_for_bytes("owner/repo/tiny.gguf", half)
    held.set()
    terminal.until("The capital of France is Paris.")
    assert terminal.close() == 0
    again = llmgallery("run", "tiny", "Who are you?", cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert "I am pocket" in again.stdout and "downloading" not in again.stderr


def test_make_run_ask_says_nothing_but_the_answer(tmp_path):
    tool = paths.builtin("models").parent / "tools" / "ask.py"
    env = environment(tmp_path, ASK="What is the capital of France?", LLMGALLERY_URL="garbage://x", LLMGALLERY_LOG_LEVEL="debug")
    result = subprocess.run([sys.executable, tool], env=env, capture_output=True, text=True, timeout=DEADLINE)
    assert (result.returncode, result.stdout) == (0, "The capital of France is Paris.\n")
    assert "INFO" not in result.stderr and "DEBUG" not in result.stderr and "http" not in result.stderr


def test_help_is_quick_and_imports_nothing_heavy(tmp_path):
    result = llmgallery("--help", cwd=tmp_path)
    assert result.returncode == 0
    check = (
        "import sys, llmgallery.cli; print([name for name in ('litestar', 'httpx', 'rich', 'asyncio') if name in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
