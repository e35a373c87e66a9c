"""What a machine lacks is told in words, and nothing heavy is imported for it."""

from pathlib import Path

import pytest

from llmgallery.backends import hardware


@pytest.fixture(autouse=True)
def driver(monkeypatch) -> dict[str, bool]:
    """Whether the machine has one."""
    said = {"there": True}
    monkeypatch.setattr(hardware, "_has_driver", lambda: said["there"])
    return said


@pytest.mark.parametrize("device", ["nvidia0", "nvidia11", "dxg"])
def test_a_gpu_is_seen(tmp_path: Path, device: str) -> None:
    (tmp_path / device).touch()
    assert hardware._no_cuda(tmp_path) == ""


def test_control_devices_are_no_gpu(tmp_path: Path) -> None:
    (tmp_path / "nvidiactl").touch()
    assert "--gpus all" in hardware._no_cuda(tmp_path)


def test_a_gpu_without_its_driver_is_told_so(tmp_path: Path, driver: dict[str, bool]) -> None:
    (tmp_path / "nvidia0").touch()
    driver["there"] = False
    assert "libcuda" in hardware._no_cuda(tmp_path)


def test_the_compiler_is_found_where_the_environment_says(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch()
    assert hardware.cuda_compiler({"CUDA_HOME": str(tmp_path), "PATH": ""}) == str(nvcc)
    assert hardware.cuda_compiler({"PATH": ""}) in (None, "/usr/local/cuda/bin/nvcc")


def test_unknown_hardware_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="abacus"):
        hardware.lacking("abacus")
