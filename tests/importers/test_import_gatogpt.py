"""GatoGPT's Config folder to model files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from importing_scene import imported, models, told, written

from llmgallery.backends.loader import specs
from llmgallery.cli.stack import outside
from llmgallery.config.load import load_model
from llmgallery.core.errors import ConfigError
from llmgallery.importers.base import SECRET, save

RESOURCES = "Config/GodotEGP.Config.ResourceDefinitionConfig/Config.json"
DEFINITIONS = "Config/GatoGPT.Config.ModelDefinitionsConfig/Config.json"
PROFILES = "Config/GatoGPT.Config.TextGenerationPresetsConfig/ModelProfiles.json"
GLOBAL = "Config/GodotEGP.Config.GlobalConfig/Config.json"

LLAMA = {"Path": "user://Models/x/llama.gguf", "Class": "GatoGPT.Resource.LlamaModel"}


def folder_of(tmp_path, definition, *, group="TextGeneration", resource=LLAMA, **more):
    files = {
        RESOURCES: json.dumps({"Resources": {"LlamaModels": {"r": resource}}}),
        DEFINITIONS: json.dumps({group: {"m": definition}}),
        **{path: json.dumps(value) for path, value in more.items()},
    }
    return written(tmp_path / "GatoGPT_Data", files)


def one(tmp_path, definition, **more):
    found = imported(folder_of(tmp_path, definition, **more), tmp_path / "out")
    assert not found.problems
    return models(found)["m"], found


def test_user_paths_start_where_the_configuration_lies(tmp_path):
    config, found = one(tmp_path, {"ModelResourceId": "r"})
    assert config["parameters"]["model"] == str(tmp_path / "GatoGPT_Data" / "Models/x/llama.gguf")
    assert any("--user-data" in note for note in found.notes)


def test_user_paths_start_where_they_are_said_to(tmp_path):
    source = folder_of(tmp_path, {"ModelResourceId": "r"})
    found = imported(source, tmp_path / "out", user_data=Path("/srv/gato"))
    assert models(found)["m"]["parameters"]["model"] == "/srv/gato/Models/x/llama.gguf"


def test_a_path_of_another_machine(tmp_path):
    config, found = one(tmp_path, {"ModelResourceId": "r"}, resource={"Path": "C:\\Models\\x.gguf"})
    assert config["parameters"]["model"] == "x.gguf"
    assert any("is a path of another machine" in warning.message for warning in found.warnings)


def test_any_file_of_the_folder_stands_for_all_of_it(tmp_path):
    source = folder_of(tmp_path, {"ModelResourceId": "r"})
    whole = imported(source, tmp_path / "out").files
    assert imported(source / "Config", tmp_path / "out").files == whole
    assert imported(source / DEFINITIONS, tmp_path / "out").files == whole
    assert imported(source / RESOURCES, tmp_path / "out").files == whole


def test_a_resource_that_is_not_there_is_a_problem(tmp_path):
    found = imported(folder_of(tmp_path, {"ModelResourceId": "q"}), tmp_path / "out")
    assert "there is no resource q: m cannot be imported" in str(found.problems[0])
    assert "no definition uses this resource" in str(found.warnings[0])
    assert not found.files


def test_a_profile_of_the_users_own_becomes_a_preset_file(tmp_path):
    profile = {
        "Name": "Mine",
        "LoadParams": {"NCtx": 4096, "RopeFreqScale": 0.5},
        "InferenceParams": {
            "InputPrefix": "U: ", "InputSuffix": "\nA: ", "PrePrompt": "Be kind.", "Temp": 0.1, "TopK": 5, "Antiprompts": ["U:"],
        },
    }  # fmt: skip
    override = {"LoadParams": {"RopeFreqScale": 0}, "InferenceParams": {"TopK": 7, "ChatMessageTemplate": "{{ Message }}"}}
    config, found = one(
        tmp_path,
        {"ModelResourceId": "r", "ProfilePreset": "mine", "ModelProfileOverride": override},
        **{PROFILES: {"DefaultModelProfiles": {"mine": profile, "spare": profile}, "FilenamePresetMap": {"*": "spare"}}},
    )
    assert config["template"] == {"preset": "mine", "chat_message": "{{ Message }}"}
    assert config["context_size"] == 4096
    assert {key: value for key, value in config["parameters"].items() if key != "model"} == {"top_k": 7}
    assert not {"system_prompt", "stopwords"} & set(config)
    [preset] = [file for file in found.files if file.model is None]
    assert preset.name == "presets/mine.yaml"
    assert yaml.safe_load(preset.text) == {
        "description": "Mine",
        "template": {"engine": "gatogpt", "variables": {"InputPrefix": "U: ", "InputSuffix": "\nA: "}},
        "system_prompt": "Be kind.",
        "stopwords": ["U:"],
        "parameters": {"temperature": 0.1, "top_k": 5, "repeat_penalty": 1.1},
    }
    assert any("no definition uses the profile spare" in warning.message for warning in found.warnings)


def own_profile(tmp_path, inference, override, name="mine"):
    """What the server reads of a definition with a profile of the user's own, once it is written; and what came of it."""
    definition = {"ModelResourceId": "r", "ProfilePreset": name, "ModelProfileOverride": {"InferenceParams": override}}
    profiles = {PROFILES: {"DefaultModelProfiles": {name: {"InferenceParams": inference}}}}
    _, found = one(tmp_path, definition, **profiles)
    save(found, tmp_path / "out")
    loaded = load_model(tmp_path / "out" / "m.yaml", specs(), outside())
    assert loaded.config is not None, loaded.problems
    return loaded.config, found


def test_an_override_of_the_users_own_profile_counts_as_before(tmp_path):
    inference = {"PrePrompt": "Be kind.", "NPredict": 50, "Antiprompts": ["a"], "ChatMessageGenerationTemplate": "G", "Temp": 0.3}
    override = {"PrePrompt": "", "NPredict": -1, "Antiprompts": ["b"], "ChatMessageGenerationTemplate": "", "TopK": 3}
    config, _ = own_profile(tmp_path, inference, override)
    assert (config.system_prompt, config.stopwords) == ("", ["b", "a"])
    assert (config.parameters.max_tokens, config.parameters.temperature, config.parameters.top_k) == (-1, 0.3, 3)
    assert (config.template.engine, config.template.generation, config.template.preset) == ("gatogpt", "", None)


def test_what_a_preset_file_cannot_hold_is_told_once_where_it_was_read(tmp_path):
    profile = {"InferenceParams": {"Temp": 5000, "Tfs": 0.5, "Nonsense": 1}}
    two = {"TextGeneration": {name: {"ModelResourceId": "r", "ProfilePreset": "mine"} for name in "ab"}}
    source = folder_of(tmp_path, {"ModelResourceId": "r"}, **{PROFILES: {"DefaultModelProfiles": {"mine": profile}}})
    written(source, {DEFINITIONS: json.dumps(two)})
    found = imported(source, tmp_path / "out")
    assert [file.name for file in found.files] == ["presets/mine.yaml", "a.yaml", "b.yaml"]
    within = "DefaultModelProfiles.mine.InferenceParams"
    keys = [warning.key for warning in found.warnings if warning.key.startswith(within)]
    assert sorted(keys) == [f"{within}.{name}" for name in ("Nonsense", "Temp", "Tfs")]
    assert f"Not used here: {within}.Temp = 5000" in found.files[0].text


def test_a_preset_file_never_takes_the_place_of_a_built_in_preset(tmp_path):
    config, found = own_profile(tmp_path, {"Temp": 0.3}, {}, name="chatml")
    assert [file.name for file in found.files] == ["presets/gatogpt-chatml.yaml", "m.yaml"]
    assert config.parameters.temperature == 0.3


def test_profiles_whose_names_are_no_file_names(tmp_path):
    config, found = own_profile(tmp_path, {"Temp": 0.3}, {}, name="../a/b:c")
    assert [file.name for file in found.files] == ["presets/_.__a__b-c.yaml", "m.yaml"]
    assert config.parameters.temperature == 0.3


def test_the_path_chooses_the_profile(tmp_path):
    chosen = {"FilenamePresetMap": {"*/nothing": "zephyr", "*/llama.gguf": "vicuna_v1_5_16k", "*": "chatml"}}
    config, found = one(tmp_path, {"ModelResourceId": "r", "ProfilePreset": "unheard-of"}, **{PROFILES: chosen})
    assert config["template"] == {"preset": "gatogpt/vicuna_v1_5_16k"}
    assert config["parameters"]["rope_freq_scale"] == 0.25
    assert any("there is no profile 'unheard-of'" in warning.message for warning in found.warnings)
    assert "vicuna_v1_5_16k was chosen by the file's path" in " ".join(found.files[0].text.split("\n# "))


def test_without_a_profile_it_is_alpaca(tmp_path):
    config, _ = one(tmp_path, {"ModelResourceId": "r"})
    assert config["template"] == {"preset": "gatogpt/alpaca"}
    assert config["parameters"]["repeat_penalty"] == 1.1


def test_sampling_and_what_has_no_counterpart(tmp_path):
    inference = {
        "Samplers": ["top_k", "tfs", "typical", "top_p", "min_p", "temp"], "Mirostat": 2.0, "MirostatEntropy": 4, "Tfs": 0.9,
        "KeepTokens": 3, "CfgScale": 1.5, "GrammarResourceId": "json", "TemplateType": "chat", "NThreads": 0, "Nonsense": [1],
    }  # fmt: skip
    definition = {
        "Id": "m", "ModelResourceId": "r", "Persistent": 1, "PromptCache": True, "Vision": False, "OwnedBy": "me",
        "DynamicCtxConfigs": [{"NCtx": 8192, "NGpuLayers": 10}], "Backend": "BuiltinLlama",
        "modelProfileOverride": {"inferenceparams": inference},
    }  # fmt: skip
    config, found = one(tmp_path, definition)
    assert config["parameters"]["samplers"] == ["penalties", "top_k", "typical", "top_p", "min_p", "temp"]
    assert (config["parameters"]["mirostat"], config["parameters"]["mirostat_tau"]) == (2, 4)
    assert (config["pinned"], config["owned_by"], config["backend"]) == (True, "me", "llama-cpp")
    assert "threads" not in config
    within = "TextGeneration.m.modelProfileOverride.inferenceparams"
    assert {f"{within}.Nonsense", f"{within}.Tfs", f"{within}.KeepTokens", f"{within}.CfgScale"} <= set(told(found))
    assert {f"{within}.GrammarResourceId", "TextGeneration.m.Vision", "TextGeneration.m.DynamicCtxConfigs"} <= set(told(found))
    assert f" Not used here: {within}.Nonsense = [1]" in found.files[0].text.replace("\n# ", " ")


def test_embedding_models(tmp_path):
    resource = {"Path": "/srv/minilm", "Class": "GatoGPT.Resource.SentenceTransformerModel"}
    config, found = one(tmp_path, {"ModelResourceId": "r", "ProfilePreset": "chatml"}, group="Embedding", resource=resource)
    assert config == {"name": "m", "parameters": {"model": "/srv/minilm"}, "embeddings": True}
    assert "Embedding.m.ProfilePreset" in told(found)


def test_the_openai_key_goes_to_a_file_of_its_own(tmp_path):
    openai = {
        "OpenAIConfig": {"APIKey": "sk-very-secret", "APIHostname": "proxy.example", "APIPort": 8443, "APIUseSSL": True, "X": 1}
    }
    config, found = one(tmp_path, {"Backend": "openai"}, **{GLOBAL: openai})
    assert config["options"] == {"base_url": "https://proxy.example:8443/v1", "api_key_file": "openai.key"}
    assert (config["backend"], config["parameters"]["model"]) == ("openai", "m")
    [key] = [file for file in found.files if file.model is None]
    assert (key.name, key.text, key.mode) == ("openai.key", "sk-very-secret\n", SECRET)
    public = "".join(file.text for file in found.files if file is not key) + "".join(map(str, (*found.warnings, *found.notes)))
    assert "sk-very-secret" not in public
    assert "OpenAIConfig.X" in told(found)


def test_no_key_is_no_file(tmp_path):
    config, found = one(tmp_path, {"Backend": "openai"}, **{GLOBAL: {"OpenAIConfig": {"APIKey": "no-key"}}})
    assert config["options"] == {"base_url": "https://api.openai.com/v1"}
    assert [file.name for file in found.files] == ["m.yaml"]


DOWNLOADS = {
    "UrlDownloads": [
        {"Id": "o/zephyr-7B-GGUF", "Quantization": "Q8_0", "Url": "https://huggingface.co/o/zephyr-7B-GGUF/resolve/main/z.Q8_0.gguf?x=1",
         "Type": "TextGeneration", "ModelDefinition": {"Id": "zephyr"}, "CreateResourceDefinition": True},
        {"Id": "o/b", "Quantization": "Q4", "Url": "https://example.org/b.gguf", "ModelDefinition": {"Id": "m"}},
        {"Id": "o/c", "Quantization": "Q4", "Url": "https://example.org/c.gguf"},
    ],
    "DownloadProcessSec": 60, "MaxConcurrentDownloads": 3,
}  # fmt: skip


def test_downloads_become_references(tmp_path):
    source = folder_of(
        tmp_path, {"ModelResourceId": "o/b/Q4"}, **{"Config/GatoGPT.Config.ModelDownloadConfig/Config.json": DOWNLOADS}
    )
    written(source, {"Models/o/b/b.gguf": "GGUF"})
    found = imported(source, tmp_path / "out")
    assert models(found)["zephyr"]["parameters"]["model"] == "o/zephyr-7B-GGUF/z.Q8_0.gguf"
    assert models(found)["zephyr"]["template"] == {"preset": "gatogpt/zephyr"}
    assert models(found)["m"]["parameters"]["model"] == str(source / "Models/o/b/b.gguf")
    assert {"MaxConcurrentDownloads", "UrlDownloads[2].Url"} <= set(told(found))
    assert not {"DownloadProcessSec", "UrlDownloads[0].Url"} & set(told(found))


def test_a_download_that_is_not_the_hubs_is_told(tmp_path):
    downloads = {"Config/GatoGPT.Config.ModelDownloadConfig/Config.json": DOWNLOADS}
    found = imported(folder_of(tmp_path, {"ModelResourceId": "o/c/Q4"}, **downloads), tmp_path / "out")
    assert models(found)["m"]["parameters"]["model"] == "o/c:Q4"
    assert any("is no address of the Hugging Face Hub" in warning.message for warning in found.warnings)


def test_a_profile_by_itself_needs_weights(tmp_path):
    source = written(tmp_path, {"p.json": '{"InferenceParams": {"Temp": 0.3}, "Name": "P"}'}) / "p.json"
    assert "--model REFERENCE names its weights" in str(imported(source, tmp_path / "out").problems[0])
    found = imported(source, tmp_path / "out", weights="o/r:Q8_0", name="mine")
    assert models(found)["mine"]["parameters"] == {"model": "o/r:Q8_0", "temperature": 0.3, "repeat_penalty": 1.1}


def test_resources_alone_are_no_models(tmp_path):
    source = written(tmp_path, {"r.json": json.dumps({"Resources": {"LlamaModels": {"r": LLAMA}}})}) / "r.json"
    with pytest.raises(ConfigError, match="there are no model definitions"):
        imported(source, tmp_path / "out")


def test_capitals_and_underscores_count_in_names_of_definitions(tmp_path):
    definition = {"ModelResourceId": "r"}
    text = {"TextGeneration": {"phi_2": definition, "phi2": definition, "Phi2": definition}, "Resources": {"g": {"r": LLAMA}}}
    found = imported(written(tmp_path, {"x.json": json.dumps(text)}) / "x.json", tmp_path / "out")
    assert sorted(models(found)) == ["Phi2", "phi2", "phi_2"]
