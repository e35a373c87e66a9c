# GNU make 3.81 or newer, any POSIX shell. `make help` lists what there is.
SHELL = /bin/sh
VENV = .venv
PY = $(VENV)/bin/python
BOOTSTRAP = sh tools/bootstrap.sh

# The question reaches the recipe through the environment, as it was typed: make would expand its dollars on export,
# so it becomes a simple variable that holds the unexpanded text.
override ASK := $(value ASK)
export ASK

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help run test test-slow bench lint format docs wheel clean

help:
	@echo 'make run                 start the server on http://127.0.0.1:8080 with the bundled model'
	@echo 'make run PORT=8181       ... on another port          (ARGS="--port 8181 --api-key secret" passes any flags)'
	@echo 'make run ASK="question"  ask the bundled model one question over HTTP, and stop'
	@echo 'make test                run the tests            (ARGS="tests/cli -k run" picks some, -n0 runs them in one process)'
	@echo 'make test-slow           run the tests that take minutes'
	@echo 'make bench               measure this server beside its peers  (ARGS="--quick" for some minutes of it)'
	@echo 'make lint                ruff and mypy'
	@echo 'make format              let ruff format the code'
	@echo 'make docs                write the generated parts of README.md and docs/ anew'
	@echo 'make wheel               build dist/*.whl'
	@echo 'make clean               remove $(VENV) and everything that was built'
	@echo 'Each installs what it needs into $(VENV) first. PYTHON=python3.12 picks the interpreter for it.'

run: $(VENV)/.installed-run
	@if [ -n "$$ASK" ]; then exec $(PY) tools/ask.py; else exec $(PY) -m llmgallery serve $(if $(PORT),--port $(PORT)) $(ARGS); fi

test: $(VENV)/.installed-test
	$(PY) -m pytest -m "not slow and not gpu and not network" -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-slow: $(VENV)/.installed-test
	$(PY) -m pytest -m slow $(ARGS)

bench: $(VENV)/.installed-test
	$(PY) -m benchmarks.compare $(ARGS)

lint: $(VENV)/.installed-dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -m mypy tools/ask.py tools/generate_docs.py
	$(PY) -m mypy -p benchmarks

format: $(VENV)/.installed-dev
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

docs: $(VENV)/.installed-test
	$(PY) tools/generate_docs.py

wheel: $(VENV)/.installed-test
	$(PY) -m hatchling build -t wheel -d dist

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find llmgallery tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# run, test and dev are the sets of tools/bootstrap.sh; the stamp is touched when everything is in.
$(VENV)/.installed-%: pyproject.toml tools/bootstrap.sh $(PY)
	@$(BOOTSTRAP) install $(VENV) $*

$(PY):
	@$(BOOTSTRAP) venv $(VENV)
