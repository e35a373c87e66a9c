"""The example of docs/backends.md, built as its own package, put beside ours, served, and asked over HTTP."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from server_process import ServerProcess
from terminal import llmgallery

EXAMPLE = Path(__file__).parent.parent.parent / "docs" / "examples" / "bigram"
TEXT = "the cat sat on the mat. " * 20


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder for PYTHONPATH: what `pip install` would unpack."""
    folder = tmp_path_factory.mktemp("example")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=EXAMPLE, check=True, timeout=60)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "text.txt").write_text(TEXT)
    (folder / "cat.yaml").write_text(f"backend: bigram\noptions: {{text: {folder / 'text.txt'}}}\n")
    (folder / "gone.yaml").write_text("backend: bigram\noptions: {text: /no/such/text}\n")
    return folder


def test_it_answers_over_http_as_any_other(installed, models):
    with ServerProcess(models, environment={"PYTHONPATH": str(installed)}) as server, server.client as client:

        def ask(**more):
            return client.completions.create(model="cat", prompt="the c", max_tokens=40, temperature=0, **more)

        first = ask()
        said = first.choices[0].text
        assert said.startswith("at ") and set(said) <= set(TEXT)
        assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (5, 40)
        assert "".join(chunk.choices[0].text for chunk in ask(stream=True)) == said
        assert ask(stop=["t"]).choices[0].text == "a"
        assert ask(logprobs=2).choices[0].logprobs.token_logprobs[0] < 0
        seeded = {ask(seed=7, extra_body={"temperature": 2.0}).choices[0].text for _ in range(2)}
        assert len(seeded) == 1 and seeded != {said}
        with ThreadPoolExecutor(4) as pool:
            assert [each.result().choices[0].text for each in [pool.submit(ask) for _ in range(4)]] == [said] * 4
        with client.completions.create(model="cat", prompt="the c", max_tokens=2000, stream=True) as stream:
            next(iter(stream))  # and hang up: the slot is free again
        chat = client.chat.completions.create(
            model="cat", max_tokens=3, messages=[{"role": "user", "content": "the c"}], temperature=0
        )
        assert chat.choices[0].message.content == said[:3]
        with server.http() as http:
            refused = http.post("/v1/embeddings", json={"model": "cat", "input": "x"})
            assert refused.status_code == 400 and "no embeddings" in refused.text
            assert "/no/such/text cannot be read" in http.post("/v1/completions", json={"model": "gone", "prompt": "x"}).text


def test_its_options_are_checked_and_it_is_listed(installed, models, tmp_path):
    (tmp_path / "wrong.yaml").write_text("backend: bigram\noptions: {texts: x}\n")
    checked = llmgallery("check", tmp_path / "wrong.yaml", cwd=tmp_path, PYTHONPATH=str(installed))
    assert checked.returncode == 1 and "wrong.yaml:2:11: options.texts: unknown key; did you mean options.text?" in checked.stdout
    shown = llmgallery("backends", "list", "--json", cwd=tmp_path, PYTHONPATH=str(installed))
    assert {row["name"]: row["state"] for row in json.loads(shown.stdout)}["bigram"] == "installed"
    refused = llmgallery("backends", "install", "bigram", cwd=tmp_path, PYTHONPATH=str(installed))
    assert refused.returncode == 1 and "backend bigram comes with llmgallery-bigram" in refused.stderr
