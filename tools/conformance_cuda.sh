#!/bin/sh
# Runs the conformance suite of exllamav2 on a machine with an NVIDIA GPU, on a tiny model in F16 that it makes there:
#   conformance_cuda.sh              in an environment of its own, .venv-cuda, with the torch that PyPI has for CUDA
#   conformance_cuda.sh PYTHON       with an interpreter that has torch, exllamav2 and transformers already
# What passed goes into docs/conformance.json, what was printed into docs/conformance-cuda.txt; commit both.
# ExLlamaV2 compiles its kernels when it is imported for the first time, which needs nvcc and some minutes.
set -eu
cd "$(dirname "$0")/.."

say() { echo "llmgallery: $*" >&2; }
die() { say "$@"; exit 1; }

OUTPUT=docs/conformance-cuda.txt
python=${1:-}

if [ -z "$python" ]; then
    [ -d .venv-cuda ] || sh tools/bootstrap.sh venv .venv-cuda
    python=.venv-cuda/bin/python
    "$python" -m pip install --quiet --disable-pip-version-check --editable '.[test,exllamav2,transformers]'
fi

"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' ||
    die "torch sees no NVIDIA GPU here: this script is for machines that have one"

suite() {
    "$python" - <<'PYTHON'
import platform
from importlib.metadata import version

import torch

print("GPU", torch.cuda.get_device_name(), "- CUDA", torch.version.cuda, "- Python", platform.python_version())
print(", ".join(f"{name} {version(name)}" for name in ("torch", "exllamav2", "transformers", "llmgallery")))
PYTHON
    "$python" -m pytest tests/conformance --backend exllamav2 --conformance-report docs/conformance.json -v
}

status=0
suite >"$OUTPUT" 2>&1 || status=$?
cat "$OUTPUT"
say "written: $OUTPUT and docs/conformance.json; then: make docs"
exit $status
