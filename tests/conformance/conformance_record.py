"""What each backend passed, as a file that machines add to: docs/conformance.json."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

from conformance_checks import CHECKS

from llmgallery.backends.base import BackendSpec
from llmgallery.backends.loader import specs

KEPT = Path(__file__).resolve().parents[2] / "docs" / "conformance.json"
PASSED, DECLARED, FAILED, NOT_RUN = "passed", "declared", "failed", "not run"

_outcomes: dict[str, dict[str, str]] = {}
_devices: dict[str, str] = {}


def note(backend: str, check: str, lacking: bool, device: str, *, outcome: str) -> None:
    """A test has ended. Of several tests of one check, all must pass."""
    known = _outcomes.setdefault(backend, {})
    if known.get(check) != FAILED:
        known[check] = FAILED if outcome != "passed" else DECLARED if lacking else PASSED
    _devices[backend] = device


def read(file: Path) -> dict[str, dict[str, Any]]:
    """The records by backend."""
    return {record["backend"]: record for record in json.loads(file.read_text())} if file.exists() else {}


def write(file: Path) -> None:
    """Puts the records of the backends that ran in place of those that the file has. Backends that are not installed anywhere
    yet are in it as not run."""
    records = read(file)
    for name, spec in specs().items():
        if name in _outcomes:
            records[name] = _record(spec)
        elif name not in records:
            records[name] = {"backend": name, "checks": dict.fromkeys(CHECKS, NOT_RUN)}
    kept = [records[name] for name in sorted(records) if name in specs()]
    file.write_text(json.dumps(kept, indent=2) + "\n")


def _record(spec: BackendSpec) -> dict[str, Any]:
    checks = {name: _outcomes[spec.name].get(name, NOT_RUN) for name in CHECKS}
    return {
        "backend": spec.name,
        "versions": _versions(spec),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": _devices[spec.name],
        "checks": checks,
    }


def _versions(spec: BackendSpec) -> dict[str, str]:
    """Of Python, and of the packages that bring the modules that the backend needs."""
    bringing = importlib.metadata.packages_distributions()
    modules = dict.fromkeys((*spec.requires, *(name for names in spec.requires_for.values() for name in names)))
    packages = [package for module in modules for package in dict.fromkeys(bringing.get(module, []))]
    python = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    return {"python": python, **{package: importlib.metadata.version(package) for package in packages}}
