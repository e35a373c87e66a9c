"""`make run ASK=...`: start a server on a free port, ask it $ASK over HTTP, stream the answer to stdout, stop it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import IO

CLI = [sys.executable, "-m", "llmgallery"]
MODEL = "default"


def served_at(lines: IO[str]) -> str | None:
    """The address in the server's first line that has one; None = it ended before it served."""
    for line in lines:
        if found := re.search(r"https?://\S+", line):
            return found.group()
    return None


def main() -> int:
    command = [*CLI, "serve", "--host", "127.0.0.1", "--port", "0", "--log-level", "warning"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        url = served_at(server.stdout)
        if url is None:
            return server.wait() or 1
        asked = subprocess.run([*CLI, "run", MODEL, "--", os.environ["ASK"]], env={**os.environ, "LLMGALLERY_URL": url})
        return asked.returncode
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())
