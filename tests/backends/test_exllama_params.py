"""From a YAML to what ExLlama is asked to load; and the vocabulary of a folder, without any GPU."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from llmgallery.backends import base
from llmgallery.backends.base import Files
from llmgallery.backends.exllama.params import lengths, make_plan
from llmgallery.backends.exllama.spec import SPEC
from llmgallery.backends.exllama.vocabulary import FolderVocabulary
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.core.errors import BadWeights, InvalidField, LoadError

TEXT = ["the cat sat on the mat, häßlich 😀 und schön, naïve café 東京"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    made.add_special_tokens(
        [AddedToken("<s>", special=True), AddedToken("</s>", special=True), AddedToken("<|im_end|>", special=True)]
    )
    path = tmp_path_factory.mktemp("exllama") / "model"
    path.mkdir()
    made.save(str(path / "tokenizer.json"))
    said = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": True, "chat_template": [
        {"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]}  # fmt: skip
    (path / "tokenizer_config.json").write_text(json.dumps(said))
    (path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 1000}))
    ends = [made.token_to_id("<|im_end|>"), 10**9]
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return path


def plan(folder: Path, **keys):
    files = Files((folder,), keys.pop("adapters_at", ()), keys.pop("draft_at", ()))
    return make_plan(ModelConfig(**keys), files, trained_context=1000, ends=(2,))


def test_what_nobody_sets(folder: Path) -> None:
    made = plan(folder)
    assert (made.context_size, made.slots, made.bits, made.chunk, made.gpu_split) == (1000, 8, 16, 2048, None)
    assert made.cache_size == 8 * (1024 + 256)


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"context_size": 512, "parallel": 2}, {"context_size": 512, "slots": 2, "cache_size": 2 * 768}),
        ({"max_model_len": 300}, {"context_size": 300}),
        ({"options": {"cache_mode": "Q6"}}, {"bits": 6}),
        ({"cache_type_k": "q8_0", "cache_type_v": "q4_0"}, {"bits": 4}),
        ({"cache_type_k": "q8_0", "cache_type_v": "q8_0"}, {"bits": 8}),
        ({"options": {"gpu_split": [16, 24]}}, {"gpu_split": (16.0, 24.0)}),
        ({"tensor_split": "16, 0"}, {"gpu_split": (16.0, 0.0)}),
        ({"options": {"cache_size": 5000}}, {"cache_size": 5120}),
        ({"parameters": Parameters(batch=300)}, {"chunk": 512}),
        ({"flash_attention": "off"}, {"paged": False}),
        ({"options": {"flash_attention": True}}, {"paged": True}),
        ({"n_draft": 7}, {"drafts": 7}),
    ],
)
def test_keys_say_how_it_is_loaded(folder: Path, keys, found) -> None:
    made = plan(folder, **keys)
    assert {name: getattr(made, name) for name in found} == found


@pytest.mark.parametrize(
    ("keys", "field"),
    [
        ({"options": {"gpu_split": [0, 0]}}, "options.gpu_split"),
        ({"tensor_split": "a,b"}, "tensor_split"),
        ({"context_size": 2000, "options": {"cache_size": 1024}}, "options.cache_size"),
    ],
)
def test_impossible_settings_name_their_key(folder: Path, keys, field: str) -> None:
    with pytest.raises(LoadError) as caught:
        plan(folder, **keys)
    assert caught.value.field == field and field in caught.value.message


def test_adapters_are_safe_folders(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(BadWeights, match=r"adapter_model\.safetensors"):
        plan(folder, lora_adapters=["a"], adapters_at=(tmp_path,))
    (tmp_path / "adapter_model.safetensors").touch()
    assert plan(folder, lora_adapters=["a"], lora_scales=[0.5], adapters_at=(tmp_path,)).adapters == ((tmp_path, 0.5),)


def test_a_gguf_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").touch()
    with pytest.raises(BadWeights, match="is no folder"):
        plan(tmp_path / "m.gguf")


def test_the_vocabulary_of_a_folder(folder: Path) -> None:
    vocabulary = FolderVocabulary(folder)
    assert (vocabulary.bos, vocabulary.eos, vocabulary.adds_bos) == ("<s>", "</s>", True)
    assert vocabulary.templates == {"": "plain", "tool_use": "tools"}
    assert vocabulary.trained_context == 1000 and vocabulary.architecture == "llama"
    assert {vocabulary.written(token) for token in vocabulary.ends} == {b"</s>", b"<|im_end|>"}


@pytest.mark.parametrize("text", ["hello", "häßlich 😀", "  two  spaces\n", "東京 naïve"])
def test_texts_come_back(folder: Path, text: str) -> None:
    vocabulary = FolderVocabulary(folder)
    tokens = vocabulary.tokenize(text, special=False, bos=False)
    assert vocabulary.detokenize(tokens) == text
    assert b"".join(map(vocabulary.piece, tokens)) == text.encode()


def test_control_tokens_count_where_they_are_asked_for(folder: Path) -> None:
    vocabulary = FolderVocabulary(folder)
    control = vocabulary.tokenize("<s>", special=True, bos=False)
    assert len(control) == 1 and vocabulary.piece(control[0]) == b"" and vocabulary.written(control[0]) == b"<s>"
    assert len(vocabulary.tokenize("<s>", special=False, bos=False)) > 1
    assert vocabulary.tokenize("a", special=False, bos=True)[0] == control[0]
    with pytest.raises(InvalidField, match="not in the vocabulary"):
        vocabulary.detokenize([10**6])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", None, r"tokenizer\.json is missing"),
        ("config.json", None, r"config\.json is missing"),
        ("config.json", "[1]", "holds no object"),
        ("config.json", "{", "is no JSON"),
        ("tokenizer.json", '{"model": 1}', "no tokenizer that can be read"),
        ("chat_template.jinja", "\udcff", "cannot be read"),
    ],
)
def test_broken_folders_are_told(folder: Path, tmp_path: Path, name: str, text: str | None, message: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if text is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(BadWeights, match=message):
        FolderVocabulary(tmp_path)


@pytest.mark.parametrize(
    ("context_size", "parallel", "chunk"), [(100, 1, 512), (512, 4, 2048), (8192, 64, 2048), (100, 256, 4096)]
)
def test_exllamav2_is_told_lengths_that_it_loads_with(folder: Path, context_size: int, parallel: int, chunk: int) -> None:
    """It computes a whole chunk when it loads, and wants room for 16 tokens of each request."""
    plan = make_plan(
        ModelConfig(context_size=context_size, parallel=parallel), Files((folder,), draft=(folder,)), trained_context=0, ends=()
    )
    longest, positions = lengths(plan, plan.cache_size, plan.slots)
    assert longest == chunk and longest % 256 == 0
    assert longest <= min(plan.cache_size, positions) and longest >= 16 * parallel
    assert positions >= context_size + plan.drafts


def test_without_cuda_it_says_so_before_anything_is_loaded(monkeypatch) -> None:
    monkeypatch.setattr(base, "lacking", lambda hardware: "an NVIDIA GPU")
    assert SPEC.lacks("exl2") == "backend exllamav2 needs an NVIDIA GPU"
    monkeypatch.setattr(base, "lacking", lambda hardware: "")
    assert "exllamav3" in SPEC.lacks("exl3") and "llmgallery backends install exllamav2" in SPEC.lacks("exl3")
    assert SPEC.missing("exl3")[-1] == "exllamav3" and SPEC.missing("exl2")[-1] == "exllamav2"
