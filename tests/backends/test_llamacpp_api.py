"""Every function of llama.cpp's API that we name, called against the bundled model."""

from __future__ import annotations

import ctypes
import inspect
import re

import pytest
from llama_cpp import llama_cpp

from llmgallery import paths
from llmgallery.backends.llamacpp import api
from llmgallery.backends.llamacpp.log import CONTINUED, ERROR, LOG, WARNING, Log

POCKET = paths.builtin("models") / "pocket-f16.gguf"
GREETING = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model():
    api.start()
    made = api.Model([POCKET], api.ModelParams(), lambda fraction: None)
    yield made
    made.close()


@pytest.fixture
def context(model):
    made = api.Context(model, context_params(sequences=2))
    yield made
    made.close()


@pytest.fixture
def sampler():
    made = api.Sampler()
    yield made
    made.close()


def context_params(sequences: int, **extra):
    return api.ContextParams(
        context=256 * sequences, sequences=sequences, batch=64, ubatch=32, threads=1, threads_batch=1, extra=extra
    )


def prefill(model, context, sequence: int = 0, text: str = GREETING) -> tuple[api.Batch, int, int]:
    """The batch, the index of its last token, and how many tokens there are."""
    tokens = model.vocab.tokenize(text.encode(), special=True)
    batch = api.Batch(64)
    last = batch.add(sequence, 0, tokens, wants_logits=True)
    assert context.decode(batch) == 0
    return batch, last, len(tokens)


def greedy(model, context, sequence: int = 0, count: int = 8) -> list[int]:
    sampler = api.Sampler()
    sampler.add_likeliest()
    batch, last, position = prefill(model, context, sequence)
    tokens = [sampler.sample(context, last)]
    while len(tokens) < count:
        batch.clear()
        last = batch.add(sequence, position, tokens[-1:], wants_logits=True)
        assert context.decode(batch) == 0
        tokens.append(sampler.sample(context, last))
        position += 1
    sampler.close()
    return tokens


def test_every_symbol_that_is_named_exists():
    names = set(re.findall(r"\bc\.(\w+)", inspect.getsource(api)))
    assert len(names) > 60
    assert not [name for name in names if not hasattr(llama_cpp, name)]


def test_no_other_file_names_the_library():
    folder = paths.PACKAGE
    named = {file.relative_to(folder).as_posix() for file in folder.rglob("*.py") if "llama_cpp import" in file.read_text()}
    assert named == {"backends/llamacpp/api.py"}


def test_loading_reports_progress_and_its_sizes():
    fractions: list[float] = []
    api.start()
    with LOG.kept() as log:
        made = api.Model([POCKET], api.ModelParams(gpu_layers=0, mmap=False, mlock=False, main_gpu=0), fractions.append)
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert any("buffer size" in text for _, text in log)
    made.close()
    made.close()


def test_tensor_split_and_checked_tensors_are_accepted():
    made = api.Model([POCKET], api.ModelParams(tensor_split=[1.0, 2.0], check_tensors=True, mmap=True), lambda fraction: None)
    assert made.num_parameters > 0
    made.close()


def test_splits_are_loaded_by_their_paths(tmp_path):
    with pytest.raises(ValueError, match=r"part-1\.gguf"):
        api.Model([tmp_path / "part-1.gguf", tmp_path / "part-2.gguf"], api.ModelParams(), lambda fraction: None)


def test_a_model_tells_what_it_is(model):
    assert model.context_length == 1024
    assert 2_000_000 < model.num_parameters < 3_000_000
    assert 4_000_000 < model.bytes < 6_000_000
    assert model.can_decode
    assert "F16" in model.description
    assert model.cache_bytes_per_token == 4 * 5 * 192
    everything = model.metadata()
    assert everything["general.architecture"] == "llama"
    assert everything["tokenizer.chat_template"].startswith("{#- ChatML")
    assert model.metadata(lambda key: key == "general.name") == {"general.name": "pocket"}


def test_a_vocabulary_turns_text_into_tokens_and_back(model):
    vocab = model.vocab
    assert vocab.size == 2048 and not vocab.adds_bos
    assert vocab.text(vocab.eos) == "<|im_end|>" and vocab.text(api.NO_TOKEN) == ""
    assert vocab.is_end(vocab.eos) and not vocab.is_end(300)
    text = "Grüße, 世界 🌍\x00!"
    tokens = vocab.tokenize(text.encode(), special=False)
    assert b"".join(vocab.piece(token) for token in tokens).decode() == text
    assert vocab.detokenize(tokens).decode() == text
    assert vocab.tokenize(b"", special=True) == [] and vocab.detokenize([]) == b""
    marks = vocab.tokenize(b"<|im_start|><think>", special=True)
    assert len(marks) == 2
    assert [vocab.piece(token) for token in marks] == [b"", b"<think>"], "control tokens have no text, others do"
    assert vocab.piece(marks[0], special=True) == vocab.detokenize(marks[:1]) == b"<|im_start|>"
    assert len(vocab.tokenize(b"<|im_start|>", special=False)) > 1


def test_long_texts_and_pieces_grow_their_buffers(model):
    text = "a" * 20_000
    tokens = model.vocab.tokenize(text.encode(), special=False)
    assert model.vocab.detokenize(tokens).decode() == text
    assert api._text(lambda buffer, room: _write(buffer, room, b"x" * 1000)) == "x" * 1000


def _write(buffer, room: int, text: bytes) -> int:
    ctypes.memmove(buffer, text[: room - 1] + b"\0", min(room, len(text) + 1))
    return len(text)


def test_a_context_computes_and_forgets(model, context):
    assert (context.num_sequences, context.tokens_per_sequence, context.batch_size) == (2, 256, 64)
    batch, last, count = prefill(model, context)
    assert batch.count == count and last == count - 1
    assert (context.last_position(0), context.last_position(1)) == (count - 1, -1)
    context.forget(0)
    assert context.last_position(0) == -1
    assert greedy(model, context) == greedy(model, context, sequence=1)
    context.close()
    context.close()


def test_an_invalid_batch_is_refused(model, context):
    batch = api.Batch(4)
    batch.add(0, 0, [model.vocab.size + 5], wants_logits=True)
    assert context.decode(batch) == -1


def test_a_full_cache_is_told(model):
    context = api.Context(model, context_params(sequences=1))
    batch = api.Batch(64)
    results = []
    for position in range(0, 320, 64):
        batch.clear()
        batch.add(0, position, [300] * 64, wants_logits=False)
        results.append(context.decode(batch))
    assert results == [0, 0, 0, 0, 1]
    context.close()


def test_an_abort_ends_decodes(model, context):
    context.abort()
    batch = api.Batch(64)
    batch.add(0, 0, [300] * 64, wants_logits=True)
    assert context.decode(batch) == 2


def test_an_impossible_context_is_refused(model):
    with LOG.kept() as log, pytest.raises(ValueError):
        api.Context(model, context_params(1, type_v=api.CACHE_TYPES["q8_0"], flash_attn_type=api.FLASH_ATTENTION["off"]))
    assert any(level == ERROR for level, _ in log)


@pytest.mark.parametrize("name", api.CACHE_TYPES)
def test_cache_types_by_name(model, name):
    context = api.Context(model, context_params(1, type_k=api.CACHE_TYPES[name], flash_attn_type=api.FLASH_ATTENTION["on"]))
    assert len(greedy(model, context, count=2)) == 2
    context.close()


def test_the_likeliest_token_and_a_bias(model, context, sampler):
    _, last, _ = prefill(model, context)
    sampler.add_likeliest()
    best = sampler.sample(context, last)
    biased = api.Sampler()
    biased.add_logit_bias(model.vocab.size, {best: float("-inf"), 77: 100.0})
    biased.add_likeliest()
    assert biased.sample(context, last) == 77
    assert len(biased) == 2
    biased.close()
    biased.close()


def test_a_whole_chain_draws_by_its_seed(model, context):
    _, last, _ = prefill(model, context)

    def draw(seed: int) -> list[int]:
        sampler = api.Sampler()
        sampler.add_penalties(model.vocab.size, 16, 1.1, 0.1, 0.1)
        sampler.add_top_k(1000)
        sampler.add_temperature(50.0)
        sampler.add_typical(0.99)
        sampler.add_top_p(0.999)
        sampler.add_min_p(0.00001)
        sampler.add_choice(seed)
        assert len(sampler) == 7
        tokens = [sampler.sample(context, last) for _ in range(20)]
        sampler.close()
        return tokens

    assert draw(1) == draw(1) != draw(2)


def test_penalties_see_what_was_accepted(model, context, sampler):
    _, last, _ = prefill(model, context)
    sampler.add_penalties(model.vocab.size, 16, 1.0, 0.0, 1000.0)
    sampler.add_likeliest()
    plain = api.Sampler()
    plain.add_likeliest()
    best = plain.sample(context, last)
    sampler.accept(best)
    assert sampler.sample(context, last) != best
    plain.close()


def test_warnings_go_to_stderr_and_the_rest_is_quiet(capsys):
    log = Log()
    log.hear(2, b"chatter\n", None)
    log.hear(CONTINUED, b"more\n", None)
    log.hear(WARNING, b"look ", None)
    log.hear(CONTINUED, b"out\n", None)
    with log.kept() as kept:
        log.hear(ERROR, b"broken\n", None)
        log.hear(2, b"fine\n", None)
    assert capsys.readouterr().err == "look out\nbroken\n"
    assert kept == [(ERROR, "broken\n"), (2, "fine\n")]
