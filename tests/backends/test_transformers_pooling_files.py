"""What repos declare of vectors and scores, told without torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llmgallery.backends.transformers.pools.pooling_files import (
    MODES,
    Declared,
    Dense,
    LayerNorm,
    Normalize,
    Scoring,
    chosen_modes,
    chosen_prompt,
    purpose,
    read,
)
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.core.errors import BadWeights, LoadError

OLD = "sentence_transformers.models"
NEW = "sentence_transformers.sentence_transformer.modules"
BERT = {"model_type": "bert", "architectures": ["BertModel"]}
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


def write(file: Path, said: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(said))


def repo(folder: Path, *modules: tuple[str, str], config: Any = BERT, **files: Any) -> Path:
    """`modules`: (type, path) of modules.json. `files`: by their paths, with __ for /, what is in them."""
    write(folder / "config.json", config)
    if modules:
        rows = [{"idx": place, "name": str(place), "path": path, "type": type} for place, (type, path) in enumerate(modules)]
        write(folder / "modules.json", list(reversed(rows)))
    for name, said in files.items():
        write(folder / (name.replace("__", "/") + ".json"), said)
    return folder


def plain(folder: Path, pooling: Any, *further: tuple[str, str], **files: Any) -> Declared:
    modules = ((f"{OLD}.Transformer", ""), (f"{OLD}.Pooling", "1_Pooling"), *further)
    return read(repo(folder, *modules, **{"1_Pooling__config": pooling, **files}))


def test_nothing_of_this_imports_torch() -> None:
    assert "llmgallery.backends.transformers.pools.pooling_files" in sys.modules
    source = Path(sys.modules["llmgallery.backends.transformers.pools.pooling_files"].__file__ or "").read_text()
    assert "import torch" not in source and "import transformers" not in source


@pytest.mark.parametrize(
    ("said", "modes"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, ("mean",)),
        ({"pooling_mode_cls_token": True}, ("cls",)),
        ({"pooling_mode_max_tokens": True}, ("max",)),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, ("mean_sqrt_len_tokens",)),
        ({"pooling_mode_weightedmean_tokens": True}, ("weightedmean",)),
        ({"pooling_mode_lasttoken": True}, ("lasttoken",)),
        ({"pooling_mode_lasttoken": True, "pooling_mode_cls_token": True}, ("cls", "lasttoken")),
        ({"pooling_mode_mean_tokens": False}, ("mean",)),
        ({"pooling_mode": "lasttoken"}, ("lasttoken",)),
        ({"pooling_mode": ["mean", "cls"]}, ("mean", "cls")),
    ],
)
def test_how_a_repo_pools(tmp_path: Path, said: Any, modes: tuple[str, ...]) -> None:
    declared = plain(tmp_path, said)
    assert declared.modes == modes and declared.is_sentence and declared.include_prompt
    assert chosen_modes(declared, ModelConfig()) == modes


def test_all_of_sentence_transformers_files(tmp_path: Path) -> None:
    write(tmp_path / "3_Dense" / "config.json", {"activation_function": "torch.nn.modules.activation.Tanh", "use_residual": True})
    (tmp_path / "3_Dense" / "model.safetensors").touch()
    write(tmp_path / "4_LayerNorm" / "config.json", {"dimension": 4})
    (tmp_path / "4_LayerNorm" / "pytorch_model.bin").touch()
    modules = (
        (f"{NEW}.transformer.Transformer", ""),
        (f"{NEW}.pooling.Pooling", "1_Pooling"),
        (f"{OLD}.Normalize", "2_Normalize"),
        ("sentence_transformers.base.modules.dense.Dense", "3_Dense"),
        (f"{NEW}.layer_norm.LayerNorm", "4_LayerNorm"),
        (f"{OLD}.Dropout", "5_Dropout"),
        (f"{OLD}.Normalize", "6_Normalize"),
    )
    declared = read(
        repo(
            tmp_path,
            *modules,
            sentence_bert_config={"max_seq_length": 256, "do_lower_case": True},
            config_sentence_transformers={"prompts": {"query": "query: ", "passage": ""}, "default_prompt_name": "query"},
            **{"1_Pooling__config": {"pooling_mode": "cls", "include_prompt": False}},
        )
    )
    dense = Dense(tmp_path / "3_Dense" / "model.safetensors", "Tanh", residual=True)
    assert declared.steps == (Normalize(), dense, LayerNorm(tmp_path / "4_LayerNorm" / "pytorch_model.bin"))
    assert (declared.max_tokens, declared.lowercase, declared.include_prompt) == (256, True, False)
    assert chosen_prompt(declared, None) == "query: " and chosen_prompt(declared, "passage") == ""
    with pytest.raises(LoadError, match="no prompt title; it has: passage, query"):
        chosen_prompt(declared, "title")


def test_a_transformer_in_a_folder_of_its_own(tmp_path: Path) -> None:
    repo(tmp_path / "0_Transformer", config=BERT, sentence_roberta_config={"max_seq_length": 77})
    modules = [
        {"idx": 0, "path": "0_Transformer", "type": f"{OLD}.Transformer"},
        {"idx": 1, "path": "1_Pooling", "type": f"{OLD}.Pooling"},
    ]
    write(tmp_path / "modules.json", modules)
    write(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_cls_token": True})
    declared = read(tmp_path)
    assert declared.folder == tmp_path / "0_Transformer" and declared.max_tokens == 77 and declared.model_type == "bert"


@pytest.mark.parametrize("name", ["WordEmbeddings", "CNN", "LSTM", "BoW", "CLIPModel", "StaticEmbedding", "Router"])
def test_what_begins_with_no_transformer_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(LoadError, match=rf"modules.json: the first module is {OLD}.{name}"):
        read(repo(tmp_path, (f"{OLD}.{name}", "0")))


@pytest.mark.parametrize("name", ["WeightedLayerPooling", "SpladePooling", "CNN", "MultiVectorMask"])
def test_modules_that_are_not_supported_are_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(LoadError, match=f"the module {name} is not supported; supported are Transformer"):
        read(repo(tmp_path, (f"{OLD}.Transformer", ""), (f"{OLD}.{name}", "1")))


def test_order_code_and_places_of_modules(tmp_path: Path) -> None:
    transformer = (f"{OLD}.Transformer", "")
    with pytest.raises(LoadError, match="Dense is not supported in this place"):
        read(repo(tmp_path / "a", transformer, (f"{OLD}.Dense", "1_Dense")))
    with pytest.raises(LoadError, match="no Pooling"):
        read(repo(tmp_path / "b", transformer))
    with pytest.raises(LoadError, match=r"custom_st\.Transformer is code of the repo's own"):
        read(repo(tmp_path / "c", ("custom_st.Transformer", "")))
    with pytest.raises(BadWeights, match=r"the module's folder \.\./x is not inside"):
        read(repo(tmp_path / "d", transformer, (f"{OLD}.Pooling", "../x")))
    with pytest.raises(LoadError, match="the pooling attention is not known; known are cls"):
        plain(tmp_path / "e", {"pooling_mode": "attention"})
    with pytest.raises(BadWeights, match=r"1_Pooling/config\.json: no such file"):
        read(repo(tmp_path / "f", transformer, (f"{OLD}.Pooling", "1_Pooling")))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"activation_function": "os.system"}, "the activation os.system is not supported"),
        ({"activation_function": "torch.nn.modules.module.Module"}, "supported of torch.nn are ELU, GELU"),
        ({"module_input_name": "token_embeddings"}, "module_input_name: token_embeddings is not supported"),
        ({"module_output_name": "scores"}, "module_output_name: scores is not supported"),
    ],
)
def test_dense_layers_that_are_not_supported(tmp_path: Path, said: Any, message: str) -> None:
    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "2_Dense" / "model.safetensors").touch()
    with pytest.raises(LoadError, match=message):
        plain(tmp_path, {}, (f"{OLD}.Dense", "2_Dense"), **{"2_Dense__config": said})


def test_a_dense_layer_without_weights(tmp_path: Path) -> None:
    with pytest.raises(BadWeights, match=r"2_Dense: the module Dense has no model\.safetensors"):
        plain(tmp_path, {}, (f"{OLD}.Dense", "2_Dense"), **{"2_Dense__config": {}})


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "[1]", '{"a": 1}', '[{"idx": "x", "type": "sentence_transformers.models.Transformer"}]']
)
def test_damaged_files(tmp_path: Path, text: str) -> None:
    write(tmp_path / "config.json", BERT)
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(BadWeights, match=r"modules\.json"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("config", "yaml", "what"),
    [
        (BERT, {}, "embed"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, {}, "embed"),
        ({"model_type": "gpt_neo", "architectures": ["GPTNeoModel"]}, {}, "embed"),
        (LLAMA, {}, "generate"),
        (LLAMA, {"embeddings": True}, "both"),
        (LLAMA, {"reranking": True}, "rerank"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, {}, "generate"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, {"embeddings": True}, "embed"),
        ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, {}, "rerank"),
        ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, {"embeddings": True}, "embed"),
    ],
)
def test_what_a_model_is_loaded_for(config: Any, yaml: Any, what: str) -> None:
    assert purpose(Declared(Path(), config), ModelConfig(**yaml)) == what


def test_the_yaml_has_the_last_word() -> None:
    sentence = Declared(Path(), LLAMA, is_sentence=True, modes=("lasttoken",))
    assert purpose(sentence, ModelConfig()) == "embed"
    assert purpose(sentence, ModelConfig(embeddings=False)) == "generate"
    assert chosen_modes(sentence, ModelConfig(parameters=Parameters(pooling="mean"))) == ("mean",)
    assert chosen_modes(sentence, ModelConfig(parameters=Parameters(pooling="mean")), "last") == ("lasttoken",)
    assert [chosen_modes(sentence, ModelConfig(), mode) for mode in MODES] == [(mode,) for mode in MODES]
    assert purpose(Declared(Path(), LLAMA), ModelConfig(), "rank") == "rerank"
    assert purpose(Declared(Path(), LLAMA, scoring=Scoring(1, 2)), ModelConfig()) == "rerank"


@pytest.mark.parametrize(
    ("config", "yaml", "pooling", "message"),
    [
        (BERT, {}, "none", "a vector of each token"),
        (BERT, {"embeddings": True, "reranking": True}, None, "make two files"),
        (BERT, {"reranking": True}, None, "BertModel has no classifier"),
        (BERT, {"embeddings": False}, None, "BertModel makes nothing else"),
        (LLAMA, {}, "mean", "only for models with embeddings: true"),
    ],
)
def test_what_a_yaml_cannot_ask(config: Any, yaml: Any, pooling: str | None, message: str) -> None:
    with pytest.raises(LoadError, match=message):
        purpose(Declared(Path(), config), ModelConfig(**yaml), pooling)


def test_without_files_the_architecture_says_how_to_pool() -> None:
    assert chosen_modes(Declared(Path(), BERT), ModelConfig()) == ("mean",)
    assert chosen_modes(Declared(Path(), LLAMA), ModelConfig()) == ("lasttoken",)
    both_ways = {"model_type": "gemma3_text", "use_bidirectional_attention": True}
    assert chosen_modes(Declared(Path(), both_ways), ModelConfig()) == ("mean",)
    assert chosen_modes(Declared(Path(), {**BERT, "is_decoder": True}), ModelConfig()) == ("lasttoken",)


def test_scores_without_tokens(tmp_path: Path) -> None:
    modules = ((f"{OLD}.Transformer", ""), ("sentence_transformers.cross_encoder.modules.LogitScore", "1"))
    with pytest.raises(BadWeights, match="true_token_id"):
        read(repo(tmp_path, *modules, config=LLAMA, **{"1__config": {"false_token_id": 1}}))


def test_cross_encoders(tmp_path: Path) -> None:
    classifier = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    own = {**classifier, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    assert read(repo(tmp_path / "a", config=own)).activation == "torch.nn.modules.linear.Identity"
    old = {**classifier, "sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}
    assert read(repo(tmp_path / "b", config=old)).activation == "torch.nn.modules.activation.Sigmoid"
    assert read(repo(tmp_path / "c", config=classifier)).activation == ""
    causal = read(
        repo(
            tmp_path / "d",
            ("sentence_transformers.base.modules.transformer.Transformer", ""),
            ("sentence_transformers.cross_encoder.modules.logit_score.LogitScore", "1_LogitScore"),
            config=LLAMA,
            sentence_bert_config={"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}},
            **{"1_LogitScore__config": {"true_token_id": 9693, "false_token_id": 2152}},
        )
    )
    assert causal.scoring == Scoring(9693, 2152) and causal.template_settings == {"add_generation_prompt": True}
    assert purpose(causal, ModelConfig()) == "rerank"
