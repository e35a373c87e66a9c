"""Who may import whom: every import statement of the package, lazy and type-checking ones included, against one table."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import llmgallery

ROOT = Path(llmgallery.__file__).parent

# A layer may import itself, the bare package (its version), and these. `backends` alone is base, loader and the spec files;
# `backends.*` are the implementations, one layer each.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "paths": set(),
    "config": {"core"},
    "templates": {"core"},
    "engine": {"core"},
    "metrics": {"core"},
    "constraints": {"core"},
    "wire": {"core", "config", "paths"},
    "catalog": {"core", "config", "paths"},
    "chat": {"core", "config", "templates", "constraints"},
    "backends": {"core", "config"},
    "backends.*": {"core", "config", "constraints", "engine", "backends"},
    "worker": {"core", "config", "wire", "chat", "backends"},
    "runtime": {"core", "config", "wire", "catalog", "backends", "metrics"},
    "importers": {"core", "config", "catalog", "templates"},
    "service": {"core", "config", "catalog", "runtime", "backends", "metrics"},
    "api": {"core", "config", "service", "metrics"},
    "ui": set(),
}
ANYTHING = {"cli", "integrations", "__main__"}
HEAVY = {"torch", "transformers", "llama_cpp", "exllamav2", "openvino"}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of everything in the package."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import in the file; `from a import b` counts as a.b where that is a module, else as a."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                below = f"{base}.{alias.name}"
                yield node.lineno, below if below in MODULES else base


MODULES = modules()


def layer(module: str) -> str:
    """The layer of a dotted name: its package, and for a backend's implementation the backend's own."""
    parts = module.split(".")[1:]
    if not parts:
        return ""
    if parts[0] != "backends" or len(parts) < 2 or parts[1] in ("base", "hardware", "loader") or parts[-1] == "spec":
        return parts[0]
    return f"backends.{parts[1]}"


def may_import(importer: str, imported: str) -> bool:
    if imported in ("", importer) or importer in ANYTHING:
        return True
    allowed = ALLOWED["backends.*" if importer.startswith("backends.") else importer]
    # A worker is given its backend by name; nothing but the backend itself imports an implementation.
    return imported in allowed or (importer == "worker" and imported.startswith("backends."))


def ours() -> Iterator[tuple[str, int, str]]:
    """(importing module, line, imported module), for imports of our own."""
    for name, path in MODULES.items():
        for line, target in imports(name, path):
            if target == "llmgallery" or target.startswith("llmgallery."):
                yield name, line, target


def test_every_layer_has_its_row():
    known = ALLOWED.keys() | ANYTHING | {""}
    assert {layer(name) for name in MODULES if not layer(name).startswith("backends.")} <= known


def test_imports_keep_to_the_layers():
    wrong = [
        f"{MODULES[name].relative_to(ROOT.parent)}:{line}: {layer(name)} may not import {target}"
        for name, line, target in ours()
        if not may_import(layer(name), layer(target))
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_exist():
    missing = [f"{name}:{line}: {target}" for name, line, target in ours() if target not in MODULES]
    assert not missing


def test_no_dialect_imports_another():
    def dialect(name: str) -> str | None:
        parts = name.split(".")
        return parts[3] if parts[1:3] == ["api", "dialects"] and len(parts) > 3 else None

    wrong = [
        f"{name}:{line}: {target}"
        for name, line, target in ours()
        if dialect(name) and dialect(target) and dialect(name) != dialect(target)
    ]
    assert not wrong


def test_layers_have_no_cycle():
    graph: dict[str, set[str]] = {}
    for name, _, target in ours():
        if layer(name) != layer(target) and layer(target):
            graph.setdefault(layer(name), set()).add(layer(target))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as exc:
        raise AssertionError(f"import cycle: {' -> '.join(exc.args[1])}") from None


def test_engines_are_imported_only_by_their_backends():
    wrong = [
        f"{name}:{line}: {target}"
        for name, path in MODULES.items()
        for line, target in imports(name, path)
        if target.split(".")[0] in HEAVY and (not name.startswith("llmgallery.backends.") or name.endswith(".spec"))
    ]
    assert not wrong


def test_the_server_process_imports_no_engine():
    code = "import sys, llmgallery.api.app, llmgallery.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "llmgallery.api.app" in loaded
    assert not HEAVY & set(loaded)


def test_the_rule_sees_what_it_should(tmp_path):
    sample = tmp_path / "sample.py"
    sample.write_text(
        "from ..core import errors\ndef f():\n    import llmgallery.worker.child\n    from llmgallery import wire\n"
    )
    found = list(imports("llmgallery.service.sample", sample))
    assert found == [(1, "llmgallery.core.errors"), (3, "llmgallery.worker.child"), (4, "llmgallery.wire")]
    assert not may_import("service", layer("llmgallery.worker.child"))
    assert not may_import("backends.echo", layer("llmgallery.backends.llamacpp.api"))
    assert may_import("runtime", layer("llmgallery.backends.loader")) and not may_import("runtime", "backends.echo")
