"""A virtual environment for each peer, made once under a folder that the caller names."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

XLLAMACPP = "xllamacpp"
LLAMA_CPP = "llama-cpp-python[server]"
NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
"""GCC before 14 compiles llama.cpp's AMX kernels so that they crash; tools/bootstrap.sh leaves them out in the same way."""


@dataclass(frozen=True)
class Environment:
    """`python`: its interpreter."""

    name: str
    python: Path

    def find(self, code: str) -> str:
        """What a line of Python prints in it, the last line of it."""
        found = subprocess.run([self.python, "-c", code], capture_output=True, text=True, check=True)
        return found.stdout.strip().splitlines()[-1]

    @property
    def library(self) -> Path:
        """The file with llama.cpp's code."""
        if self.name == "llama-server":
            return Path(self.find("import xllamacpp; print(xllamacpp.xllamacpp.__file__)"))
        return Path(self.find("from llama_cpp import llama_cpp as c; print(c._lib._name)"))


def own() -> Environment:
    """The one that runs this."""
    return Environment("llmgallery", Path(sys.executable))


def xllamacpp(folder: Path) -> Environment:
    return Environment("llama-server", _made(folder / "xllamacpp", XLLAMACPP))


def llama_cpp_python(folder: Path, wheel: Path | None) -> Environment:
    """`wheel`: one that was built before; else pip compiles it, which takes minutes."""
    wanted = LLAMA_CPP if wheel is None else f"{wheel.resolve()}[server]"
    return Environment("llama-cpp-python", _made(folder / "llama-cpp-python", wanted))


def _made(folder: Path, wanted: str) -> Path:
    """The environment's interpreter. Whatever an interrupted installation left is made anew."""
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        print(f"installing {wanted} into {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", wanted], check=True, env=_compiling())
        done.touch()
    return python


def _compiling() -> dict[str, str]:
    if platform.machine() != "x86_64" or "amx_tile" not in _cpu_flags():
        return dict(os.environ)
    flags = {name: f"{os.environ.get(name, '')} {NO_AMX}".strip() for name in ("CFLAGS", "CXXFLAGS")}
    return {**os.environ, **flags}


def _cpu_flags() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else ""
