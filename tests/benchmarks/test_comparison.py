"""The comparison's pure parts: the generated models, the arithmetic of samples, and RESULTS.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the package

from benchmarks import compare, control, engine, make_model, measures, results  # noqa: E402
from benchmarks.servers import Server  # noqa: E402
from llmgallery import paths  # noqa: E402
from llmgallery.backends.llamacpp.api import Model, ModelParams, start  # noqa: E402
from llmgallery.cli.bench.client import Client, Target, Trace  # noqa: E402
from llmgallery.cli.bench.workload import Workload, prompts  # noqa: E402

TINY = make_model.Shape(layers=2, embedding=64, heads=4, kv_heads=2, feed_forward=128, vocab=2048)

# --- models ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    make_model.write(path, TINY)
    return path


def test_a_generated_model_has_its_shape_and_its_words_cost_one_token(tiny):
    start()
    model = Model((tiny,), ModelParams(), lambda fraction: None)
    try:
        assert (model.vocab.size, model.context_length) == (TINY.vocab, make_model.CONTEXT)
        (text,) = prompts(Workload(1, 1, 50, 1), 0, "salt")
        assert len(model.vocab.tokenize(text.encode(), special=False)) == 50
        assert [model.vocab.is_end(token) for token in range(TINY.vocab - 3, TINY.vocab)] == [False, True, True]
    finally:
        model.close()
    assert list(tiny.parent.iterdir()) == [tiny]


@pytest.mark.parametrize("name", make_model.SHAPES)
def test_vocabularies_are_full_and_merge_only_what_there_is(name):
    size = make_model.SHAPES[name].vocab
    tokens, merges = make_model.vocabulary(size)
    assert len(tokens) == len(set(tokens)) == size
    known = set(make_model.byte_characters())
    assert len(known) == 256
    for merge in merges:
        left, right = merge.split(" ")
        assert left in known and right in known
        known.add(left + right)


# --- the bare loop -----------------------------------------------------------------------------------------------------------


def test_the_bare_loop_runs_as_a_file_and_says_what_it_ran_on():
    """Over weights in F16: llama.cpp's AMX kernels for quantised ones may crash, and nothing guards here."""
    from llama_cpp import llama_cpp

    script = ROOT / "benchmarks" / "control.py"
    command = [
        sys.executable,
        str(script),
        llama_cpp._lib._name,
        str(paths.builtin("models") / "pocket-f16.gguf"),
        "--sequences",
        "1,3",
        "--steps",
        "4",
        "--threads",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = json.loads(done.stdout)
    assert set(found["rates"]) == {"1", "3"} and all(rate > 0 for rate in found["rates"].values())
    assert "CPU" in found["features"] and found["ggml"][0].isdigit()


def test_a_libllama_of_another_layout_is_refused():
    class Other:
        def llama_context_default_params(self) -> control.Opaque:
            return control.Opaque()

    with pytest.raises(ValueError, match="laid out otherwise"):
        control.context_params(Other(), 1, 64, 1)


# --- samples -----------------------------------------------------------------------------------------------------------------


def test_pythons_share_is_what_llama_cpp_did_not_take():
    found = engine.measured([(10.0, 1.0), (11.0, 1.9), (12.0, 2.9)], 8)
    assert (found.rate, found.python_share) == (pytest.approx(8.0), pytest.approx(0.05))
    for steps in ([(1.0, 1.0)], [(1.0, 0.0), (2.0, 0.0)]):
        with pytest.raises(RuntimeError, match="nothing to measure"):
            engine.measured(steps, 8)


def test_pauses_count_where_they_lie():
    """Idle: between the last stream's beginning and the long prompt. Loaded: until the prompt's first token, the pauses into and
    out of it included."""
    stream = Trace(0.0, (1.0, 2.0, 3.0, 4.0, 9.0, 10.0, 11.0), 0, 7)
    found = measures.stalled([stream], Trace(4.5, (9.5,), 4000, 4))
    assert (found["loaded_max"], found["loaded_pauses"], found["first_token"]) == (5.0, 2, 5.0)
    assert found["idle_p95"] == 1.0


def test_who_is_not_measured_gets_no_time():
    process = subprocess.Popen(["sleep", "60"])
    try:
        server = Server("idle", process, Client(Target("http://127.0.0.1:1", "model")))
        with server.asleep():
            assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
        assert os.WIFCONTINUED(os.waitpid(process.pid, os.WCONTINUED)[1])
    finally:
        process.kill()
        process.wait()


def test_what_is_run_again_replaces_only_itself():
    """Another part, and another model of the same part, stay as they were, and tell how they were made."""
    old, new = {"date": "old"}, {"date": "new"}
    stall = {"about": {"prompt": 8}, "models": {"a": 1, "b": 2}, "made": {"a": old, "b": old}}
    decode = {"about": {}, "models": {"a": 3}, "made": {"a": old}}
    data = compare.merged(
        {"parts": {"stall": stall, "decode": decode}}, {"stall": {"about": {"prompt": 9}, "models": {"b": 5}}}, new
    )
    assert data["parts"]["decode"] == decode
    assert data["parts"]["stall"] == {"about": {"prompt": 9}, "models": {"a": 1, "b": 5}, "made": {"a": old, "b": new}}
    assert list(data["parts"]) == ["decode", "stall"]


# --- RESULTS.md --------------------------------------------------------------------------------------------------------------


def rates(*values: float) -> list[dict[str, float]]:
    return [{"tokens_per_second": value / 2, "steady_per_second": value} for value in values]


ABOUT = {"slots": 16, "context": 9}
MADE = {"135M": {"command": "python -m benchmarks.compare", "date": "2026-01-01", "repeats": 3, "machine": "2 cores"}}
DECODE = {
    "about": ABOUT,
    "made": MADE,
    "sides": {"llmgallery": {"ggml": "1.0", "features": "AVX512"}, "llama-server": {"ggml": "1.1", "features": "AVX2"}},
    "models": {
        "135M": {
            "streams": {
                "8": {
                    "llmgallery": rates(90, 120, 100),
                    "llama-server": rates(100, 100, 50),
                    "llama-cpp-python": [{**rate, "steady_per_second": None} for rate in rates(50, 50, 50)],
                }
            },
            "controls": {"8": {"llmgallery": [200, 200], "llama-server": [100, 160]}},
        }
    },
}


def test_ratios_are_medians_of_pairs_and_the_controls_are_divided_out():
    raw, net = results.decode_ratios(DECODE["models"]["135M"], "8", "llama-server")
    assert raw == pytest.approx(1.2)  # of 0.9, 1.2, 2.0
    assert net == pytest.approx(1.2 / 1.625)  # of 2.0 and 1.25
    assert results.decode_ratios(DECODE["models"]["135M"], "8", "llama-cpp-python") == (pytest.approx(2.0), None)


def test_goals_are_told_as_reached_or_not():
    text = results.render({"parts": {"decode": DECODE}})
    assert "| 135M: decode at 8 streams at least 1 of llama-server's | 1.20 (0.74 by controls) | yes |" in text
    assert "| 135M: decode at 8 streams at least 2 of llama-cpp-python's | 2.00 (- by controls) | yes |" in text
    slow = {"parts": {"stall": stall(0.2)}}
    assert "| 135M: a long prompt lets inter-token p95 grow to at most 3 times | 4.00 | **no** |" in results.render(slow)
    assert "1.00 | yes |" in results.render({"parts": {"stall": stall(0.05)}})


def stall(loaded: float) -> dict[str, object]:
    sample = {"idle_p95": 0.05, "loaded_p95": loaded, "loaded_max": loaded, "first_token": 3.0}
    about = {**ABOUT, "streams": 4, "prompt": 4000}
    return {"about": about, "made": MADE, "models": {"135M": {"llmgallery": [sample], "llama-server": [sample]}}}


def test_every_part_has_its_section():
    alone = {"bare": 100.0, "bare_default": 98.0, "sampled": 96.0, "greedy": 99.0, "python_share": 0.02}
    firsts = [{"first_token_p50": 1.0, "prompt_tokens": 16000, "cached_tokens": 14000}]
    parts = {
        "decode": DECODE,
        "engine": {"about": ABOUT, "made": MADE, "models": {"135M": [{"8": alone}]}},
        "prefix": {
            "about": {**ABOUT, "requests": 8, "prefix": 2000},
            "made": MADE,
            "models": {"135M": {"llmgallery": firsts, "llama-server": [{**firsts[0], "first_token_p50": 4.0}]}},
        },
        "stall": stall(0.1),
        "memory": {
            "about": ABOUT,
            "made": MADE,
            "models": {"135M": {"llmgallery": {"loaded": 1e8, "used": 2e8}, "llama-server": {"loaded": 1e8, "used": 1.1e8}}},
        },
    }
    assert set(parts) == set(results.SECTIONS) == set(compare.PARTS)
    text = results.render({"parts": parts})
    for line in (
        "| 135M: the engine at 8 sequences at least 0.95 of a bare loop | 0.96 | yes |",
        "| 135M: Python's share of a step at 8 sequences under 3% | 2.00% | yes |",
        "| 135M: first token after a shared prefix in at most half of llama-server's time | 0.25 | yes |",
        "| 135M: memory within 60 MB of llama-server's | +90 MB | **no** |",
        "- llama-server: ggml 1.1; AVX2",
        "| 8 | 100.0 | 100.0 | never | 1.20 | 0.74 | 2.00 | - |",
        "| 8 | 50.0 | 50.0 | 25.0 |",
        "| llmgallery | 1.00 s | 16000 | 14000 |",
    ):
        assert line in text
    assert all(f"| {name} | 135M | `python -m benchmarks.compare` |" in text for name in parts)


def test_the_written_results_are_those_of_the_samples():
    """RESULTS.md is never edited by hand."""
    raw = ROOT / "benchmarks" / "results.json"
    if raw.exists():
        assert (raw.parent / "RESULTS.md").read_text(encoding="utf-8") == results.render(
            json.loads(raw.read_text(encoding="utf-8"))
        )
    else:
        assert not (raw.parent / "RESULTS.md").exists()
