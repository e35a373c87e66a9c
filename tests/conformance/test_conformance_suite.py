"""The suite itself: nothing is skipped, nobody is forgotten, and what is published is what it found."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import conformance_record
import pytest
from conformance_cases import MODULES, VARIANTS
from conformance_checks import CHECKS, Asked, has
from conformance_record import DECLARED, NOT_RUN, PASSED

from llmgallery.backends.base import CAPABILITIES, BackendSpec
from llmgallery.backends.loader import specs

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
SKIPS = re.compile(r"skip(?!\w)|skipif|importorskip|xfail")
RUN_ELSEWHERE = "cuda"
"""Hardware that machines that write code mostly lack."""


def asked() -> Iterator[Asked]:
    """What the tests of this folder show."""
    for file in sorted(FOLDER.glob("test_*.py")):
        module = importlib.import_module(file.stem)
        yield from (test.asked for test in vars(module).values() if hasattr(test, "asked"))


def test_nothing_is_skipped() -> None:
    ours = Path(__file__).name
    for file in FOLDER.glob("*.py"):
        code = [line for line in file.read_text().splitlines() if "pytest." in line]
        assert file.name == ours or not any(SKIPS.search(line) for line in code), file


@pytest.mark.parametrize("spec", specs().values(), ids=lambda spec: spec.name)
def test_every_check_looks_at_every_backend(spec: BackendSpec) -> None:
    shown = {each.name for each in asked() if each.wanted_of(spec)}
    assert shown == set(CHECKS)


def test_every_backend_has_a_case() -> None:
    assert set(MODULES) == set(specs()) and set(VARIANTS) <= set(specs())
    assert all(importlib.util.find_spec(module) is not None for module in MODULES.values())


def test_every_capability_is_checked() -> None:
    assert set(CAPABILITIES) <= {check.needs for check in CHECKS.values()}
    assert all(spec.capabilities <= set(CAPABILITIES) for spec in specs().values())


def test_what_is_published_is_of_these_backends_and_checks() -> None:
    """`make conformance` writes it anew."""
    records = conformance_record.read(conformance_record.KEPT)
    assert list(records) == sorted(specs()), "a backend came or went"
    for name, record in records.items():
        spec, found = specs()[name], record["checks"]
        assert list(found) == list(CHECKS), f"{name}: the checks are others now"
        if set(found.values()) == {NOT_RUN}:
            assert RUN_ELSEWHERE in spec.hardware, f"{name} can run anywhere, and never did"
            continue
        expected = {check: PASSED if has(spec, CHECKS[check].needs) else DECLARED for check in CHECKS}
        assert found == expected, f"{name} declares something else now"
        assert record["versions"]["python"] and record["date"] and record["device"] and record["platform"]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", str(FOLDER), "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_report_replaces_what_ran_and_keeps_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    ran_there = {"backend": "transformers", "versions": {"python": "3.12.1"}, "checks": dict.fromkeys(CHECKS, PASSED)}
    gone = {"backend": "no-more", "checks": {}}
    file.write_text(json.dumps([ran_there, gone]))
    done = run("--backend", "ECHO", "--conformance-report", str(file), "-k", "echo")
    assert done.returncode == 0, done.stdout
    records = conformance_record.read(file)
    assert list(records) == sorted(specs()) and records["transformers"] == ran_there
    found = records["echo"]["checks"]
    assert (found["greedy"], found["constraints"], found["bad_files"]) == (PASSED, DECLARED, DECLARED)
    assert set(records["openai"]["checks"].values()) == {NOT_RUN}


def test_backends_that_cannot_run_are_an_error_when_they_are_asked_for() -> None:
    unknown = run("--backend", "never-heard-of")
    assert unknown.returncode == 4 and "there is no backend never-heard-of" in unknown.stderr
    absent = [spec for spec in specs().values() if spec.lacks(spec.formats[0] if spec.formats else None)]
    for spec in absent:
        refused = run("--backend", spec.name)
        assert refused.returncode == 4 and f"backend {spec.name} needs" in refused.stderr
