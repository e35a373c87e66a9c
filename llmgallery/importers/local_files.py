"""What a foreign configuration says of files, as references of ours."""

from __future__ import annotations

import re
from pathlib import Path, PureWindowsPath

from llmgallery.catalog.reference import parse_reference
from llmgallery.core.errors import ConfigError

_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")


def reference_to(text: str, base: Path, folder: Path) -> str:
    """The reference that a model file in `folder` writes for `text`: a Hub reference for the address of a file there, else a
    path. Relative paths start at `base`, as the source means them; what lies in `folder` is named from there.

    A path of another machine (C:\\models\\x.gguf) becomes its file name, and so does a mere file name of nothing that is here:
    the file is expected beside the YAML. Raises ValueError for an address that is not the Hub's, and for a malformed one.
    """
    text = text.strip()
    if _WINDOWS.match(text) and not Path(text).exists():
        return PureWindowsPath(text).name
    if "://" in text or text.lower().startswith(("hf.co/", "huggingface.co/")):
        return _address(text)
    path = base / Path(text).expanduser()
    try:
        return path.resolve().relative_to(folder.resolve()).as_posix()
    except (ValueError, OSError):
        return text if "/" not in text and text not in (".", "..") and not path.exists() else str(path.absolute())


def is_foreign(text: str) -> bool:
    """A path that this machine cannot have."""
    return bool(_WINDOWS.match(text.strip())) and not Path(text).exists()


def stem_of(text: str) -> str:
    """A file's name without suffix, of a path of any machine or an address. What begins with a digit is none: Qwen2.5-0.5B."""
    name = re.split(r"[\\/]", text.strip().partition("?")[0])[-1]
    return re.sub(r"(-\d{5}-of-\d{5})?\.[A-Za-z][A-Za-z0-9]{0,11}$", "", name)


def _address(text: str) -> str:
    try:
        found = parse_reference(text.partition("?")[0])
    except ConfigError as error:
        raise ValueError(error.message) from error
    if found is None:
        raise ValueError(f"{text} is no address of the Hugging Face Hub: download the file, and name it by its path")
    return str(found)
