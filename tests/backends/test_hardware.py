"""What a machine lacks is told in words, and nothing heavy is imported for it."""

import ctypes.util
from pathlib import Path

import pytest

from llmgallery.backends import hardware


def test_a_machine_without_the_driver_is_told_so(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None)
    assert "libcuda" in hardware._no_cuda(tmp_path)


def test_a_driver_without_a_gpu_is_told_so(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "libcuda.so.1")
    assert "--gpus all" in hardware._no_cuda(tmp_path)


@pytest.mark.parametrize("device", ["nvidia0", "dxg"])
def test_a_gpu_is_seen(monkeypatch, tmp_path: Path, device: str) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "libcuda.so.1")
    (tmp_path / device).touch()
    assert hardware._no_cuda(tmp_path) == ""


def test_control_devices_are_no_gpu(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "libcuda.so.1")
    (tmp_path / "nvidiactl").touch()
    assert hardware._no_cuda(tmp_path) != ""


def test_the_compiler_is_found_where_the_environment_says(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch()
    assert hardware.cuda_compiler({"CUDA_HOME": str(tmp_path), "PATH": ""}) == str(nvcc)
    assert hardware.cuda_compiler({"PATH": ""}) in (None, "/usr/local/cuda/bin/nvcc")


def test_unknown_hardware_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="abacus"):
        hardware.lacking("abacus")
