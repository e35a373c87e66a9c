"""What docs/scoring.md shows does work: its script scores the bundled model's prompts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from server_process import ServerProcess

TEXT = (Path(__file__).parent.parent / "docs" / "scoring.md").read_text(encoding="utf-8")
BASE = "http://127.0.0.1:8080/v1"


def test_the_python_script_scores_both_prompts(tmp_path: Path) -> None:
    (text,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert BASE in text
    (tmp_path / "models").mkdir()
    script = tmp_path / "example.py"
    with ServerProcess(tmp_path / "models") as server:
        script.write_text(text.replace(BASE, str(server.client.base_url)))
        shown = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    lines = shown.stdout.splitlines()
    assert len(lines) == 2, shown.stderr
    for line, prompt in zip(lines, ("The sky is blue.", "The sky is loud."), strict=True):
        assert line.startswith(f"{prompt} -") and float(line.removeprefix(prompt)) < 0
