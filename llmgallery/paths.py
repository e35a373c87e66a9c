"""Where things lie: builtin (in the package, read-only), models_dir (the user's), data_dir (ours)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def builtin(name: str) -> Path:
    """The folder `name` ("models" or "gallery") that ships with us: in a wheel under _data, in a checkout at its root."""
    packaged = PACKAGE / "_data" / name
    return packaged if packaged.is_dir() else PACKAGE.parent / name


def data_dir() -> Path:
    """Ours: journals, measurements, keys. LLMGALLERY_DATA_DIR, else the platform's data folder. Not created here."""
    if chosen := os.environ.get("LLMGALLERY_DATA_DIR"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "llmgallery"
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "llmgallery"


def default_models_dir() -> Path:
    """The user's: ./models if it is there, else `models` in the data folder. Not created here."""
    here = Path.cwd() / "models"
    return here if here.is_dir() else data_dir() / "models"
