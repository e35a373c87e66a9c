"""What a weights file or folder is, told by its first bytes and its contents, never by its name's suffix."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from llmgallery.config.regular import open_regular

GGUF = "gguf"
GGML = "ggml"
SAFETENSORS = "safetensors"
GPTQ = "gptq"
AWQ = "awq"
EXL2 = "exl2"
EXL3 = "exl3"
OPENVINO = "openvino"
PYTORCH = "pytorch"
SENTENCE_TRANSFORMERS = "sentence-transformers"
"""Safetensors with modules.json beside them. Told of repos only; such a folder of this machine is `safetensors`."""

_OLD_GGML = (b"lmgg", b"fmgg", b"tjgg", b"algg")
"""ggml, ggmf, ggjt and ggla as they stand in a little-endian file: llama.cpp before August 2023."""

YAML_SUFFIXES = (".yaml", ".yml")
NO_WEIGHTS = (*YAML_SUFFIXES, ".md", ".txt", ".json", ".jinja", ".tmpl", ".py", ".sh", ".toml", ".png", ".jpg", ".gitignore")
"""Suffixes of what lies beside weights."""

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf(\.bin)?$", re.IGNORECASE)
_HEAD = 256 * 1024
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9


def detect(path: Path) -> str | None:
    """The format of a file or folder; None = none that we know. Raises OSError."""
    return _of_folder(path) if path.is_dir() else _of_file(path)


def _of_file(path: Path) -> str | None:
    with open_regular(path) as file:
        head = file.read(512)
    if found := of_head(head):
        return found
    return OPENVINO if _is_openvino(head) and path.with_suffix(".bin").is_file() else None


def of_head(head: bytes) -> str | None:
    """The format of a weights file by its first 512 bytes; None for none that they tell alone."""
    head = head[:512]
    if head.startswith(b"GGUF"):
        return GGUF
    if head[:4] in _OLD_GGML:
        return GGML
    if head.startswith(b"PK\x03\x04") and (b"/data.pkl" in head or b"/byteorder" in head or b"/.format_version" in head):
        return PYTORCH
    if len(head) > 9 and head[8:9] == b"{" and 2 <= struct.unpack("<Q", head[:8])[0] <= 100_000_000:
        return SAFETENSORS
    return None


def _is_openvino(head: bytes) -> bool:
    return bool(re.match(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*\?>)?\s*<net\s", head))


def _of_folder(folder: Path) -> str | None:
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    if any(_of_file(folder / name) == OPENVINO for name in names if name.endswith(".xml")):
        return OPENVINO
    config = _json(folder / "config.json") if "config.json" in names else None
    if config is not None:
        if quantised := _quantisation(names, config):
            return quantised
        if any(name.endswith(".safetensors") for name in names):
            return SAFETENSORS
        if any(_of_file(folder / name) == PYTORCH for name in names if name.endswith((".bin", ".pt", ".pth"))):
            return PYTORCH
    return GGUF if gguf_models(folder) else None


def of_names(names: Collection[str], config: Mapping[str, Any] | None) -> str | None:
    """The format of a folder that is not here, by the names of its files and its config.json; GGUF files do not count."""
    if any(name.endswith(".xml") and f"{name[:-4]}.bin" in names for name in names):
        return OPENVINO
    if config is None:
        return None
    if quantised := _quantisation(names, config):
        return quantised
    if any(name.endswith(".safetensors") for name in names):
        return SAFETENSORS
    return PYTORCH if any(name.endswith((".bin", ".pt", ".pth")) for name in names) else None


def _quantisation(names: Collection[str], config: Mapping[str, Any]) -> str | None:
    if not any(name.endswith((".safetensors", ".bin")) for name in names):
        return None
    described = config.get("quantization_config")
    method = str(described.get("quant_method", "")).lower() if isinstance(described, dict) else ""
    if method in (GPTQ, AWQ, EXL2, EXL3):
        return method
    if not method and isinstance(described, dict) and "bits" in described and "group_size" in described:
        return GPTQ  # AutoGPTQ before it wrote quant_method
    if not method and "quantize_config.json" in names:
        return GPTQ
    return AWQ if not method and "quant_config.json" in names else None


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_bytes()[: 4 * 1024 * 1024])
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def gguf_models(folder: Path) -> list[Path]:
    """The GGUF models of a folder, sorted by name; of a split model its first part. No projectors, no adapters."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and _of_file(path) == GGUF and is_model(path):
            found.append(path)
    return found


def is_model(path: Path) -> bool:
    """A GGUF file that is a model, or the first part of one: no projector (mmproj), adapter, matrix or later part."""
    if (split := _SPLIT.search(path.name)) and int(split[1]) != 1:
        return False
    facts = gguf_texts(path)
    return facts.get("general.type", "model") == "model" and facts.get("general.architecture") not in ("clip", "mmproj")


def gguf_texts(path: Path) -> dict[str, str]:
    """The text values that stand before the first array of a GGUF header (general.architecture, general.type, ...).

    Format: ggml/docs/gguf.md. {} for a file that is cut short or no GGUF.
    """
    with open_regular(path) as file:
        try:
            return _texts(file)
        except (struct.error, UnicodeDecodeError):
            return {}


def _texts(file: BinaryIO) -> dict[str, str]:
    head = file.read(_HEAD)
    if head[:4] != b"GGUF":
        return {}
    version, _, count = struct.unpack_from("<IQQ", head, 4)
    found: dict[str, str] = {}
    at = 24
    for _ in range(min(count, 64) if version >= 2 else 0):
        key, at = _text(head, at)
        (type_,) = struct.unpack_from("<I", head, at)
        at += 4
        if type_ == _STRING:
            found[key], at = _text(head, at)
        elif type_ == _ARRAY or type_ not in _SIZES:
            break
        else:
            at += _SIZES[type_]
    return found


def _text(head: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", head, at)
    end = at + 8 + length
    if end > len(head):
        raise struct.error("the text goes on after what has been read")
    return head[at + 8 : end].decode("utf-8", "replace"), end


def split_parts(path: Path) -> tuple[Path, ...]:
    """All files of a split GGUF, first part first, whichever part `path` is; the file alone when it is not split."""
    match = _SPLIT.search(path.name)
    count = int(match[2]) if match else 0
    if match is None or not 0 < int(match[1]) <= count:
        return (path,)
    stem, rest = path.name[: match.start()], path.name[match.start() + len("-00001-of-00001") :]
    return tuple(path.with_name(f"{stem}-{number:05d}-of-{count:05d}{rest}") for number in range(1, count + 1))
