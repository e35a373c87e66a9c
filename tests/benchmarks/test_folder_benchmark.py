"""The benchmark of a folder of many files, on one of few."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import folder
from llmgallery.backends.loader import specs
from llmgallery.config.load import load_model

ROOT = Path(__file__).parents[2]


def test_the_written_files_are_models_without_problems(tmp_path: Path) -> None:
    folder.write(tmp_path, 12)
    models = [load_model(path, specs()) for path in sorted(tmp_path.iterdir())]
    assert [model.name for model in models] == [f"model-{number}" for number in range(12)]
    assert not any(model.problems or model.warnings for model in models)


def test_a_sample_of_a_real_server(tmp_path: Path) -> None:
    folder.write(tmp_path, 12)
    found = folder.sample(tmp_path, 12, salt=5)
    assert set(found) == set(folder.GOALS)
    assert 0 < found["start"] <= found["ready"]
    assert "changed 5" in (tmp_path / "model-00007.yaml").read_text()


def test_goals_are_told_as_reached_or_not() -> None:
    samples = [{"start": start, "ready": 3.0, "list": 0.2, "change": 0.5} for start in (1.0, 1.5, 9.0)]
    text = folder.render({"models": 10_000, "samples": samples})
    assert f"| {folder.MEANING['start']} | 1.500 s | 2 s | yes |" in text
    assert f"| {folder.MEANING['list']} | 0.200 s | 0.1 s | **no** |" in text


def test_the_written_results_are_those_of_the_samples() -> None:
    raw = ROOT / "benchmarks" / "folder.json"
    if raw.exists():
        assert raw.with_name("FOLDER.md").read_text(encoding="utf-8") == folder.render(
            json.loads(raw.read_text(encoding="utf-8"))
        )
