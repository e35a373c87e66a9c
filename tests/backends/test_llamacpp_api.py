"""Every function of llama.cpp's API that we name, called against the bundled model."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from conftest import POCKET
from gguf import GGUFReader, GGUFWriter

from llmgallery.backends.llamacpp import api
from llmgallery.backends.llamacpp.api.model import _text
from llmgallery.backends.llamacpp.log import CONTINUED, ERROR, LOG, WARNING, Log

GREETING = "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def model(pocket):
    return pocket


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


def test_splits_are_loaded_by_their_paths(tmp_path, capfd):
    with pytest.raises(ValueError, match=r"part-1\.gguf"):
        api.Model([tmp_path / "part-1.gguf", tmp_path / "part-2.gguf"], api.ModelParams(), lambda fraction: None)


def split(folder) -> list:
    """The bundled model in two files, under llama.cpp's names, the vocabulary in the first."""
    reader = GGUFReader(POCKET)
    files = [folder / f"pocket-{number:05}-of-00002.gguf" for number in (1, 2)]
    for index, file in enumerate(files):
        writer = GGUFWriter(str(file), "llama")
        writer.add_uint16("split.no", index)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for field in reader.fields.values() if index == 0 else ():
            if not field.name.startswith(("GGUF.", "general.architecture")):
                kind = field.types[0]
                writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
        for tensor in reader.tensors[index::2]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return files


@pytest.mark.parametrize("named", [1, 2])
def test_a_model_in_parts_is_the_model(model, tmp_path, named):
    """All parts by name, or the first, which leads to the others."""
    made = api.Model(split(tmp_path)[:named], api.ModelParams(), lambda fraction: None)
    assert (made.bytes, made.num_parameters, made.vocab.size) == (model.bytes, model.num_parameters, model.vocab.size)
    ours, theirs = (api.Context(one, context_params(1)) for one in (made, model))
    assert greedy(made, ours) == greedy(model, theirs)
    ours.close()
    theirs.close()
    made.close()


def test_a_model_tells_what_it_is(model):
    assert model.context_length == 1024
    assert 2_000_000 < model.num_parameters < 3_000_000
    assert 4_000_000 < model.bytes < 6_000_000
    assert model.can_decode and not model.keeps_state and model.window == 0
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
    assert _text(lambda buffer, room: _write(buffer, room, b"x" * 1000)) == "x" * 1000


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


def test_caches_are_cut_and_copied(model, context):
    _, _, count = prefill(model, context)
    assert not context.copies_are_free
    context.copy(0, 1, 3)
    assert context.last_position(1) == count - 1, "separate caches are copied as a whole"
    assert context.cut(1, 3) and context.last_position(1) == 2
    assert (context.first_position(0), context.first_position(1), context.last_position(0)) == (0, 0, count - 1)
    unified = api.Context(model, context_params(2, kv_unified=True))
    assert unified.copies_are_free and unified.tokens_per_sequence == 512
    prefill(model, unified)
    unified.copy(0, 1, 3)
    assert unified.last_position(1) == 2 and unified.first_position(1) == 0
    unified.close()


def test_logits_are_a_row_of_the_vocabulary_that_samplers_read(model, context, sampler):
    batch = api.Batch(8)
    last = batch.add(0, 0, [300, 301, 302], wants_logits=2)
    assert context.decode(batch) == 0
    row = context.logits(last)
    assert row.shape == (2048,) and row.dtype == np.float32
    assert not np.array_equal(row, context.logits(last - 1))
    row[:] = -1.0
    row[1234] = 0.0
    sampler.add_likeliest()
    assert sampler.sample(context, last) == 1234
    with pytest.raises(AssertionError, match="no logits"):
        context.logits(0)


def test_memory_for_logits_is_for_as_many_as_were_asked_for(model):
    def compute_buffer(outputs: int) -> tuple[float, api.Context]:
        wanted = api.ContextParams(1024, 4, 512, 512, 1, 1, outputs=outputs)
        with LOG.kept() as log:
            context = api.Context(model, wanted)
        return next(float(text.split()[-2]) for _, text in log if "compute buffer size" in text), context

    (much, all_), (little, few) = compute_buffer(0), compute_buffer(2)
    assert (all_.num_outputs, few.num_outputs) == (512, 4), "one for each sequence at least"
    assert little < much
    batch = api.Batch(64)
    for sequence in range(4):
        batch.add(sequence, 0, [300], wants_logits=True)
    assert few.decode(batch) == 0
    all_.close()
    few.close()


def test_a_batch_holds_what_it_has_room_for():
    batch = api.Batch(4)
    assert batch.add(0, 5, (1, 2, 3), wants_logits=2) == 2
    assert batch.add(7, 9, (4,), wants_logits=0) == 3
    raw = batch.raw
    assert (raw.n_tokens, batch.count) == (4, 4)
    assert [raw.token[index] for index in range(4)] == [1, 2, 3, 4]
    assert [raw.pos[index] for index in range(4)] == [5, 6, 7, 9]
    assert [raw.seq_id[index][0] for index in range(4)] == [0, 0, 0, 7]
    assert [raw.logits[index] for index in range(4)] == [0, 1, 1, 0]
    batch.add(0, 8, (9,), wants_logits=0)
    with pytest.raises(ValueError):
        _ = batch.raw
    batch.clear()
    assert batch.raw.n_tokens == 0


def test_what_the_library_was_compiled_with():
    assert isinstance(api.has_amx(), bool) and isinstance(api.can_offload(), bool)


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
