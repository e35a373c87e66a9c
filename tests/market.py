"""What installing_home.Home has, and more to install: models of several owners, licences and forms; and ways to ask for them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
from installing_home import ANSWER, DEADLINE, QUESTION, Home, until
from server_process import ServerProcess

POCKET = (Path(__file__).parents[1] / "models" / "pocket-f16.gguf").read_bytes()


class Market(Home):
    """A Home whose gallery and hub can be added to."""

    def put(self, repo: str, file: str, size: int = 0, licence: str | None = None) -> bytes:
        """The pocket model on the hub under another name, with so many zeros behind it, so that its bytes are its own."""
        data = POCKET + bytes(size)
        self.hub.add(repo, file, data)
        if licence is not None:
            self.hub.describe(repo, {"license": licence})
        return data

    def offer(self, name: str, *uris: str, gallery: str = "index.yaml", **more: Any) -> None:
        """One more entry of the gallery; the first file is the weights. Its name is that of the file, for each."""
        files = [{"filename": uri.rpartition("/")[2], "uri": uri} for uri in uris]
        entry = {"name": name, "license": "mit", "files": files, **more}
        entry.setdefault("overrides", {"parameters": {"model": entry["files"][0]["filename"], "temperature": 0}})
        path = self.gallery / gallery
        path.write_text((path.read_text() if path.exists() else "") + f"- {json.dumps(entry)}\n")

    def left(self) -> list[str]:
        """What installs have brought and not taken away: weights, parts of them, models' files. Not the notes of jobs that are
        over, which lists show for a week, and not the empty files that the Hugging Face cache locks by."""
        roots = (self.models, self.folder / "hf", self.folder / "data")
        found = [
            path for root in roots for path in root.rglob("*") if not {"jobs", ".locks"} & {*path.parts} and path != self.lock
        ]
        return sorted(
            str(path.relative_to(self.folder)) for path in found if path.is_symlink() or path.is_file() or "models--" in path.name
        )

    @property
    def lock(self) -> Path:
        return self.models / "gallery.lock"

    def yamls(self) -> list[str]:
        return sorted(path.name for path in self.models.glob("*.yaml"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def body(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": QUESTION, "temperature": 0, **more}


def post(server: ServerProcess, model: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=body(model, **more), headers=headers, timeout=DEADLINE)


def ask(server: ServerProcess, model: str) -> str:
    """By the official client, whole."""
    with server.client as client:
        reply = client.chat.completions.create(model=model, messages=QUESTION, temperature=0)
    return reply.choices[0].message.content or ""


def ask_streamed(server: ServerProcess, model: str) -> str:
    """By the official client, piece by piece."""
    with server.client as client:
        stream = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def answers(server: ServerProcess, *models: str) -> bool:
    return [ask(server, model) for model in models] == [ANSWER] * len(models)


def jobs(server: ServerProcess) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = httpx.get(f"{server.url}/models/jobs").json()
    return found


def apply(server: ServerProcess, id: str, **more: Any) -> str:
    """POST /models/apply; the job's uuid."""
    reply = httpx.post(f"{server.url}/models/apply", json={"id": id, **more}, timeout=DEADLINE)
    assert reply.status_code == 200, f"{reply.text}\n{server.output[-5000:]}"
    uuid: str = reply.json()["uuid"]
    return uuid


def ended(server: ServerProcess, uuid: str) -> dict[str, Any]:
    """The job once it is over, polled as LocalAI's clients do."""

    def over() -> dict[str, Any] | None:
        job: dict[str, Any] = httpx.get(f"{server.url}/models/jobs/{uuid}").json()
        return job if job["processed"] else None

    job: dict[str, Any] = until(over, f"an end of the job {uuid}")
    return job


def until_here(server: ServerProcess, uuid: str, count: int) -> dict[str, Any]:
    """The job once so many of its bytes are on the disk."""

    def here() -> dict[str, Any] | None:
        job = jobs(server).get(uuid)
        return job if job is not None and job["current_bytes"] >= count else None

    job: dict[str, Any] = until(here, f"{count} bytes of the job {uuid}")
    return job


def until_waiting(server: ServerProcess, model: str, count: int) -> None:
    """Until so many requests for a model have been taken."""
    sample = f'llmgallery_generations_in_progress{{model="{model}"}} {float(count)}'
    until(lambda: sample in httpx.get(f"{server.url}/metrics").text, f"{count} that wait for {model}")


def begins(seen_range: str | None) -> int:
    """The first byte that a request's Range header asks for."""
    return int((seen_range or "bytes=0-").removeprefix("bytes=").partition("-")[0])
