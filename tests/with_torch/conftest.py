"""Tests of backends that need torch: `make test-backends` runs them. Where torch is not installed nothing here is collected."""

from __future__ import annotations

from importlib.util import find_spec

found = find_spec("torch")
# A folder called torch on the path would be found as well, as a package without a file.
collect_ignore_glob = [] if found is not None and found.origin is not None else ["*.py"]
