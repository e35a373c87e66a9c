"""A server of the benchmark's own: `llmgallery serve` on a free port, for as long as the measurement lasts."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from llmgallery.backends.loader import specs
from llmgallery.catalog.registry import YAML_SUFFIXES, weights_name
from llmgallery.cli.stack import outside
from llmgallery.config.load import load_model
from llmgallery.config.problems import as_error
from llmgallery.core.errors import GalleryError

URL = re.compile(r" at (https?://\S+)")
STOP_SECONDS = 15.0
TAIL = 20  # lines of the log that an error shows


@contextlib.contextmanager
def own_server(flags: Sequence[str]) -> Iterator[str]:
    """The URL of a server that runs with these flags of `serve`. Raises GalleryError with its log when it does not start."""
    command = [sys.executable, "-m", "llmgallery", "serve", *flags, "--host", "127.0.0.1", "--port", "0"]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=_quiet())
        try:
            yield _url(process, log)
        finally:
            _stop(process)


def _quiet() -> dict[str, str]:
    return {"LLMGALLERY_LOG_LEVEL": "warning", **os.environ}


def _url(process: subprocess.Popen[str], log: IO[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if found := URL.search(line):
            return found[1]
    process.wait()
    log.seek(0)
    said = "".join(log.readlines()[-TAIL:]).strip()
    raise GalleryError(f"the server did not start: {said.removeprefix('Error: ') or f'exit code {process.returncode}'}")


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def served_name(path: Path) -> str:
    """The name under which `serve --model PATH` serves a file. Raises ConfigError when it is a broken YAML."""
    if path.suffix.lower() not in YAML_SUFFIXES:
        return weights_name(path)
    model = load_model(path, specs(), outside())
    if model.problems:
        raise as_error(model.problems, str(path))
    return model.name


def serve_flags(config: Path | None, models_dir: str | None, path: Path | None) -> list[str]:
    """The flags of `serve` that choose the same settings, folder and model as this command's."""
    given = (("--config", config), ("--models-dir", models_dir), ("--model", path))
    return [text for flag, value in given if value is not None for text in (flag, str(value))]
