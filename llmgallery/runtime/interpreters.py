"""Which Python runs the workers of a backend: the one that the settings name, that of its own environment, or ours."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import llmgallery
from llmgallery.backends.base import BackendSpec
from llmgallery.backends.hardware import lacking
from llmgallery.backends.loader import specs
from llmgallery.config.backend_settings import BackendSetting

CLOSURE = ("msgspec", "jinja2", "numpy")
"""The modules that our part of a worker imports, beside those of its backend."""

OLDEST = (3, 11)
STAMP = "llmgallery.json"
"""The file in an environment of `llmgallery backends install` that says: everything is in."""

PROBE_SECONDS = 60.0
FRESH_SECONDS = 2.0
"""How long an answer about a whole backend holds: reading ten thousand model files asks for it as often."""

_PROBE = """
import importlib.util, json, sys
found = {name: importlib.util.find_spec(name) for name in sys.argv[1:]}
absent = [name for name, spec in found.items() if spec is None or spec.origin is None]  # without an origin: a mere folder
print(json.dumps({"version": list(sys.version_info[:2]), "path": sys.path, "absent": absent}))
"""


@dataclass(frozen=True)
class Interpreter:
    """`named`: who says so, for messages; "" = it is ours. `remedy`: what installs further modules there. `data_dir`: where the
    link to our package may be kept."""

    python: Path
    named: str = ""
    remedy: str = ""
    data_dir: Path | None = None

    @property
    def is_ours(self) -> bool:
        """It runs the server as well."""
        return not self.named

    def __str__(self) -> str:
        return f"{self.python} ({self.named})" if self.named else str(self.python)

    def environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What it is started with. Another one finds our package, and nothing else that is ours."""
        if self.is_ours:
            return dict(environment)
        theirs = {name: value for name, value in environment.items() if name not in ("PYTHONHOME", "__PYVENV_LAUNCHER__")}
        return {**theirs, "PYTHONPATH": str(package_folder(self.data_dir))}


def own_interpreter() -> Interpreter:
    """The one that runs this program."""
    return Interpreter(Path(sys.executable))


@dataclass(frozen=True)
class _Probed:
    """What an interpreter said. `wrong`: why it runs no worker; else `absent` of the modules that were asked for."""

    absent: tuple[str, ...] = ()
    wrong: str = ""
    path: tuple[tuple[str, int], ...] = ()

    @property
    def holds(self) -> bool:
        """Nothing was installed or removed there since."""
        return bool(self.path) and all(_changed(folder) == time for folder, time in self.path)


class Interpreters:
    """Thread-safe. What an interpreter has is asked of it once, and again when something was installed or removed there."""

    def __init__(self, settings: Mapping[str, BackendSetting] | None = None, data_dir: Path | None = None) -> None:
        self._settings = settings or {}
        self._data_dir = data_dir
        self._probed: dict[tuple[Path, tuple[str, ...]], _Probed] = {}
        self._lacks: dict[tuple[str, str | None], tuple[float, str]] = {}
        self._lock = threading.Lock()

    def of(self, backend: str) -> Interpreter:
        """The one that runs this backend's workers now."""
        if (setting := self._settings.get(backend)) is not None:
            return Interpreter(setting.python, f"backends.{backend}.python in the settings", "", self._data_dir)
        if self._data_dir is not None and is_installed(folder := environment_of(self._data_dir, backend)):
            command = f"llmgallery backends install {backend}"
            return Interpreter(folder / "bin" / "python", f"made by `{command}`", command, self._data_dir)
        return own_interpreter()

    def specs(self) -> dict[str, BackendSpec]:
        """As loader.specs(), but what is missing is missing where the backend's workers run."""
        return {name: self.placed(spec) for name, spec in specs().items()}

    def placed(self, spec: BackendSpec) -> BackendSpec:
        """The spec, which asks the interpreter of its workers."""
        if isinstance(spec, PlacedSpec):
            return spec
        values = {field.name: getattr(spec, field.name) for field in fields(BackendSpec)}
        return PlacedSpec(**values, interpreters=self)

    def lacks(self, spec: BackendSpec, format: str | None = None) -> str:
        """Why this backend cannot load weights of this format here, by the interpreter of its workers, and what to do; "" = it
        can."""
        return self.placed(spec).lacks(format)

    def absent(self, interpreter: Interpreter, modules: Sequence[str]) -> tuple[str, ...]:
        """Those of the modules that are not installed there; all of them where it does not start. May block for some 50 ms."""
        probed = self._ask(interpreter, tuple(modules))
        return tuple(modules) if probed.wrong else probed.absent

    def wrong(self, interpreter: Interpreter) -> str:
        """Why it can run no worker, whatever is installed there; "" = it can."""
        return "" if interpreter.is_ours else self._ask(interpreter, CLOSURE).wrong

    def warm(self) -> None:
        """Asks each interpreter that is not ours now, so that nobody has to wait for it later. Blocks."""
        for spec in self.specs().values():
            if not self.of(spec.name).is_ours:
                for format in (None, *spec.requires_for):
                    spec.missing(format)

    def lately(self, backend: str, format: str | None, ask: Callable[[], str]) -> str:
        """What `ask` says of a backend and a format, asked every two seconds at most."""
        told = self._lacks.get((backend, format))
        if told is None or time.monotonic() - told[0] > FRESH_SECONDS:
            told = self._lacks[(backend, format)] = (time.monotonic(), ask())
        return told[1]

    def _ask(self, interpreter: Interpreter, modules: tuple[str, ...]) -> _Probed:
        key = (interpreter.python, modules)
        with self._lock:
            found = self._probed.get(key)
            if found is None or not found.holds:
                found = self._probed[key] = _probe(interpreter, modules)
        return found


@dataclass(frozen=True)
class PlacedSpec(BackendSpec):
    """A spec that asks the interpreter which would run its workers."""

    interpreters: Interpreters | None = None

    @property
    def _asked(self) -> Interpreters:
        assert self.interpreters is not None
        return self.interpreters

    def missing(self, format: str | None = None) -> list[str]:
        """Those of `modules`, and of what every worker needs, that are not installed there."""
        interpreter = self._asked.of(self.name)
        if interpreter.is_ours:
            return super().missing(format)
        return list(self._asked.absent(interpreter, (*CLOSURE, *self.modules(format))))

    def lacks(self, format: str | None = None) -> str:
        """As BackendSpec.lacks, of the interpreter of its workers; what was true two seconds ago."""
        return self._asked.lately(self.name, format, lambda: self._lacks(format))

    def _lacks(self, format: str | None) -> str:
        interpreter = self._asked.of(self.name)
        if interpreter.is_ours:
            return super().lacks(format)
        if absent := list(filter(None, map(lacking, self.hardware))):
            return f"backend {self.name} needs {' and '.join(absent)}"
        if wrong := self._asked.wrong(interpreter):
            return f"backend {self.name} cannot run: {interpreter} {wrong}"
        if missing := self.missing(format):
            needs = f"backend {self.name} needs {', '.join(missing)}, not installed in {interpreter}"
            return f"{needs}: {self.remedy(missing)}"
        return ""

    def remedy(self, missing: Sequence[str]) -> str:
        """The command that installs what is missing there."""
        interpreter = self._asked.of(self.name)
        if interpreter.is_ours or interpreter.remedy:
            return super().remedy(missing)
        return f"{interpreter.python} -m pip install {' '.join(missing)}"


def environment_of(data_dir: Path, backend: str) -> Path:
    """The folder of the environment that `llmgallery backends install` makes."""
    return data_dir / "backends" / backend


def is_installed(folder: Path) -> bool:
    """The environment is complete."""
    return (folder / STAMP).is_file()


def package_folder(data_dir: Path | None) -> Path:
    """A folder that holds a link to our package, and nothing else: what another interpreter is given to find it. In the data
    folder where that can be written, else one that lasts as long as this process."""
    package = Path(llmgallery.__file__).parent
    name = hashlib.sha256(str(package).encode()).hexdigest()[:12]
    if data_dir is not None:
        with contextlib.suppress(OSError):
            return _linked(data_dir / "worker" / name, package)
    return _linked(Path(_scratch()), package)


def _linked(folder: Path, package: Path) -> Path:
    """Raises OSError."""
    link = folder / package.name
    if not _leads_to(link, package):
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f".{os.getpid()}-{threading.get_ident()}"
        fresh.symlink_to(package, target_is_directory=True)
        fresh.replace(link)  # at once, for other servers that do the same
    return folder


def _leads_to(link: Path, package: Path) -> bool:
    try:
        return link.readlink() == package
    except OSError:
        return False


_SCRATCH: list[tempfile.TemporaryDirectory[str]] = []


def _scratch() -> str:
    if not _SCRATCH:
        _SCRATCH.append(tempfile.TemporaryDirectory(prefix="llmgallery-"))
    return _SCRATCH[0].name


def _probe(interpreter: Interpreter, modules: Sequence[str]) -> _Probed:
    command = [str(interpreter.python), "-P", "-c", _PROBE, *modules]
    try:
        done = subprocess.run(
            command,
            env=interpreter.environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
        )
        told = json.loads(done.stdout)
        version, path, absent = tuple(told["version"]), told["path"], tuple(told["absent"])
    except OSError as exc:
        return _Probed(wrong=f"does not start: {exc.strerror or exc}")
    except subprocess.TimeoutExpired:
        return _Probed(wrong=f"does not answer within {PROBE_SECONDS:g} s")
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return _Probed(wrong=f"is no Python that runs our workers ({'.'.join(map(str, OLDEST))} or newer): {last}")
    if version < OLDEST:
        return _Probed(wrong=f"is Python {version[0]}.{version[1]}; workers need {OLDEST[0]}.{OLDEST[1]} or newer")
    return _Probed(absent, path=tuple((folder, _changed(folder)) for folder in path if folder))


def _changed(folder: str) -> int:
    """When something was added or removed in it; 0 = it is not there."""
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:
        return 0
