"""`llmgallery serve`: what it says, what it takes, how it ends."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from terminal import DEADLINE, Server, llmgallery, serving

from llmgallery import paths
from llmgallery.cli.serve import bind, curl, url_of
from llmgallery.config.settings import Settings
from llmgallery.core.errors import ConfigError


@pytest.fixture
def folder(tmp_path):
    """A models folder with an echo model."""
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "parrot.yaml").write_text("backend: echo\n")
    return folder


def chat(server: Server, model: str, text: str, **headers: str) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=DEADLINE)


def answer(response: httpx.Response) -> str:
    return response.json()["choices"][0]["message"]["content"]


def children(pid: int) -> list[int]:
    rows = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(row.split()[0]) for row in rows if int(row.split()[1]) == pid]


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_it_prints_its_address_and_a_command_to_paste(folder):
    with serving(folder) as server:
        assert server.said.startswith("llmgallery ") and f" serves 2 models at {server.url} " in server.said
        command = shlex.split(server.said.partition("Try it:")[2].replace("\\\n", ""))
        assert command[:3] == ["curl", "-N", f"{server.url}/v1/chat/completions"]
        body = command[command.index("-d") + 1]
        response = httpx.post(command[2], content=body, headers={"Content-Type": "application/json"}, timeout=DEADLINE)
        assert response.status_code == 200
        assert response.text.rstrip().endswith("data: [DONE]")


def test_why_a_model_does_not_load_reaches_the_client(folder):
    """Through the real server and its own event loop, whose transports behave otherwise than asyncio's."""
    (folder / "lame.yaml").write_text("backend: echo\noptions: {fail_load: the leg is broken}\n")
    with serving(folder) as server:
        response = chat(server, "lame", "Walk!")
        assert response.status_code != 500
        assert "the leg is broken" in response.json()["error"]["message"]
        assert answer(chat(server, "parrot", "Hello")) == "Hello"


def test_sigterm_lets_running_answers_end_and_ends_the_workers(folder, tmp_path):
    gate = tmp_path / "gate"
    (folder / "slow.yaml").write_text(f"backend: echo\noptions: {{gate: {gate}, gate_after: 2}}\n")
    with serving(folder) as server:
        body = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": "one two three"}]}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=DEADLINE) as response:
            lines = response.iter_lines()
            assert '"content":"' in next(line for line in lines if '"content":"' in line and '"content":""' not in line)
            workers = children(server.process.pid)
            assert workers
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not listening(server.url))
            gate.touch()
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert server.process.wait(DEADLINE) == 0
        assert not any(map(lives, workers))


def listening(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait(folder, tmp_path, number):
    (folder / "stuck.yaml").write_text(f"backend: echo\noptions: {{gate: {tmp_path / 'never'}, gate_after: 2}}\n")
    with serving(folder, "--drain", "1h") as server:
        body = {"model": "stuck", "stream": True, "messages": [{"role": "user", "content": "one two three"}]}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=DEADLINE) as response:
            next(response.iter_lines())
            workers = children(server.process.pid)
            server.process.send_signal(number)
            wait_until(lambda: not listening(server.url))
            server.process.send_signal(number)
            assert server.process.wait(DEADLINE) == 0
        assert not any(map(lives, workers))


def test_after_drain_seconds_answers_are_cut(folder, tmp_path):
    (folder / "stuck.yaml").write_text(f"backend: echo\noptions: {{gate: {tmp_path / 'never'}, gate_after: 2}}\n")
    with serving(folder, "--drain", "0") as server:
        body = {"model": "stuck", "stream": True, "messages": [{"role": "user", "content": "one two three"}]}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=DEADLINE) as response:
            next(response.iter_lines())
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(DEADLINE) == 0


@pytest.mark.parametrize("signals", [1, 2], ids=["the drain is over", "the second signal"])
def test_who_is_still_answered_at_the_end_is_told_why(folder, tmp_path, signals):
    never = tmp_path / "never"
    (folder / "stuck.yaml").write_text(f"backend: echo\noptions: {{gate: {never}, gate_after: 2}}\n")
    (folder / "loading.yaml").write_text(f"backend: echo\noptions: {{load_gate: {never}}}\n")
    with serving(folder, "--drain", "0" if signals == 1 else "1h") as server, ThreadPoolExecutor(2) as pool:
        body = {"model": "stuck", "stream": True, "messages": [{"role": "user", "content": "one two three"}]}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=DEADLINE) as response:
            lines = response.iter_lines()
            next(lines)
            whole = [pool.submit(chat, server, model, "one two three") for model in ("stuck", "loading")]
            wait_until(lambda: running(server.url) == 3)
            server.process.send_signal(signal.SIGTERM)
            if signals == 2:
                wait_until(lambda: not listening(server.url))
                server.process.send_signal(signal.SIGTERM)
            assert '"message":"the server is shutting down"' in list(lines)[-2]
        for reply in (future.result(DEADLINE) for future in whole):
            assert (reply.status_code, reply.json()["error"]["code"], reply.headers["retry-after"]) == (503, "overloaded", "10")
        assert server.process.wait(DEADLINE) == 0
    assert "Traceback" not in server.log.read_text()


def running(url: str) -> int:
    lines = httpx.get(f"{url}/metrics", timeout=DEADLINE).text.splitlines()
    return sum(int(float(line.split()[1])) for line in lines if line.startswith("llmgallery_generations_in_progress{"))


def test_no_orphans_when_it_is_killed(folder):
    with serving(folder) as server:
        assert answer(chat(server, "parrot", "Hi")) == "Hi"
        workers = children(server.process.pid)
        assert workers
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not any(map(lives, workers)))


def test_a_port_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = llmgallery("serve", "--port", port, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [
        f"Error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another with --port or --host"
    ]


def test_the_folder_is_followed(folder):
    with serving(folder) as server:
        names = lambda: {model["id"] for model in httpx.get(f"{server.url}/v1/models").json()["data"]}  # noqa: E731
        assert names() == {"parrot", "pocket"}
        (folder / "new.yaml").write_text("backend: echo\noptions: {reply: new here}\n")
        wait_until(lambda: "new" in names())
        assert answer(chat(server, "new", "Hi")) == "new here"
        (folder / "parrot.yaml").unlink()
        wait_until(lambda: names() == {"new", "pocket"})
        (folder / "bad.yaml").write_text("backend: nonsense\n")
        wait_until(lambda: "bad.yaml:1:10" in server.log.read_text())


@pytest.mark.parametrize("level", ["info", "debug"])
def test_addresses_of_downloads_are_not_logged(folder, hub, level):
    weights = next(paths.builtin("models").glob("*.gguf"))
    hub.add("owner/repo", "tiny.gguf", weights)
    (folder / "tiny.yaml").write_text("parameters: {model: owner/repo/tiny.gguf, temperature: 0}\n")
    with serving(folder, "--log-level", level, HF_ENDPOINT=hub.url) as server:
        assert "Paris" in answer(chat(server, "tiny", "What is the capital of France?"))
        (folder / "bad.yaml").write_text("backend: nonsense\n")
        wait_until(lambda: "bad.yaml:1:10" in server.log.read_text())
        log = server.log.read_text()
    assert "downloading owner/repo/tiny.gguf" in log
    assert not any(name in log for name in (hub.url, "Signature", "httpx", "httpcore", "watchfiles"))


def test_a_gguf_by_path_is_the_default(folder, tmp_path):
    weights = tmp_path / "somewhere" / "tiny.gguf"
    weights.parent.mkdir()
    shutil.copy(next(paths.builtin("models").glob("*.gguf")), weights)
    with serving(folder, "--model", weights) as server:
        assert '"model": "tiny"' in server.said
        body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "temperature": 0}
        response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=DEADLINE)
        assert response.json()["model"] == "tiny"
        assert "Paris" in answer(response)
        assert answer(chat(server, "parrot", "Hi")) == "Hi"


def test_a_model_file_by_path_is_the_default(folder, tmp_path):
    (tmp_path / "somewhere").mkdir()
    path = tmp_path / "somewhere" / "file.yaml"
    path.write_text("name: mine\nbackend: echo\noptions: {reply: it is mine}\n")
    with serving(folder, LLMGALLERY_MODEL=str(path)) as server:
        assert '"model": "mine"' in server.said
        assert answer(chat(server, "", "Hi")) == "it is mine"


def test_a_key_is_asked_for(folder, tmp_path):
    with serving(folder, "--api-key", "one", LLMGALLERY_API_KEYS="two,three") as server:
        assert '-H "Authorization: Bearer $LLMGALLERY_API_KEY"' in server.said
        example = server.said.partition("Try it, with one of the keys for YOUR_KEY:\n\n")[2]
        assert example.startswith("export LLMGALLERY_API_KEY=YOUR_KEY\ncurl ")
        assert "two" not in server.said and "three" not in server.said
        assert chat(server, "parrot", "Hi").status_code == 401
        assert chat(server, "parrot", "Hi", Authorization="Bearer one").status_code == 200
        refused = llmgallery("run", "parrot", "Hi", cwd=tmp_path, LLMGALLERY_URL=server.url)
        advice = "set LLMGALLERY_API_KEY to one of its keys"
        assert refused.stderr == f"Error: the server at {server.url} asks for an API key: {advice}\n"
        wrong = llmgallery("run", "parrot", "Hi", cwd=tmp_path, LLMGALLERY_URL=server.url, LLMGALLERY_API_KEY="four")
        assert wrong.returncode == 1 and "does not take this API key: set LLMGALLERY_API_KEY" in wrong.stderr
        for variable, key in ("LLMGALLERY_API_KEY", "one"), ("LLMGALLERY_API_KEYS", "one,four"):
            result = llmgallery("run", "parrot", "Hi", cwd=tmp_path, LLMGALLERY_URL=server.url, **{variable: key})
            assert result.stdout == "Hi\n", result.stderr


@pytest.mark.parametrize(
    ("name", "told"), [("nix", "'nix' does not exist"), ("parot", "did you mean 'parrot'?"), ("bad", "bad.yaml:1:10")]
)
def test_a_default_model_that_is_not_there_is_told(folder, name, told):
    (folder / "bad.yaml").write_text("backend: nonsense\n")
    with serving(folder, "--default-model", name) as server:
        (line,) = [line for line in server.log.read_text().splitlines() if "default_model cannot be served: " in line]
        assert "WARNING" in line and told in line and "GET /v1" not in line
        (folder / "parrot.yaml").write_text("backend: echo\ndescription: changed\n")
        wait_until(lambda: "the models folder changed: 2 models, 1 broken" in server.log.read_text())
        (folder / "bad.yaml").unlink()
        (folder / "parrot.yaml").unlink()
        wait_until(lambda: "the models folder changed: 1 model\n" in server.log.read_text())


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (
            ["--host", "0.0.0.0"],
            "listening on all interfaces without a key: only requests to 127.0.0.1, ::1, localhost are answered",
        ),
        (["--host", "0.0.0.0", "--allowed-host", "llm.example.org"], "127.0.0.1, ::1, llm.example.org, localhost are answered"),
        (["--host", "0.0.0.0", "--api-key", "secret"], None),
        ([], None),
    ],
)
def test_all_interfaces_without_a_key_are_told(folder, flags, told):
    with serving(folder, *flags) as server:
        lines = [line for line in server.log.read_text().splitlines() if "WARNING" in line]
    assert [told in line for line in lines] == [True] if told else not lines
    assert not told or "--api-key" in lines[0]


def test_settings_come_from_file_variables_and_flags(folder, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "settings.yaml").write_text("default_model: parrot\nmodels_dir: other\nlog_level: error\n")
    config = str(tmp_path / "settings.yaml")
    with serving(folder, LLMGALLERY_CONFIG=config, LLMGALLERY_LOG_LEVEL="debug") as server:
        assert '"model": "parrot"' in server.said
        chat(server, "parrot", "Hello")
        assert "INFO" in server.log.read_text()  # that a model was loaded; log_level: error would not tell


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--port", "99999"], 2, "--port"),
        (["--port", "http"], 2, "--port"),
        (
            ["--log-level", "loud"],
            2,
            "Invalid value for '--log-level': 'loud' is not one of 'debug', 'info', 'warning', 'error'.",
        ),
        (["--watch", "on"], 2, "'on' is not one of 'auto', 'poll', 'off'."),
        (["--unknown-model", "any"], 2, "'any' is not one of 'error', 'default'."),
        (["--models-dir", "nowhere"], 1, "there is no models folder"),
        (["--config", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["--config", "bad.yaml"], 1, "bad.yaml:1:1"),
        (["--model", "nowhere.gguf"], 1, "Error: there is no file nowhere.gguf: --model takes a GGUF file or a model's YAML\n"),
        (["--model", "junk.gguf"], 1, "junk.gguf is in no format that is known here; available backends: "),
        (["--model", "absent.yaml"], 1, "weights not found: there is no absent.gguf"),
        (["--model", "junk.yaml"], 1, "junk.gguf is in no format that is known here"),
        (["--host", "256.0.0.1"], 1, "cannot listen on 256.0.0.1:0"),
    ],
)
def test_wrong_settings_are_told(tmp_path, arguments, code, message):
    (tmp_path / "bad.yaml").write_text("prot: 8080\n")
    (tmp_path / "junk.gguf").write_text("no weights at all")
    (tmp_path / "absent.yaml").write_text("parameters: {model: absent.gguf}\n")
    (tmp_path / "junk.yaml").write_text("parameters: {model: junk.gguf}\n")
    result = llmgallery("serve", "--port", "0", *arguments, cwd=tmp_path)
    assert result.returncode == code
    assert message in result.stderr and "Traceback" not in result.stderr


def test_api_is_serve(folder):
    assert "cannot listen" in llmgallery("api", "--host", "256.0.0.1", "--port", "8181", cwd=folder.parent).stderr


def test_the_default_folder_is_made(tmp_path):
    result = llmgallery("serve", "--host", "256.0.0.1", cwd=tmp_path)
    assert result.returncode == 1
    assert (tmp_path / "data" / "models").is_dir()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5"),
        ("0.0.0.0", "http://127.0.0.1:5"),
        ("::", "http://127.0.0.1:5"),
        ("::1", "http://[::1]:5"),
        ("[::1]", "http://[::1]:5"),
        ("llm.example.org", "http://llm.example.org:5"),
    ],
)
def test_the_address_for_a_client(host, url):
    assert url_of(host, 5) == url


def test_the_example_survives_the_shell():
    words = shlex.split(curl(Settings(), 80, 'it\'s "$HOME"').replace("\\\n", ""))
    assert json.loads(words[-1])["model"] == 'it\'s "$HOME"'


def test_bind_takes_a_free_port_and_names():
    for host in ("127.0.0.1", "localhost"):
        with bind(host, 0) as listener:
            assert listener.getsockname()[1] > 0
            assert not os.get_inheritable(listener.fileno())
    with pytest.raises(ConfigError, match="cannot listen on no such host:0"):
        bind("no such host", 0)
