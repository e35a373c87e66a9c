"""llama-cpp with the bundled model: answers, batches, ends, and what it says of bad files and settings."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from conftest import POCKET
from listening import Listener
from llama_cpp import llama_cpp

from llmgallery.backends.base import Files, Job
from llmgallery.backends.llamacpp import api, params
from llmgallery.backends.llamacpp.log import LOG
from llmgallery.backends.llamacpp.spec import LlamaOptions
from llmgallery.backends.loader import canonical, specs
from llmgallery.config.model import LOAD_KEYS, LOAD_PARAMETERS, ModelConfig, Parameters
from llmgallery.core.errors import BadWeights, InvalidField, LoadError
from llmgallery.core.sampling import Sampling

GREEDY = Sampling(temperature=0, max_tokens=40)


def chat(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


def load(listener: Listener, file: Path = POCKET, **keys):
    backend = specs()["llama-cpp"].load()()
    return backend, backend.load(ModelConfig(**keys), Files(weights=(file,)), listener)


@pytest.fixture(scope="module")
def started():
    listener = Listener()
    backend, loaded = load(listener, parallel=4)
    yield backend, loaded, listener
    backend.close()


@pytest.fixture
def ask(started):
    """Answer these prompts together; texts in their order."""
    backend, _, listener = started

    def run(*prompts: str, sampling: Sampling = GREEDY) -> list[str]:
        ids = [len(listener.outputs) + index + 1000 for index in range(len(prompts))]
        for id, prompt in zip(ids, prompts, strict=True):
            backend.submit(Job(id, backend.tokenize(prompt, special=True, bos=False), sampling))
        listener.wait_for_end(*ids)
        run.last = [listener.last(id) for id in ids]
        return [listener.text(id) for id in ids]

    return run


def test_half_a_character_is_no_error(started):
    backend, _, _ = started
    assert backend.detokenize(backend.tokenize("a\ud800b", special=True, bos=False)) == "a?b"


def test_what_was_loaded(started):
    backend, loaded, listener = started
    assert (loaded.context_size, loaded.slots, loaded.vocab_size) == (1024, 4, 2048)
    assert loaded.chat_template is not None and loaded.chat_template.startswith("{#- ChatML")
    assert (loaded.bos, loaded.eos, loaded.add_bos) == ("<|endoftext|>", "<|im_end|>", False)
    assert loaded.details["architecture"] == "llama"
    assert loaded.memory_bytes > loaded.details["weights_bytes"] + 15 * 2**20, "the KV cache counts"
    assert listener.fractions[-1] == 1.0 and listener.fractions == sorted(listener.fractions)
    assert backend.tokenize("hi", special=False, bos=True)[0] == backend.tokenize("<|endoftext|>", special=True, bos=False)[0]


def test_it_answers(ask):
    assert "Paris" in ask(chat("What is the capital of France?"))[0]
    assert ask.last[0].finish == "stop"
    assert ask.last[0].usage.completion_tokens > 2


def test_an_answer_is_the_same_alone_and_in_a_batch(ask, started):
    _, _, listener = started
    drawn = [random.Random(seed).choices(["silver", "fox", "42", "owl"], k=6) for seed in range(9)]
    prompts = [chat(f"Repeat after me: {' '.join(words)}") for words in drawn]
    alone = [ask(prompt)[0] for prompt in prompts]
    assert ask(*prompts) == alone
    assert max(stats.sequences for stats in listener.steps) == 4
    assert len(set(alone)) > 1


def test_a_prompt_longer_than_a_batch_is_computed_in_chunks_beside_streams(ask, started):
    backend, _, listener = started
    long = chat("What is the capital of Japan?") * 45
    assert params.BATCH < len(backend.tokenize(long, special=True, bos=False)) < 1000
    alone = [ask(long)[0], ask(chat("Who are you?"))[0]]
    seen = len(listener.steps)
    assert ask(long, chat("Who are you?")) == alone
    assert all(stats.tokens <= params.BATCH for stats in listener.steps[seen:])


def test_length_and_ignored_ends(ask):
    ask(chat("Who are you?"), sampling=Sampling(temperature=0, max_tokens=1))
    assert ask.last[0].finish == "length" and ask.last[0].usage.completion_tokens == 1
    text = ask(chat("Hello!"), sampling=Sampling(temperature=0, max_tokens=60, ignore_eos=True))[0]
    assert ask.last[0].usage.completion_tokens == 60
    assert "<|" not in text


def test_the_context_ends_an_answer():
    listener = Listener()
    backend, loaded = load(listener, context_size=40, parallel=2)
    prompt = backend.tokenize(chat("Hello!"), special=True, bos=False)
    backend.submit(Job(1, prompt, Sampling(temperature=0, ignore_eos=True)))
    listener.wait_for_end(1)
    assert loaded.context_size == 40
    assert listener.last(1).finish == "length"
    assert listener.last(1).usage.completion_tokens == 40 - len(prompt)
    backend.close()


def test_seeds_reproduce(ask):
    def sampling(seed: int | None) -> Sampling:
        return Sampling(temperature=5, top_k=0, top_p=1, min_p=0, seed=seed, max_tokens=12)

    prompt = chat("Hello!")
    assert ask(prompt, sampling=sampling(7)) == ask(prompt, sampling=sampling(7))
    assert len({ask(prompt, sampling=sampling(seed))[0] for seed in (1, 2, 3, None, -1)}) > 3


def test_biases_and_penalties(ask, started):
    backend, _, _ = started
    (paris,) = backend.tokenize(" Paris", special=False, bos=False)[:1]
    question = chat("What is the capital of France?")
    assert "Paris" not in ask(question, sampling=Sampling(temperature=0, max_tokens=12, logit_bias={paris: -100.0}))[0]
    repeated = chat("Repeat after me: fox fox fox fox fox")
    heavy = Sampling(temperature=0, max_tokens=12, repeat_penalty=50, repeat_last_n=-1)
    assert ask(repeated) != ask(repeated, sampling=heavy)


def test_a_cancel_frees_the_slot(started):
    backend, _, listener = started
    endless = Sampling(temperature=0, ignore_eos=True)
    ids = [1, 2, 3, 4]
    prompt = backend.tokenize(chat("Hello!"), special=True, bos=False)
    for id in ids:
        backend.submit(Job(id, prompt, endless))
    listener.wait(lambda: all(id in listener.outputs for id in ids))
    backend.submit(Job(5, prompt, GREEDY))
    backend.cancel(2)
    listener.wait_for_end(2, 5)
    assert listener.finishes(2) == ["cancelled"] and listener.finishes(5) == ["stop"]
    assert not listener.finishes(1) or listener.last(1).finish == "length"
    for id in ids:
        backend.cancel(id)
    listener.wait_for_end(*ids)


def test_closing_aborts_running_jobs():
    listener = Listener()
    backend, _ = load(listener, parallel=2)
    for id in range(4):
        backend.submit(Job(id, [300] * 900, Sampling(ignore_eos=True)))
    backend.close()
    assert all(len(listener.finishes(id)) == 1 for id in range(4))
    backend.close()
    with pytest.raises(LoadError):
        backend.tokenize("x", special=False, bos=False)


def test_tokens_that_the_model_does_not_have(started):
    backend, _, listener = started
    with pytest.raises(InvalidField, match="2048 tokens"):
        backend.detokenize([9999])
    backend.submit(Job(900, [9999], GREEDY))
    listener.wait_for_end(900)
    assert listener.last(900).finish == "error" and "not in the vocabulary" in listener.last(900).message


WHOLE = POCKET.read_bytes()
NAMED = b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "magic"),
        (WHOLE[:3000], "key-value"),
        (WHOLE[: len(WHOLE) // 2], "corrupted or incomplete"),
        (b"GGML" + WHOLE[4:], "invalid magic characters"),
        (WHOLE.replace(NAMED + b"llama", NAMED + b"xlama"), "unknown model architecture: 'xlama'"),
    ],
)
def test_bad_weights_say_why(tmp_path, capfd, content, reason):
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(BadWeights, match=reason) as caught:
        load(Listener(), file)
    assert caught.value.message.startswith("bad.gguf does not load: ")


def test_missing_files(tmp_path):
    with pytest.raises(BadWeights, match="no such file"):
        load(Listener(), tmp_path / "none.gguf")
    with pytest.raises(LoadError, match="no weights"):
        specs()["llama-cpp"].load()().load(ModelConfig(), Files(), Listener())


def test_an_encoder_with_a_decoder_is_refused(tmp_path):
    with pytest.raises(LoadError, match="as T5 is: such models are not served"):
        load(Listener(), tiny_models.translating(tmp_path))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"cache_type_k": "q9"}, "cache_type_k: q9 is none of f32"),
        ({"flash_attention": "maybe"}, "flash_attention: maybe is none of auto, on, off"),
        ({"rope_scaling": "x"}, "rope_scaling: x is none of"),
        ({"tensor_split": "a,b"}, "tensor_split"),
        ({"main_gpu": "first"}, "main_gpu"),
        ({"options": {"x": 1}}, "unknown field `x`"),
        ({"context_size": 10**9, "parallel": 8}, "lower context_size or parallel"),
        ({"cache_type_v": "q8_0", "flash_attention": False}, "cache_type_v: q8_0 requires flash_attention"),
    ],
)
def test_impossible_settings(capfd, keys, reason):
    with pytest.raises(LoadError, match=reason):
        load(Listener(), **keys)


def test_parameters_of_a_model_file():
    config = ModelConfig(
        gpu_layers=-1, mmap=False, mmlock=True, main_gpu="1", tensor_split="3,1", threads=3, flash_attention=True,
        cache_type_k="Q8_0", no_kv_offloading=True, parameters=Parameters(batch=2, rope_freq_base=1e6),
    )  # fmt: skip
    options = LlamaOptions(ubatch=64, threads_batch=5, repack="off")
    model = params.model_params(config, options)
    assert (model.gpu_layers, model.mmap, model.mlock, model.main_gpu, model.tensor_split) == (-1, False, True, 1, [3, 1])
    assert not model.repack
    context = params.context_params(config, options, context_size=1000, slots=4, weights_bytes=0)
    assert (context.context, context.sequences, context.batch, context.ubatch) == (4096, 4, 4, 4)
    assert (context.threads, context.threads_batch) == (3, 5)
    assert context.extra == {
        "flash_attn_type": 1,
        "type_k": 8,
        "rope_freq_base": 1e6,
        "offload_kqv": False,
        "swa_full": True,
        "kv_unified": False,
    }


def test_parameters_reach_llama_cpp_under_its_names():
    config = ModelConfig(
        gpu_layers=7, mmap=True, mmlock=True, main_gpu=1, tensor_split=[0.25], threads=3, f16=False, cache_type_v="f16",
        no_kv_offloading=True, rope_scaling="yarn", yarn_ext_factor=0.5, yarn_attn_factor=1.5, yarn_beta_fast=33.0,
        yarn_beta_slow=2.0, flash_attention="off", parameters=Parameters(rope_freq_base=5000.0, rope_freq_scale=0.5),
    )  # fmt: skip
    options = LlamaOptions(ubatch=48, threads_batch=2, swa_full=False, kv_unified=True, check_tensors=True)
    raw = api.model.raw_params(params.model_params(config, options))
    assert (raw.n_gpu_layers, raw.main_gpu, raw.tensor_split[0], raw.check_tensors) == (7, 1, 0.25, True)
    assert raw.load_mode == llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK and raw.use_extra_bufts is not api.has_amx()
    sizes = {"context_size": 300, "slots": 3, "weights_bytes": 0, "vocab_size": 1 << 18, "drafts": 7}
    raw = api.context.raw_params(params.context_params(config, options, **sizes))
    assert (raw.n_ctx, raw.n_seq_max, raw.n_batch, raw.n_ubatch, raw.n_outputs_max) == (512, 3, 512, 48, 24)
    assert (raw.n_threads, raw.n_threads_batch, raw.offload_kqv, raw.swa_full, raw.kv_unified) == (3, 2, False, False, True)
    assert (raw.type_k, raw.type_v) == (llama_cpp.GGML_TYPE_F32, llama_cpp.GGML_TYPE_F16)
    assert (raw.flash_attn_type, raw.rope_scaling_type) == (0, llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN)
    assert (raw.rope_freq_base, raw.rope_freq_scale) == (5000.0, 0.5)
    assert (raw.yarn_ext_factor, raw.yarn_attn_factor, raw.yarn_beta_fast, raw.yarn_beta_slow) == (0.5, 1.5, 33.0, 2.0)


def last_row(model, **keys) -> np.ndarray:
    config = ModelConfig(threads=1, **keys)
    wanted = params.context_params(config, params.options_of(config), context_size=256, slots=1, weights_bytes=0)
    context = api.Context(model, wanted)
    batch = api.Batch(64)
    batch.add(0, 0, list(range(300, 360)), wants_logits=True)
    assert context.decode(batch) == 0
    row = context.logits(59).copy()
    context.close()
    return row


YARN = {"rope_scaling": "yarn", "parameters": Parameters(rope_freq_scale=0.25)}


@pytest.mark.parametrize(
    ("keys", "beside"),
    [
        ({"parameters": Parameters(rope_freq_base=500.0)}, {}),
        ({"parameters": Parameters(rope_freq_scale=0.5)}, {}),
        (YARN, {**YARN, "rope_scaling": "linear"}),
        ({**YARN, "yarn_ext_factor": 0.0}, YARN),
        ({**YARN, "yarn_ext_factor": 0.0, "yarn_attn_factor": 2.0}, {**YARN, "yarn_ext_factor": 0.0}),
        ({**YARN, "yarn_beta_fast": 4.0}, YARN),
        ({**YARN, "yarn_beta_slow": 30.0}, YARN),
        ({"cache_type_k": "q4_0"}, {}),
        ({"cache_type_v": "q4_0"}, {"flash_attention": "on"}),
        ({"f16": False}, {}),
    ],
)
def test_what_changes_the_numbers_changes_them(pocket, keys, beside):
    assert not np.array_equal(last_row(pocket, **keys), last_row(pocket, **beside))


@pytest.mark.parametrize(("mmap", "buffer"), [(True, "CPU_Mapped model buffer"), (False, "CPU model buffer")])
def test_weights_are_mapped_or_read(mmap, buffer):
    with LOG.kept() as log:
        backend, _ = load(Listener(), mmap=mmap, parallel=1, context_size=256)
        backend.close()
    assert any(buffer in text for _, text in log)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_weights_are_locked_in_memory(capfd):
    backend, _ = load(Listener(), mmlock=True, parallel=1, context_size=256)
    locked = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmLck"))
    backend.close()
    assert int(locked.split()[1]) >= 4000 or "failed to mlock" in capfd.readouterr().err


def test_numa_is_switched_on():
    """In a process of its own: it would bind this one's memory for good."""
    code = "from llmgallery.backends.llamacpp import api; api.start(True)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("repack", "amx", "allowed"),
    [("auto", False, True), ("auto", True, False), ("on", True, True), ("off", False, False)],
)
def test_weights_are_not_repacked_where_amx_may_crash(repack, amx, allowed):
    assert params.may_repack(LlamaOptions(repack=repack), amx) is allowed


@pytest.mark.parametrize(
    ("keys", "options", "bytes_per_token", "chosen"),
    [
        ({}, {}, 1000, ("off", 128)),
        ({}, {}, 20_000, ("off", 32)),
        ({}, {}, 40_000, ("auto", 128)),
        ({}, {"ubatch": 512}, 1000, ("auto", 512)),
        ({}, {"ubatch": 8}, 100_000, ("off", 8)),
        ({"flash_attention": "on"}, {}, 1000, ("on", 128)),
        ({"flash_attention": False}, {}, 40_000, ("off", 128)),
        ({}, {"flash_attention": "ON"}, 1000, ("on", 128)),
        ({"cache_type_v": "q8_0"}, {}, 1000, ("on", 128)),
        ({"cache_type_k": "q8_0", "cache_type_v": "BF16"}, {}, 1000, ("off", 128)),
    ],
)
def test_attention_on_the_cpu(keys, options, bytes_per_token, chosen):
    config = ModelConfig(gpu_layers=0, **keys)
    assert params.attention(config, LlamaOptions(**options), bytes_per_token, 1_000_000) == chosen


def test_memory_for_logits_is_bounded():
    assert params.num_outputs(2048, 8, 0) == 64
    assert params.num_outputs(150_000, 8, 0) == 27
    assert params.num_outputs(1 << 20, 8, 4) == 40
    assert params.num_outputs(0, 3, 0) == 3


def test_one_cache_for_all_requests():
    with LOG.kept() as log:
        backend, loaded = load(Listener(), parallel=4, context_size=512, options={"kv_unified": True})
        backend.close()
    assert (loaded.slots, loaded.context_size) == (4, 512)
    assert any("512 cells" in text for _, text in log)


def test_fill_in_the_middle_needs_all_three_tokens(tiny, started):
    _, loaded, _ = started
    assert loaded.fim is None and tiny("plain").vocab.fill_in == (api.NO_TOKEN,) * 3
    assert tiny("filling").vocab.fill_in == (297, 296, 298)
    assert loaded.capabilities == {"generate", "logprobs", "constraints"}


def test_threads_follow_the_size_of_the_weights():
    assert params.default_threads(5_000_000) == 1
    assert params.default_threads(10**12) == params.cores() >= 1


def test_slots_follow_the_memory():
    assert params.default_slots(1) == 8
    assert params.default_slots(1 << 60) == 1


def test_load_keys_are_load_keys():
    spec = specs()["llama-cpp"]
    assert spec.keys <= LOAD_KEYS | {f"parameters.{key}" for key in LOAD_PARAMETERS}
    assert {canonical(name) for name in ("llama", "LlamaCpp", "go-llama", "BUILTINLLAMA", "llama.cpp")} == {"llama-cpp"}
