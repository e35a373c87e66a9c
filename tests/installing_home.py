"""A hub and a gallery that have one small model in two quantisations, and the folders of a server that has nothing yet."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loopback_hub import LoopbackHub, Seen
from server_process import ServerProcess

from llmgallery import paths

REPO = "tiny/pocket-GGUF"
BIG, SMALL = "pocket-Q8_0.gguf", "pocket-Q4_K_M.gguf"
"""By their names; they are the same, but that BIG ends in some more bytes."""
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
LARGE = 2 << 20
"""Bytes. What is as long is a download, and no reading of a header."""
DEADLINE = 60.0


class Home:
    """`data`: what BIG is. `commit`: of the hub's repo."""

    def __init__(self, hub: LoopbackHub, folder: Path) -> None:
        self.hub, self.folder = hub, folder
        self.models, self.gallery = folder / "models", folder / "gallery"
        self.models.mkdir()
        self.gallery.mkdir()
        small = (paths.builtin("models") / "pocket-f16.gguf").read_bytes()
        self.data = small + bytes(4096)  # other bytes, and the larger of the two
        hub.add(REPO, SMALL, small)
        self.commit = hub.add(REPO, BIG, self.data)
        self.sha256 = {BIG: hashlib.sha256(self.data).hexdigest(), SMALL: hashlib.sha256(small).hexdigest()}
        hub.describe(REPO, {"license": "mit"})
        self.write()

    def write(self, licence: str = "mit") -> None:
        entries = [_entry("tiny", BIG, self.sha256[BIG], licence, aliases="[small]", variants="[tiny-q4_k_m]")]
        entries.append(_entry("tiny-q4_k_m", SMALL, self.sha256[SMALL], licence))
        (self.gallery / "index.yaml").write_text("".join(entries))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "HF_ENDPOINT": self.hub.url,
            "HF_HOME": str(self.folder / "hf"),
            "LLMGALLERY_DATA_DIR": str(self.folder / "data"),
            "LLMGALLERY_GALLERIES": f"mine={self.gallery}",
        }

    @contextmanager
    def serve(self, *options: str, **environment: str) -> Iterator[ServerProcess]:
        with ServerProcess(self.models, *options, environment=self.environment | environment) as server:
            yield server

    def downloads(self, file: str = BIG) -> list[Seen]:
        """Requests for the file's bytes, beginning anywhere, to its end."""
        return [seen for seen in self.hub.seen("GET", file, "storage") if seen.headers.get("Range", "bytes=0-").endswith("-")]

    def wait_for_part(self, size: int) -> None:
        until(lambda: any(file.stat().st_size >= size for file in (self.folder / "hf").rglob("*.part")), "a part of a file")


def _entry(name: str, file: str, sha256: str, licence: str, **more: str) -> str:
    lines = [f"- name: {name}", f"  license: {licence}", *(f"  {key}: {value}" for key, value in more.items())]
    lines += ["  overrides:", "    backend: llama-cpp", f"    parameters: {{model: {file}, temperature: 0}}"]
    lines += ["  files:", f"    - {{filename: {file}, uri: 'huggingface://{REPO}/{file}', sha256: {sha256}}}"]
    return "\n".join(lines) + "\n"


def until(holds: Callable[[], Any], what: str) -> Any:
    pause, end = threading.Event(), time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if value := holds():
            return value
        pause.wait(0.01)
    raise AssertionError(f"there never was {what}")
