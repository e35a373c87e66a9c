"""What a machine has, told without importing a library that would use it."""

from __future__ import annotations

import ctypes.util
import os
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path

CUDA_DEVICES = "nvidia[0-9]*"
CUDA_HOMES = ("CUDA_HOME", "CUDA_PATH")


def lacking(hardware: str) -> str:
    """What the machine lacks of this kind of hardware, and what to do; "" = it is there. Raises ValueError."""
    if hardware != "cuda":
        raise ValueError(f"nobody knows the hardware {hardware}")
    return _no_cuda()


def _no_cuda(devices: Path = Path("/dev")) -> str:
    """The devices are looked for first: where the driver's library is, only other programs can tell. WSL2 has one device for all
    GPUs, and keeps the library in a place of its own."""
    if not any(devices.glob(CUDA_DEVICES)) and not (devices / "dxg").exists():
        return "an NVIDIA GPU (there is none here; in a container, start it with --gpus all)"
    if not _has_driver():
        return "the driver of the NVIDIA GPU (there is no libcuda here)"
    return ""


@cache
def _has_driver() -> bool:
    return Path("/usr/lib/wsl/lib/libcuda.so.1").exists() or ctypes.util.find_library("cuda") is not None


def cuda_compiler(environment: Mapping[str, str] = os.environ) -> str | None:
    """nvcc, with which some libraries compile themselves at their first import; None = it is not here."""
    homes = [environment[name] for name in CUDA_HOMES if environment.get(name)]
    found = [Path(home) / "bin" / "nvcc" for home in (*homes, "/usr/local/cuda")]
    return next((str(path) for path in found if path.is_file()), None) or shutil.which("nvcc", path=environment.get("PATH"))
