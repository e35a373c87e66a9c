"""Model folders with something wrong in them, as users come to have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from conformance_cases import Bad

from llmgallery.backends.base import Files


def spoilt_folders(good: Path, folder: Path) -> list[Bad]:
    """Copies of a folder that loads, each spoilt in one way; an empty one; and one that is not there."""
    made = [_spoilt(good, folder / name, spoil, says) for name, (spoil, says) in SPOILT.items()]
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    return [*made, Bad("empty folder", Files((empty,)), "empty"), Bad("missing", Files((folder / "not-there",)), "not-there")]


def _spoilt(good: Path, folder: Path, spoil: Callable[[Path], None], says: str) -> Bad:
    shutil.copytree(good, folder, dirs_exist_ok=True)
    spoil(folder)
    return Bad(folder.name, Files((folder,)), says)


def _cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def _no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _another_shape(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 192, "num_attention_heads": 3}))


def _unknown_kind(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({"model_type": "not-yet-invented", "architectures": ["NotYetInventedForCausalLM"]}))


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut-short": (_cut_short, "model.safetensors|cut-short"),
    "garbage": (lambda folder: _write(folder / "model.safetensors", "no weights at all" * 400), "model.safetensors|garbage"),
    "no-weights": (lambda folder: (folder / "model.safetensors").unlink(), "no-weights|safetensors"),
    "no-tokenizer": (_no_tokenizer, "no-tokenizer|tokenizer"),
    "bad-tokenizer": (lambda folder: _write(folder / "tokenizer.json", "{"), "tokenizer.json|bad-tokenizer"),
    "bad-config": (lambda folder: _write(folder / "config.json", "{"), "config.json"),
    "no-config": (lambda folder: (folder / "config.json").unlink(), "config.json|no-config"),
    "unknown-kind": (_unknown_kind, "not-yet-invented"),
    "another-shape": (_another_shape, "another-shape|model.safetensors|config.json"),
}


def _write(file: Path, text: str) -> None:
    file.write_text(text)
