"""Whatever a file holds, an importer reads it, tells what is wrong, or refuses it in words."""

from __future__ import annotations

import contextlib
import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from importing_scene import imported, models, written

from llmgallery.core.errors import ConfigError
from llmgallery.importers.gatogpt_profile import INFERENCE, LOAD, TEMPLATES, VARIABLES
from llmgallery.importers.llmapi import LLAMA, TORCH

PARAMS = [name for row in (*LOAD, *INFERENCE) for name in row.names] + [*TEMPLATES, *VARIABLES, "PrePrompt", "Antiprompts"]
TEXTS = st.text(max_size=8) | st.sampled_from(["{{ Input }}", "1", ""])
LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXTS
ANY = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2), max_leaves=4
)


def tables(*names):
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=4), ANY, max_size=6)


PROFILE = st.fixed_dictionaries({}, optional={"LoadParams": tables(*PARAMS), "InferenceParams": tables(*PARAMS), "Name": ANY})
DEFINITION = st.fixed_dictionaries(
    {},
    optional={
        "ModelResourceId": st.sampled_from(["r", "o/r/Q8_0", "o/s/Q8_0"]) | ANY,
        "Backend": st.sampled_from(["LlamaCpp", "openai", "Other"]) | ANY,
        "ProfilePreset": st.sampled_from(["chatml", "own", "none"]) | ANY,
        "ModelProfileOverride": PROFILE | ANY,
        "Persistent": ANY,
        "DynamicCtxConfigs": ANY,
    },
)
GATOGPT = st.fixed_dictionaries(
    {"TextGeneration": st.dictionaries(st.sampled_from(["a", "b/c", ""]), DEFINITION, min_size=1, max_size=2)},
    optional={
        "Resources": st.fixed_dictionaries({"G": st.fixed_dictionaries({"r": tables("Path", "Class")})}) | ANY,
        "Embedding": st.dictionaries(st.text(max_size=3), DEFINITION, max_size=1),
        "DefaultModelProfiles": st.fixed_dictionaries({"own": PROFILE}) | ANY,
        "FilenamePresetMap": tables("*", "*/x") | ANY,
        "OpenAIConfig": tables("APIKey", "APIHostname", "APIPort", "APIUseSSL"),
    },
)
LLM_API = st.fixed_dictionaries(
    {"model_family": st.sampled_from(["llama", "huggingface", "gptq_llama", "autoawq"])},
    optional={
        "setup_params": tables("repo_id", "filename", "tokenizer_repo_id", "config_params", "convert") | ANY,
        "model_params": tables(*(name for row in (*LLAMA, *TORCH) for name in row.names), "tensor_split", "n_parts") | ANY,
        "host": ANY,
        "port": ANY,
        "models_dir": st.just("m") | ANY,
        "log_level": ANY,
    },
)


@pytest.mark.parametrize(("name", "sources"), [("a.json", GATOGPT), ("config.yaml", LLM_API)])
def test_any_source_is_read_or_refused_in_words(name, sources, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")

    @settings(max_examples=150, deadline=None)
    @given(sources)
    def check(source):
        written(folder, {name: yaml.safe_dump(source) if name.endswith(".yaml") else json.dumps(source)})
        with contextlib.suppress(ConfigError):
            found = imported(folder / name, folder / "out", weights="o/r:Q8_0")
            assert all(found.name for found in found.files)
            models(found)

    check()
