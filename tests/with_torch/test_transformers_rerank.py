"""Scores against transformers' own forward pass of each pair alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_transformers
import torch
from pooled_driving import pooling
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from llmgallery.backends.base import EmbedJob, Job, RerankJob
from llmgallery.core.errors import ContextExceeded, LoadError, UnsupportedField
from llmgallery.core.sampling import Sampling

QUERY = "what is the capital of France?"
DOCUMENTS = ["The capital of France is Paris.", "One, two, three, four, five, six, seven, eight.", "cats", "fox " * 30, "?"]


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformers.make_reranker(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformers.make_llama(tmp_path_factory.mktemp("llama"), context=2048)


def logits(folder: Path, query: str, document: str, **given: Any) -> torch.Tensor:
    """Of the pair alone, without any padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(query, document, return_tensors="pt", **given)).logits[0]


def with_config(source: Path, folder: Path, **keys: Any) -> Path:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return folder


def test_one_label_is_a_probability(reranker: Path) -> None:
    expected = [torch.sigmoid(logits(reranker, QUERY, document))[0].item() for document in DOCUMENTS]
    with pooling(reranker) as model:
        assert model.loaded.capabilities == {"rerank", "probabilities"} and model.loaded.embedding_size == 0
        scores = model.rerank(QUERY, *DOCUMENTS)
    assert np.abs(scores - expected).max() < 1e-6 and len(set(scores)) == len(DOCUMENTS)


def test_token_types_are_those_of_the_tokenizer(reranker: Path, tmp_path: Path) -> None:
    shutil.copytree(reranker, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "tokenizer_config.json"
    names = ["input_ids", "token_type_ids", "attention_mask"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "model_input_names": names}))
    blind = logits(reranker, QUERY, "cats")[0].item()
    typed = logits(reranker, QUERY, "cats", return_token_type_ids=True)[0].item()
    assert abs(typed - blind) > 1e-2
    for folder, expected in ((reranker, blind), (tmp_path, typed)):
        with pooling(folder) as model:
            assert abs(model.rerank(QUERY, "cats")[0] - 1 / (1 + np.exp(-expected))) < 1e-6


def test_a_score_does_not_depend_on_the_documents_beside(reranker: Path) -> None:
    with pooling(reranker) as model:
        together = model.rerank(QUERY, *DOCUMENTS)
        alone = [model.rerank(QUERY, document)[0] for document in DOCUMENTS]
    assert np.abs(together - alone).max() < 1e-6


@pytest.mark.parametrize("key", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_a_model_whose_own_activation_is_none_gives_logits(reranker: Path, tmp_path: Path, key: str) -> None:
    path = "torch.nn.modules.linear.Identity"
    folder = with_config(reranker, tmp_path, **{key: {"activation_fn": path} if key == "sentence_transformers" else path})
    with pooling(folder) as model:
        assert model.loaded.capabilities == {"rerank"}
        assert abs(model.rerank(QUERY, "cats")[0] - logits(reranker, QUERY, "cats")[0].item()) < 1e-5


def test_an_activation_that_is_code(reranker: Path, tmp_path: Path) -> None:
    folder = with_config(reranker, tmp_path, sentence_transformers={"activation_fn": "os.system"})
    with pytest.raises(LoadError, match=r"the activation os\.system is not supported"), pooling(folder):
        pass


def test_of_two_labels_the_positive_one_counts(tmp_path: Path) -> None:
    folder = tiny_transformers.make_reranker(tmp_path / "two", labels=2)
    expected = [logits(folder, QUERY, document).softmax(dim=0) for document in DOCUMENTS]
    with pooling(folder) as model:
        assert "probabilities" in model.loaded.capabilities
        assert np.abs(model.rerank(QUERY, *DOCUMENTS) - [each[1].item() for each in expected]).max() < 1e-6
    named = with_config(folder, tmp_path / "named", id2label={"0": "relevant", "1": "irrelevant"})
    with pooling(named) as model:
        assert np.abs(model.rerank(QUERY, *DOCUMENTS) - [each[0].item() for each in expected]).max() < 1e-6


def test_more_labels_give_no_score(tmp_path: Path) -> None:
    folder = tiny_transformers.make_reranker(tmp_path, labels=3)
    with pytest.raises(LoadError, match="a classifier of 3 labels gives no score"), pooling(folder):
        pass


def test_only_the_document_is_cut(reranker: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(reranker)
    with pooling(reranker, context_size=40) as model:
        with pytest.raises(ContextExceeded, match=r"documents\[1\] has \d+ tokens, but this model takes 40") as caught:
            model.backend.rerank(RerankJob(1, QUERY, ["cats", "fox " * 60]))
        assert caught.value.field == "documents[1]"
        for truncate in (False, True):
            with pytest.raises(ContextExceeded, match="query has") as caught:
                model.backend.rerank(RerankJob(2, "fox " * 60, ["cats"], truncate))
            assert caught.value.field == "query"
        cut = model.rerank(QUERY, "fox " * 60, "cats", truncate=True)
        expected = torch.sigmoid(logits(reranker, QUERY, "fox " * 60, truncation="only_second", max_length=40))[0].item()
        assert abs(cut[0] - expected) < 1e-6 and abs(cut[1] - model.rerank(QUERY, "cats")[0]) < 1e-6
        full = "fox " * (40 - tokenizer.num_special_tokens_to_add(pair=True))
        cut = model.good(_asked(model, full, "cats and trains", truncate=True))
        assert cut.prompt_tokens == 40


def test_what_a_reranker_does_not_do(reranker: Path) -> None:
    with pooling(reranker) as model:
        with pytest.raises(UnsupportedField, match="makes no embeddings"):
            model.backend.embed(EmbedJob(1, ["a"]))
        with pytest.raises(UnsupportedField, match="answers nothing"):
            model.backend.submit(Job(2, [1], Sampling()))
        assert np.isfinite(model.rerank("broken \ud800", "text \udfff")).all()


def test_a_decoder_s_classifier_finds_the_last_token_with_and_without_padding(llama: Path, tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig.from_pretrained(llama, num_labels=1)
    torch.manual_seed(0)
    for pad in (config.pad_token_id, None):
        config.pad_token_id = pad
        folder = tmp_path / str(pad)
        shutil.copytree(llama, folder)
        LlamaForSequenceClassification(config).save_pretrained(folder)
        expected = [
            torch.sigmoid(logits(folder, QUERY, document, return_token_type_ids=False))[0].item() for document in DOCUMENTS
        ]
        with pooling(folder) as model:
            assert np.abs(model.rerank(QUERY, *DOCUMENTS) - expected).max() < 1e-5


TEMPLATE = "<|im_start|>user\nQ: {query}\nD: {document}<|im_end|>\n<|im_start|>assistant\n"
PAIRS = (
    "{%- set ns = namespace(q='', d='', s='none') -%}{%- for m in messages -%}"
    "{%- if m.role == 'query' -%}{%- set ns.q = m.content -%}{%- elif m.role == 'document' -%}{%- set ns.d = m.content -%}"
    "{%- elif m.role == 'system' -%}{%- set ns.s = m.content -%}{%- endif -%}{%- endfor -%}"
    "<|im_start|>{{ ns.s }}\nQ: {{ ns.q }}\nD: {{ ns.d }}<|im_end|>\n{%- if add_generation_prompt %}yes? {% endif -%}"
)


def answers(folder: Path, text: str) -> torch.Tensor:
    """The logits behind a text."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt", add_special_tokens=False, return_token_type_ids=False)).logits[0, -1]


def knowing(source: Path, folder: Path, **config: Any) -> Path:
    """A causal model whose vocabulary has the words yes and no; tokens that it has are called so."""
    with_config(source, folder, **config)
    file = folder / "tokenizer.json"
    said = json.loads(file.read_text())
    vocabulary = said["model"]["vocab"]
    merged = [name for name in vocabulary if len(name) > 1 and not name.startswith("<|") and name.isascii()]
    unused = [name for name in merged if not any(name in merge and name != "".join(merge) for merge in said["model"]["merges"])]
    for name, word in zip(unused, ("yes", "no"), strict=False):
        said["model"]["merges"] = [merge for merge in said["model"]["merges"] if "".join(merge) != name]
        vocabulary[word] = vocabulary.pop(name)
    file.write_text(json.dumps(said))
    return folder


def test_a_causal_model_is_asked_by_the_yaml_s_template(llama: Path, tmp_path: Path) -> None:
    folder = knowing(llama, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    expected = []
    for document in DOCUMENTS:
        row = answers(folder, TEMPLATE.format(query=QUERY, document=document))
        expected.append(torch.softmax(row[[yes, no]], dim=0)[0].item())
    options = {"rerank_template": TEMPLATE}
    with pooling(folder, reranking=True, options=options, context_size=512) as model:
        assert model.loaded.capabilities == {"rerank", "probabilities"}
        scores = model.rerank(QUERY, *DOCUMENTS)
        assert np.abs(scores - expected).max() < 1e-5 and np.ptp(scores) > 1e-3
        assert np.abs(scores - [model.rerank(QUERY, document)[0] for document in DOCUMENTS]).max() < 1e-5
        braces = answers(folder, TEMPLATE.format(query="{document}", document="{query}"))
        assert abs(model.rerank("{document}", "{query}")[0] - torch.softmax(braces[[yes, no]], dim=0)[0].item()) < 1e-5


def test_what_is_cut_of_a_causal_model_s_prompt_is_the_document(llama: Path, tmp_path: Path) -> None:
    folder = knowing(llama, tmp_path)
    with pooling(folder, reranking=True, options={"rerank_template": TEMPLATE}, context_size=96) as model:
        with pytest.raises(ContextExceeded, match=r"documents\[1\] has \d+ tokens") as caught:
            model.backend.rerank(RerankJob(1, QUERY, ["cats", "The quick brown fox. " * 60]))
        assert caught.value.field == "documents[1]"
        with pytest.raises(ContextExceeded, match="query has"):
            model.backend.rerank(RerankJob(2, "The quick brown fox. " * 60, ["cats"], truncate=True))
        cut = model.good(_asked(model, QUERY, "Grüße 🎉 aus Köln. " * 60, truncate=True))
        assert 80 < cut.prompt_tokens <= 96


def _asked(model: Any, query: str, document: str, *, truncate: bool) -> int:
    model.backend.rerank(RerankJob(77, query, [document], truncate))
    return 77


def test_a_repo_with_a_logit_score_is_asked_by_its_chat_template(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.chat_template = PAIRS
    tokenizer.save_pretrained(tmp_path)
    kinds = [("", "base.modules.transformer.Transformer"), ("1", "cross_encoder.modules.logit_score.LogitScore")]
    rows = [{"idx": place, "path": path, "type": f"sentence_transformers.{kind}"} for place, (path, kind) in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(rows))
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "config.json").write_text('{"true_token_id": 300, "false_token_id": 301}')
    settings = {"processing_kwargs": {"chat_template": {"add_generation_prompt": True}}}
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(settings))
    prompts = {
        "prompts": {"query": "search"},
        "default_prompt_name": "query",
        "activation_fn": "torch.nn.modules.linear.Identity",
    }
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    row = answers(tmp_path, "<|im_start|>search\nQ: a?\nD: b<|im_end|>yes? ")
    with pooling(tmp_path, context_size=256) as model:
        assert model.loaded.capabilities == {"rerank"}
        assert abs(model.rerank("a?", "b")[0] - (row[300] - row[301]).item()) < 1e-4
    (tmp_path / "1" / "config.json").write_text('{"true_token_id": 300}')
    with pooling(tmp_path, context_size=256) as model:
        assert abs(model.rerank("a?", "b")[0] - row[300].item()) < 1e-4


def test_qwen3_is_asked_as_its_card_says(llama: Path, tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    knowing(llama, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, head_dim=64, max_position_embeddings=2048, pad_token_id=1, eos_token_id=3, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(3)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    text = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
        'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n<Instruct>: Given a web search query, '
        "retrieve relevant passages that answer the query\n<Query>: a?\n<Document>: b<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n"
    )
    row = answers(tmp_path, text)
    yes, no = (tokenizer.convert_tokens_to_ids(word) for word in ("yes", "no"))
    with pooling(tmp_path, reranking=True, context_size=1024) as model:
        assert abs(model.rerank("a?", "b")[0] - torch.sigmoid(row[yes] - row[no]).item()) < 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing says how LlamaForCausalLM is asked"),
        ({"rerank_template": "{query}?"}, "must both be in it"),
        ({"rerank_template": TEMPLATE}, "reranking: yes is no token of this model's vocabulary"),
    ],
)
def test_causal_models_that_cannot_be_asked(llama: Path, options: Any, message: str) -> None:
    with pytest.raises(LoadError, match=message), pooling(llama, reranking=True, options=options, context_size=256):
        pass
