"""Every configuration that the documents print which this project was made after: what comes of it, to the last key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from importing_scene import SEEDS, imported, models, told

from llmgallery.backends.loader import specs
from llmgallery.cli.stack import outside
from llmgallery.config.load import parse_model
from llmgallery.importers.recognise import importer_for

CASES = json.loads((SEEDS / "table.json").read_text("utf-8"))


@pytest.fixture(params=CASES, ids=lambda case: case["source"])
def case(request):
    return request.param


@pytest.fixture
def result(case, tmp_path):
    return imported(SEEDS / case["source"], tmp_path, weights=case.get("weights"), user_data=Path("/data"))


def test_the_kind_is_recognised(case):
    assert importer_for(SEEDS / case["source"]).kind == case["kind"]


def test_what_comes_of_it(case, result):
    assert models(result) == case["models"]
    assert not result.problems
    assert dict(result.settings) == case.get("settings", {})


def test_what_is_told(case, result):
    assert told(result) == case["told"]
    assert all(warning.line for warning in result.warnings if warning.key not in ("", "parameters.model"))


def test_texts_that_mean_the_same_here_stay_as_they_are(case, result):
    folder = SEEDS / case["source"]
    same = [
        file.model for file in result.files if (folder / file.name).is_file() and (folder / file.name).read_text() == file.text
    ]
    assert same == case.get("unchanged", [])


def test_the_server_takes_it_but_for_backends_that_are_not_here(case, result, tmp_path):
    for file in result.files:
        loaded = parse_model(file.text.encode(), tmp_path / file.name, specs(), outside())
        assert [problem.key for problem in loaded.problems] in ([], ["backend"], ["type"])
        assert loaded.name == file.model


def test_every_document_has_its_cases():
    assert {case["source"].split("/")[0] for case in CASES} == {path.name for path in SEEDS.iterdir() if path.is_dir()}
