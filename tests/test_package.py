"""The wheel: what is in it, and that it works from any directory in an environment that knows nothing of the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: object, cwd: Path, **env: str) -> str:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("LLMGALLERY_", "PYTHON"))}
    result = subprocess.run([str(part) for part in command], cwd=cwd, env={**clean, **env}, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def build(source: Path, target: str, folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder, cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of a new environment: the wheel, and a path to the third-party packages of this one.
    (A .pth file in a folder that is itself on the path by .pth is not read, so the editable install stays unseen.)"""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    Path(site, "third-party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_the_package_and_its_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "llmgallery").rglob("*.py")}
    assert modules <= names
    assert {"llmgallery/py.typed", "llmgallery/_data/models/pocket.yaml"} <= names
    assert any(name.startswith("llmgallery/_data/models/") and name.endswith(".gguf") for name in names)
    assert any(name.startswith("llmgallery/_data/gallery/") for name in names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    outside = {name.split("/")[0] for name in names} - {"llmgallery"}
    assert len(outside) == 1 and outside.pop().endswith(".dist-info")


def test_a_wheel_from_the_source_archive_is_the_same(wheel, tmp_path):
    archive = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    again = build(tmp_path / archive.name.removesuffix(".tar.gz"), "wheel", tmp_path / "wheel")
    contents = [{info.filename: info.CRC for info in zipfile.ZipFile(path).infolist()} for path in (wheel, again)]
    assert contents[0] == contents[1]


def test_the_wheel_works_from_another_directory(installed, tmp_path):
    where = "import llmgallery, llmgallery.paths as p; print(llmgallery.__file__); print(p.builtin('models'))"
    for line in run(installed / "python", "-c", where, cwd=tmp_path).splitlines():
        assert Path(line).is_relative_to(installed.parent)
    home = {"HOME": str(tmp_path / "home"), "XDG_DATA_HOME": str(tmp_path / "data"), "HF_HUB_OFFLINE": "1"}
    assert "pocket" in run(installed / "llmgallery", "list", cwd=tmp_path, **home)
    answer = run(installed / "llmgallery", "run", "pocket", "What is the capital of France?", cwd=tmp_path, **home)
    assert "Paris" in answer
    assert not any(tmp_path.glob("models"))


def test_the_checkout_finds_its_data_without_a_wheel():
    code = "import llmgallery.paths as p; print(p.builtin('models')); print(p.builtin('gallery'))"
    assert run(sys.executable, "-c", code, cwd=ROOT).split() == [str(ROOT / "models"), str(ROOT / "gallery")]
