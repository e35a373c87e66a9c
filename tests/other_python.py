"""A second virtual environment, made in a moment and without a network: what it has is linked to what this one has."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path

NEEDED = ("msgspec", "jinja2", "markupsafe", "numpy", "numpy.libs")
"""What a worker needs, and what these need in their turn."""


def make_environment(folder: Path, packages: tuple[str, ...] = NEEDED) -> Path:
    """Its interpreter. Neither our package nor its entry points are in it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=60)
    for name in packages:
        link_package(folder, name)
    return folder / "bin" / "python"


def link_package(folder: Path, name: str) -> None:
    """The package, as it is installed here."""
    if name.endswith(".libs"):  # the libraries that a wheel brings on Linux
        source = Path(sysconfig.get_path("platlib")) / name
        if not source.exists():
            return
    else:
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        source = Path(spec.origin).parent
    (site_packages(folder) / name).symlink_to(source, target_is_directory=True)


def site_packages(folder: Path) -> Path:
    return next(folder.glob("lib/python3.*/site-packages"))
