"""The environments that `llmgallery backends` makes, one for a backend: what is in them, and the commands that make them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points, metadata, requires
from pathlib import Path

from llmgallery import __version__
from llmgallery.backends.base import BackendSpec
from llmgallery.backends.hardware import lacking
from llmgallery.backends.loader import GROUP, specs
from llmgallery.catalog.locks import FileLock
from llmgallery.config.suggest import did_you_mean
from llmgallery.core.errors import BackendMissing, ConfigError
from llmgallery.runtime.interpreters import CLOSURE, OLDEST, STAMP, Interpreters, environment_of

OURS = "llmgallery"
TORCH = "2.13.0"
"""The version that the backends are tested with; another one may do."""

NOT_BACKENDS = ("test", "dev")
PIP = ("-m", "pip", "install", "--disable-pip-version-check")
_EXTRA = re.compile(r"""^(?P<what>[^;]+?)\s*;\s*extra\s*==\s*["'](?P<extra>[\w.-]+)["']$""")
_PROBE = "import sys, venv, ensurepip; print(*sys.version_info[:2])"


@dataclass(frozen=True)
class Recipe:
    """`commands`: what is run, one after the other; `folder`: of the environment, None = our own is added to."""

    backend: str
    commands: tuple[tuple[str, ...], ...]
    folder: Path | None = None

    @property
    def lines(self) -> list[str]:
        """As a shell takes them."""
        return [shlex.join(command) for command in self.commands]


def spec_of(name: str) -> BackendSpec:
    """By any of its names. Raises ConfigError."""
    names = {each.lower(): spec for spec in specs().values() for each in (*spec.aliases, spec.name)}
    if (found := names.get(name.lower())) is not None:
        return found
    advice = did_you_mean(name, list(names)) or f"backends: {', '.join(specs())}"
    raise ConfigError(f"there is no backend {name}: {advice}")


def requirements(spec: BackendSpec, more: Sequence[str] = (), torch: str = TORCH) -> tuple[str, ...]:
    """What pip is given for a backend, beside what every worker needs; torch first, as one version. Raises ConfigError."""
    if spec.extra not in _extras():
        package = next((point.dist.name for point in entry_points(group=GROUP, name=spec.name) if point.dist is not None), "")
        if package in ("", OURS):
            raise ConfigError(f"backend {spec.name} comes with {OURS}, and all that it needs: there is nothing to install")
        raise ConfigError(
            f"backend {spec.name} comes with {package}, which says itself how it is installed; for an environment of its own, "
            f"install it into one together with {', '.join(CLOSURE)}, and name its Python: --backend-python {spec.name}=PATH"
        )
    others = sorted(_extras() - {one.extra for one in specs().values()})
    for extra in more:
        if extra not in others:
            raise ConfigError(f"--with {extra}: there is no such extra; there are {', '.join(others)}")
    found = dict.fromkeys(what for what, extra in _ours() if extra in (spec.extra, *more))
    if torch and any(_name(what) == "torch" for what in found):
        return (f"torch=={torch}", *(what for what in found if _name(what) != "torch"))
    return tuple(found)


def closure() -> tuple[str, ...]:
    """What every worker needs, as we require it ourselves."""
    return tuple(what for what, extra in _ours() if not extra and _name(what) in CLOSURE)


def _ours() -> list[tuple[str, str]]:
    """(requirement, extra or "") of this program."""
    found = []
    for line in requires(OURS) or ():
        match = _EXTRA.match(line)
        found.append((match["what"], match["extra"]) if match else (line, ""))
    return found


def _extras() -> set[str]:
    return set(metadata(OURS).get_all("Provides-Extra") or ()) - set(NOT_BACKENDS)


def _name(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""


def recipe(
    spec: BackendSpec, data_dir: Path, *, python: str | None, more: Sequence[str], torch: str, index: str | None, here: bool
) -> Recipe:
    """How to install a backend: into an environment of its own in the data folder, or (`here`) into ours. Raises ConfigError."""
    wanted = requirements(spec, more, torch)
    folder = None if here else environment_of(data_dir, spec.name)
    runs = Path(sys.executable) if folder is None else folder / "bin" / "python"
    commands: list[tuple[str, ...]] = []
    if folder is not None:
        commands.append((_base(python), "-m", "venv", str(folder)))
        wanted = (*wanted, *closure())
    if index is not None and wanted[0].startswith("torch=="):
        commands.append((str(runs), *PIP, "--index-url", index, wanted[0]))
    commands.append((str(runs), *PIP, *wanted))
    return Recipe(spec.name, tuple(commands), folder)


def _base(python: str | None) -> str:
    """The interpreter that makes the environment. Raises ConfigError."""
    found = shutil.which(python) if python else sys.executable
    if found is None:
        raise ConfigError(f"--python {python}: there is no such command")
    try:
        done = subprocess.run([found, "-c", _PROBE], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as exc:
        raise ConfigError(f"{found} does not start: {exc.strerror or exc}") from exc
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(f"{found} makes no environments ({last}); on Debian and Ubuntu its venv is a package, python3.x-venv")
    version = tuple(map(int, done.stdout.split()))
    if version < OLDEST:
        raise ConfigError(f"{found} is Python {'.'.join(map(str, version))}; workers need {'.'.join(map(str, OLDEST))} or newer")
    return found


def carry_out(recipe: Recipe, data_dir: Path) -> None:
    """Runs the commands; what they say goes to stderr. Raises BackendMissing when one of them fails, ConfigError when another
    process makes the same environment."""
    with _held(recipe, data_dir):
        if recipe.folder is not None:
            (recipe.folder / STAMP).unlink(missing_ok=True)  # it is complete when the last command is through
        for command in recipe.commands:
            print(f"+ {shlex.join(command)}", file=sys.stderr, flush=True)
            try:
                status = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=sys.stderr, env=_environment(), check=False
                ).returncode
            except OSError as exc:
                raise BackendMissing(f"{command[0]} does not start: {exc.strerror or exc}") from exc
            if status:
                raise BackendMissing(
                    f"backend {recipe.backend} is not installed: the command above ended with exit code {status}; "
                    "what was wrong stands above it, and the same command goes on from there"
                )
        if recipe.folder is not None:
            told = {"backend": recipe.backend, "llmgallery": __version__, "commands": recipe.lines}
            (recipe.folder / STAMP).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def _environment() -> dict[str, str]:
    """Without what would lead another interpreter to our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "__PYVENV_LAUNCHER__")}


@contextlib.contextmanager
def _held(recipe: Recipe, data_dir: Path) -> Iterator[None]:
    lock = FileLock(data_dir / "backends" / f"{recipe.backend}.lock")
    if not lock.acquire():
        raise ConfigError(f"another process is installing backend {recipe.backend}")
    try:
        yield
    finally:
        lock.release()


def delete(spec: BackendSpec, data_dir: Path) -> Path:
    """The folder of its environment, which is gone now. Raises ConfigError."""
    folder = environment_of(data_dir, spec.name)
    if not (folder / "pyvenv.cfg").is_file():
        raise ConfigError(f"backend {spec.name} has no environment of its own: there is none at {folder}")
    (folder / STAMP).unlink(missing_ok=True)  # from now on it is none, however far the rest gets
    try:
        shutil.rmtree(folder)
    except OSError as exc:
        raise ConfigError(f"{exc.filename} cannot be deleted: {exc.strerror}") from exc
    return folder


# --- what is here ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """`state`: installed, own environment, other interpreter, not installed, hardware missing, broken; `detail`: where, or why
    not and what to do; `without`: format -> the command that adds these weights, where it loads others."""

    name: str
    state: str
    detail: str
    weights: tuple[str, ...]
    hardware: tuple[str, ...]
    aliases: tuple[str, ...]
    python: str
    without: dict[str, str]


def states(interpreters: Interpreters) -> list[State]:
    """Of every backend, by name."""
    return [_state(spec, interpreters) for spec in interpreters.specs().values()]


def _state(spec: BackendSpec, interpreters: Interpreters) -> State:
    interpreter = interpreters.of(spec.name)
    faults = {format: spec.lacks(format) for format in spec.formats or ("",)}
    fault = next(iter(faults.values())) if all(faults.values()) else ""
    without = {} if fault else {format: spec.remedy(spec.missing(format)) for format, why in faults.items() if why}
    if fault:
        state = (
            "hardware missing"
            if any(map(lacking, spec.hardware))
            else "broken"
            if interpreters.wrong(interpreter)
            else "not installed"
        )
        detail = fault
    elif interpreter.is_ours:
        state, detail = "installed", ""
    else:
        state, detail = ("own environment" if interpreter.remedy else "other interpreter"), str(interpreter.python)
    return State(spec.name, state, detail, spec.formats, spec.hardware, spec.aliases, str(interpreter.python), without)
