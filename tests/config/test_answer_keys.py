"""The keys that say what a request gets which does not say: n, echo, logprobs, top_logprobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmgallery.backends.loader import specs
from llmgallery.config.load import load_model


@pytest.mark.parametrize("logprobs", ["true", "false", "yes", "5", "0"])
def test_they_are_read_without_a_warning(tmp_path: Path, logprobs: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(f"backend: echo\nparameters: {{n: 2, echo: yes, logprobs: {logprobs}, top_logprobs: 20}}\n")
    model = load_model(file, specs())
    assert (model.problems, model.warnings) == ((), ())
    parameters = model.config.parameters
    assert (parameters.n, parameters.echo, parameters.top_logprobs) == (2, True, 20)
    assert parameters.logprobs == {"true": True, "yes": True, "false": False, "5": 5, "0": 0}[logprobs]


@pytest.mark.parametrize(
    "written", ["n: 0", "n: 129", "logprobs: 21", "logprobs: many", "top_logprobs: -1", "top_logprobs: 21", "echo: 2"]
)
def test_what_is_out_of_range_is_told_with_its_place(tmp_path: Path, written: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(f"backend: echo\nparameters:\n  {written}\n")
    (problem,) = load_model(file, specs()).problems
    assert (problem.key, problem.line) == (f"parameters.{written.partition(':')[0]}", 3)
