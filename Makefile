# GNU make 3.81 or newer, any POSIX shell. `make help` lists what there is.
SHELL = /bin/sh
VENV = .venv
PY = $(VENV)/bin/python
# Backends with large libraries are tested in environments of their own.
VENV_BACKENDS = .venv-backends
VENV_HEAVY = .venv-heavy
XDIST = -n auto --maxprocesses 4 --dist loadfile
BOOTSTRAP = sh tools/bootstrap.sh

# The question reaches the recipe through the environment, as it was typed: make would expand its dollars on export,
# so it becomes a simple variable that holds the unexpanded text.
override ASK := $(value ASK)
export ASK

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help run test test-backends conformance test-slow test-heavy bench lint format docs wheel clean

help:
	@echo 'make run                 start the server on http://127.0.0.1:8080 with the bundled model'
	@echo 'make run PORT=8181       ... on another port          (ARGS="--port 8181 --api-key secret" passes any flags)'
	@echo 'make run ASK="question"  ask the bundled model one question over HTTP, and stop'
	@echo 'make test                run the tests            (ARGS="tests/cli -k run" picks some, -n0 runs them in one process)'
	@echo 'make test-backends       run the tests of backends with large libraries, in $(VENV_BACKENDS) (about 2 GB with torch)'
	@echo 'make conformance         run every backend through the conformance suite; writes docs/conformance.json'
	@echo 'make test-slow           run the tests that take minutes'
	@echo 'make test-heavy          run those of GPTQ in $(VENV_HEAVY): after a change of how quantised weights are loaded'
	@echo 'make bench               measure this server beside its peers  (ARGS="--quick" for some minutes of it)'
	@echo 'make lint                ruff and mypy'
	@echo 'make format              let ruff format the code'
	@echo 'make docs                write the generated parts of README.md and docs/ anew'
	@echo 'make wheel               build dist/*.whl'
	@echo 'make clean               remove the environments and everything that was built'
	@echo 'Each installs what it needs into $(VENV) first. PYTHON=python3.12 picks the interpreter for it.'
	@echo 'TORCH_INDEX=https://download.pytorch.org/whl/cpu takes torch from there: on Linux this one is without CUDA, and small.'

run: $(VENV)/.installed-run
	@if [ -n "$$ASK" ]; then exec $(PY) tools/ask.py; else exec $(PY) -m llmgallery serve $(if $(PORT),--port $(PORT)) $(ARGS); fi

test: $(VENV)/.installed-test
	$(PY) -m pytest -m "not slow and not gpu and not network" $(XDIST) $(ARGS)

test-backends: $(VENV_BACKENDS)/.installed-backends
	$(VENV_BACKENDS)/bin/python -m pytest tests/with_torch tests/conformance --backend transformers -m "not slow and not gpu and not network" $(XDIST) $(ARGS)

conformance: $(VENV)/.installed-test $(VENV_BACKENDS)/.installed-backends
	$(PY) -m pytest tests/conformance --conformance-report docs/conformance.json $(ARGS)
	$(VENV_BACKENDS)/bin/python -m pytest tests/conformance --backend transformers --conformance-report docs/conformance.json $(ARGS)

test-heavy: $(VENV_HEAVY)/.installed-heavy
	$(VENV_HEAVY)/bin/python -m pytest tests/heavy $(ARGS)

test-slow: $(VENV)/.installed-test
	$(PY) -m pytest -m slow $(ARGS)

bench: $(VENV)/.installed-test
	$(PY) -m benchmarks.compare $(ARGS)

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m mypy tools/ask.py tools/generate_docs.py tools/conformance_matrix.py
	$(PY) -m mypy -p benchmarks

format: $(VENV)/.installed-dev
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

docs: $(VENV)/.installed-test
	$(PY) tools/generate_docs.py

wheel: $(VENV)/.installed-test
	$(PY) -m hatchling build -t wheel -d dist

clean:
	rm -rf $(VENV) $(VENV_BACKENDS) $(VENV_HEAVY) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find llmgallery tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The sets of tools/bootstrap.sh; the stamp is touched when everything is in.
$(VENV)/.installed-%: pyproject.toml tools/bootstrap.sh $(PY)
	@$(BOOTSTRAP) install $(VENV) $*

$(VENV_BACKENDS)/.installed-%: pyproject.toml tools/bootstrap.sh $(VENV_BACKENDS)/bin/python
	@$(BOOTSTRAP) install $(VENV_BACKENDS) $*

$(VENV_HEAVY)/.installed-%: pyproject.toml tools/bootstrap.sh $(VENV_HEAVY)/bin/python
	@$(BOOTSTRAP) install $(VENV_HEAVY) $*

$(VENV)/bin/python $(VENV_BACKENDS)/bin/python $(VENV_HEAVY)/bin/python:
	@$(BOOTSTRAP) venv $(@:/bin/python=)
