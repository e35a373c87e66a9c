"""Which Python runs the workers of a backend, what it has, and what is said when it will not do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from other_python import link_package, make_environment, site_packages
from test_manager import ask, entry, running

from llmgallery import paths
from llmgallery.backends.base import BackendSpec, Files
from llmgallery.config.backend_settings import BackendSetting
from llmgallery.core.errors import LoadError
from llmgallery.runtime.interpreters import CLOSURE, STAMP, Interpreters, environment_of, own_interpreter, package_folder
from llmgallery.runtime.process import worker_environment

SPEC = BackendSpec("thing", "nowhere:Thing", requires=("json",), requires_for={"gptq": ("quantiser",)}, extra="thing")


def placed(spec: BackendSpec, python: Path) -> BackendSpec:
    return Interpreters({spec.name: BackendSetting(python)}).placed(spec)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    return make_environment(tmp_path_factory.mktemp("other"))


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_the_setting_comes_first_then_the_environment_of_its_own_then_ours(tmp_path):
    named = Path("/named/python")
    folder = environment_of(tmp_path, "thing")
    folder.mkdir(parents=True)
    settings = {"thing": BackendSetting(named)}
    assert Interpreters({}, tmp_path).of("thing") == own_interpreter(), "half an environment is none"
    (folder / STAMP).write_text("{}")
    assert Interpreters({}, tmp_path).of("thing").python == folder / "bin" / "python"
    assert Interpreters({}, tmp_path).of("another") == own_interpreter()
    assert Interpreters(settings, tmp_path).of("thing").python == named
    assert own_interpreter().python == Path(sys.executable)


def test_what_is_missing_is_asked_of_that_interpreter_and_again_after_an_installation(other):
    spec = placed(SPEC, other)
    assert spec.missing() == [] and spec.missing("gptq") == ["quantiser"]
    assert spec.lacks() == ""
    assert spec.lacks("gptq") == (
        f"backend thing needs quantiser, not installed in {other} (backends.thing.python in the settings): "
        f"{other} -m pip install quantiser"
    )
    (site_packages(other.parent.parent) / "quantiser.py").write_text("")
    assert spec.missing("gptq") == []


def test_an_environment_that_we_made_is_completed_by_the_command_that_made_it(tmp_path):
    python = make_environment(environment_of(tmp_path, "thing"), ("msgspec", "jinja2"))
    (python.parent.parent / STAMP).write_text("{}")
    spec = Interpreters({}, tmp_path).placed(SPEC)
    assert spec.missing() == ["numpy"], "what every worker needs counts as well"
    assert spec.lacks().endswith("numpy, not installed in "
        f"{python} (made by `llmgallery backends install thing`): llmgallery backends install thing")  # fmt: skip


def test_nobody_is_asked_twice(tmp_path):
    python = script(tmp_path / "python", f'echo asked >> "{tmp_path}/log"; exec "{sys.executable}" "$@"')
    spec = placed(SPEC, python)
    for _ in range(3):
        assert spec.missing("gptq") == ["quantiser"]
    assert (tmp_path / "log").read_text() == "asked\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exit 3", "is no Python that runs our workers (3.11 or newer): exit code 3"),
        ("echo 'unknown option -P' >&2; exit 2", "is no Python that runs our workers (3.11 or newer): unknown option -P"),
        ('echo \'{"version": [3, 10], "path": [], "absent": []}\'', "is Python 3.10; workers need 3.11 or newer"),
    ],
)
def test_an_interpreter_that_will_not_do_is_told_by_name(tmp_path, text, said):
    python = script(tmp_path / "python", text)
    spec = placed(SPEC, python)
    assert spec.lacks() == f"backend thing cannot run: {python} (backends.thing.python in the settings) {said}"
    assert spec.missing() == ["msgspec", "jinja2", "numpy", "json"]


def test_one_that_is_gone_is_told_by_name(tmp_path):
    assert "does not start: No such file or directory" in placed(SPEC, tmp_path / "gone").lacks()


def test_specs_are_those_that_are_installed_in_all_else():
    from llmgallery.backends.loader import specs

    found = Interpreters().specs()
    assert list(found) == list(specs())
    for name, spec in specs().items():
        assert {field: getattr(found[name], field) for field in BackendSpec.__dataclass_fields__} == vars(spec)
        assert found[name].missing() == spec.missing() and found[name].lacks() == spec.lacks()


# --- workers -----------------------------------------------------------------------------------------------------------------


def command_of(pid: int) -> str:
    """What a process was started with; "" where the system does not tell."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes().split(b"\0")[0].decode() if path.exists() else ""


async def test_a_worker_runs_under_another_interpreter(tmp_path, other):
    """Nothing of ours is installed there, entry points included: the link and the place of the spec must do."""
    async with running(tmp_path, interpreters=Interpreters({"echo": BackendSetting(other)})) as manager:
        assert (await ask(manager, entry(), "hello there"))[0] == "hello there"
        async with manager.lease(entry()) as lease:
            pid = (await lease.handle()).pid
        assert await asyncio.to_thread(command_of, pid) in ("", str(other))
        async with manager.light.worker("key", "m", "", entry().config, Files()) as light:
            assert await asyncio.to_thread(command_of, light.pid) in ("", sys.executable), "no backend, no other interpreter"


async def test_one_that_lacks_a_module_is_a_load_error_that_names_the_setting(tmp_path):
    python = make_environment(tmp_path / "bare", ("jinja2", "markupsafe"))
    async with running(tmp_path, interpreters=Interpreters({"echo": BackendSetting(python)})) as manager:
        with pytest.raises(LoadError) as caught:
            await ask(manager, entry(), "x")
    assert str(caught.value) == (
        f"{python} (backends.echo.python in the settings) does not run a worker for model m: "
        "ModuleNotFoundError: No module named 'msgspec' "
        "(it must be Python 3.11 or newer with msgspec, jinja2, numpy and what the backend needs)"
    )


@pytest.mark.parametrize(("text", "said"), [("exit 0", "it ended with exit code 0"), ("kill -9 $$", "it ended by signal 9")])
async def test_one_that_is_no_python_is_a_load_error_too(tmp_path, text, said):
    python = script(tmp_path / "python", text)
    async with running(tmp_path, interpreters=Interpreters({"echo": BackendSetting(python)})) as manager:
        with pytest.raises(LoadError, match=said) as caught:
            await ask(manager, entry(), "x")
    assert str(python) in str(caught.value)


async def test_one_that_is_gone_is_a_load_error_that_names_the_setting(tmp_path):
    gone = tmp_path / "gone"
    async with running(tmp_path, interpreters=Interpreters({"echo": BackendSetting(gone)})) as manager:
        with pytest.raises(LoadError, match=r"does not start .*gone .backends\.echo\.python in the settings. for model m"):
            await ask(manager, entry(), "x")


async def test_a_backend_that_is_not_installed_there_is_told(tmp_path, other, monkeypatch):
    """As with a package of somebody else, whose spec is only in our environment."""
    monkeypatch.setattr("llmgallery.runtime.handle.places", lambda: {"echo": "somebody.elses:SPEC"})
    async with running(tmp_path, interpreters=Interpreters({"echo": BackendSetting(other)})) as manager:
        with pytest.raises(LoadError, match=f"backend echo is not installed for {other}.* No module named 'somebody'"):
            await ask(manager, entry(), "x")


def test_a_worker_imports_no_more_than_other_interpreters_are_asked_for():
    """Whoever runs workers under a Python of their own would have to install it there."""
    code = """
import sys
before = set(sys.modules)
import llmgallery.worker.__main__, llmgallery.worker.child
from llmgallery.backends.loader import places, spec_at
for place in places().values():
    if place.startswith("llmgallery."):
        spec_at(place)
print(*{name.partition(".")[0] for name in set(sys.modules) - before if name[0] != "_"} - set(sys.stdlib_module_names))
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    theirs = {"markupsafe", "typing_extensions"}  # which jinja2 needs, and msgspec looks for
    assert {"llmgallery", "msgspec", "jinja2"} <= set(shown) and set(shown) <= {"llmgallery", *CLOSURE, *theirs}


# --- what it is started with -------------------------------------------------------------------------------------------------


def test_another_interpreter_finds_our_package_and_nothing_else_of_ours(tmp_path, other):
    given = {"PYTHONPATH": "/ours", "PYTHONHOME": "/ours", "PATH": "/bin"}
    found = Interpreters({"thing": BackendSetting(other)}, tmp_path).of("thing").environment(given)
    assert found == {"PATH": "/bin", "PYTHONPATH": str(package_folder(tmp_path))}
    folder = Path(found["PYTHONPATH"])
    assert folder.is_relative_to(tmp_path) and [path.name for path in folder.iterdir()] == ["llmgallery"]
    assert (folder / "llmgallery").resolve() == paths.PACKAGE
    assert own_interpreter().environment(given) == given


def test_a_link_to_a_package_that_moved_is_made_anew(tmp_path):
    link = package_folder(tmp_path) / "llmgallery"
    link.unlink()
    link.symlink_to(tmp_path)
    assert (package_folder(tmp_path) / "llmgallery").resolve() == paths.PACKAGE


def test_where_nothing_can_be_written_the_link_is_made_elsewhere(tmp_path):
    (tmp_path / "file").write_text("")
    folder = package_folder(tmp_path / "file")
    assert folder == package_folder(None) and not folder.is_relative_to(tmp_path)
    assert (folder / "llmgallery").resolve() == paths.PACKAGE


def test_linked_packages_are_those_of_this_environment(other):
    """Else the tests above would prove less than they say."""
    import msgspec

    assert (site_packages(other.parent.parent) / "msgspec").resolve() == Path(msgspec.__file__).parent
    with pytest.raises(FileExistsError):
        link_package(other.parent.parent, "msgspec")
    assert "HF_TOKEN" not in worker_environment({"HF_TOKEN": "x"})
