"""The table of backends and what the conformance suite found of each: docs/conformance.json as Markdown."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "conformance.json"
SUITE = ROOT / "tests" / "conformance"
NOT_RUN = "not run"

Record = Mapping[str, Any]


def matrix(file: Path = RESULTS) -> str:
    """A row for each check, a column for each backend, and below what each was checked with."""
    records = json.loads(file.read_text(encoding="utf-8"))
    rows = [[check.words, *(_word(check, record["checks"].get(name)) for record in records)] for name, check in _checks().items()]
    told: dict[str, Callable[[Record], str]] = {"with": _versions, "on": _machine, "date": lambda record: str(record["date"])}
    for name, tell in told.items():
        rows.append([f"*checked {name}*", *(tell(record) if "date" in record else NOT_RUN for record in records)])
    lines = [["", *(f"`{record['backend']}`" for record in records)], ["---"] * (len(records) + 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _checks() -> Mapping[str, Any]:
    """The suite's own list, so that both say the same."""
    if str(SUITE) not in sys.path:
        sys.path.append(str(SUITE))
    checks: Mapping[str, Any] = importlib.import_module("conformance_checks").CHECKS
    return checks


def _word(check: Any, found: str | None) -> str:
    words = {"passed": "yes", "declared": str(check.otherwise), "failed": "fails"}
    return words.get(found or "", NOT_RUN)


def _versions(record: Record) -> str:
    return ", ".join(f"{name.replace('_', '-')} {version}" for name, version in record["versions"].items())


def _machine(record: Record) -> str:
    device = "CPU" if record["device"] == "cpu" else record["device"]
    return f"{record['platform']}, {device}"


if __name__ == "__main__":
    print(matrix(), end="")
