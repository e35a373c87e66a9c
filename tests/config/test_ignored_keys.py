"""Keys that LocalAI drops in silence, or that are for what llmgallery does not do: a file loads, with a warning for each."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmgallery.backends.loader import specs
from llmgallery.config.ignored import FOREIGN, MISPLACED
from llmgallery.config.load import LoadedModel, parse_model
from llmgallery.config.suggest import dotted, model_levels

GALLERY_STYLE = """\
name: a
backend: echo
mmap: true
parameters:
  model: some.gguf
  context_size: 8192
  f16: true
  mmap: false
  threads: 2
  voice: amy
function:
  return_name_in_function_response: true
  grammar:
    function_arguments_key: parameters
    triggers:
    - word: <tool_call>
    - word: <call>
      at_start: true
diffusers:
  cuda: {deeply: [nested, temprature]}
tts: {voice: amy}
pii_detection: null
"""


def read(text: str) -> LoadedModel:
    return parse_model(text.encode(), Path("a.yaml"), specs())


def test_a_file_as_localais_gallery_writes_it_loads_and_tells_each_dead_key() -> None:
    loaded = read(GALLERY_STYLE)
    assert not loaded.problems and loaded.config is not None
    dead = [str(one) for one in loaded.warnings if one.message.startswith("ignored")]
    assert dead == [
        "a.yaml:6:3: parameters.context_size: ignored here, as LocalAI does; write it at the top level",
        "a.yaml:7:3: parameters.f16: ignored here, as LocalAI does; write it at the top level",
        "a.yaml:8:3: parameters.mmap: ignored here, as LocalAI does; write it at the top level",
        "a.yaml:9:3: parameters.threads: ignored here, as LocalAI does; write it at the top level",
        "a.yaml:10:3: parameters.voice: ignored: llmgallery has no counterpart; it chooses a voice, and no backend here speaks",
        "a.yaml:12:3: function.return_name_in_function_response: ignored: llmgallery has no counterpart; "
        "LocalAI has dropped it: a tool's result is known by its tool_call_id",
        "a.yaml:14:5: function.grammar.function_arguments_key: ignored here, as LocalAI does; write it under function",
        "a.yaml:18:7: function.grammar.triggers[1].at_start: ignored: llmgallery has no counterpart; "
        "LocalAI has dropped it: a trigger acts wherever its word comes",
        "a.yaml:19:1: diffusers: ignored: llmgallery has no counterpart; it makes images, which no backend here does",
        "a.yaml:21:1: tts: ignored: llmgallery has no counterpart; it makes speech, which no backend here does",
        "a.yaml:22:1: pii_detection: ignored: llmgallery has no counterpart; texts are not filtered",
    ]


def test_they_are_without_effect() -> None:
    config = read(GALLERY_STYLE).config
    assert config is not None
    assert (config.context_size, config.f16, config.mmap, config.threads) == (None, None, True, None)
    assert config.function.function_arguments_key is None
    assert [trigger.word for trigger in config.function.grammar.triggers] == ["<tool_call>", "<call>"]


@pytest.mark.parametrize(
    ("written", "problem"),
    [
        ("parameters: {gpu_layers: 9}", "parameters.gpu_layers: unknown key; it belongs at the top level"),
        ("parameters: {voise: amy}", "parameters.voise: unknown key; `llmgallery schema` prints all keys"),
        ("voice: amy", "voice: unknown key; `llmgallery schema` prints all keys"),
        ("template: {context_size: 1}", "template.context_size: unknown key; it belongs at the top level"),
        ("router2: {}", "router2: unknown key; `llmgallery schema` prints all keys"),
        ("options: {tts: {}}", "options.tts: unknown key"),
    ],
)
def test_any_other_unknown_key_stays_a_problem(written: str, problem: str) -> None:
    loaded = read(f"backend: echo\n{written}\n")
    assert loaded.config is None
    assert [one for one in map(str, loaded.problems) if problem in one]
    assert not [one for one in loaded.warnings if one.message.startswith("ignored")]


def test_the_other_keys_of_a_file_are_still_checked() -> None:
    loaded = read("backend: echo\nparameters: {context_size: 8192}\ncontext_size: much\n")
    assert [problem.key for problem in loaded.problems] == ["context_size"]
    assert [warning.key for warning in loaded.warnings] == ["parameters.context_size"]


def test_the_tables_hold_no_key_that_is_read_and_name_places_that_are() -> None:
    known = {dotted(level, key) for level, keys in model_levels().items() for key in keys}
    assert not known & (FOREIGN.keys() | MISPLACED.keys())
    for key, advice in MISPLACED.items():
        level = "" if "top level" in advice else advice.rpartition(" ")[2]
        assert dotted(level, key.rpartition(".")[2]) in known
