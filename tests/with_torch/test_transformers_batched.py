"""Generation through generate(): batches, arguments, models without continuous batching; compared with generate() itself."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from generate_bench import CONTEXT, DEADLINE, PROMPTS, Bench
from tiny_transformers import make_llama
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MambaConfig,
    MambaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from llmgallery.core.errors import InvalidField, UnsupportedField, WorkerDied
from llmgallery.core.jobs import Output
from llmgallery.core.sampling import Sampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def llama(folder: Path) -> Iterator[Bench]:
    bench = Bench(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder))
    yield bench
    bench.engine.close()


def mamba(tokenizer: Any) -> MambaForCausalLM:
    torch.manual_seed(1)
    return MambaForCausalLM(
        MambaConfig(
            vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, state_size=8, pad_token_id=0, eos_token_id=None
        )
    )


def test_greedy_is_that_of_generate(llama: Bench) -> None:
    for prompt in PROMPTS:
        assert llama.ask(prompt) == llama.generate(prompt)


def test_jobs_that_come_together_share_batches_and_change_nothing(llama: Bench) -> None:
    for id, prompt in enumerate(PROMPTS):
        llama.submit(id, prompt)
    llama.told.wait(*range(len(PROMPTS)))
    for id, prompt in enumerate(PROMPTS):
        assert llama.told.tokens(id) == llama.generate(prompt)
        assert llama.told.ends(id) in (["stop"], ["length"])
        assert llama.told.text(id) == llama.vocabulary.detokenize(llama.told.tokens(id))
    assert max(each.sequences for each in llama.told.stats) >= len(PROMPTS) - 1
    numbers = [each.step for each in llama.told.stats if each.sequences]
    assert numbers == sorted(set(numbers))


def test_beams_are_those_of_generate(llama: Bench) -> None:
    for prompt in PROMPTS[:3]:
        sampling = Sampling(max_tokens=16, extra={"num_beams": 2})
        assert llama.ask(prompt, sampling) == llama.generate(prompt, num_beams=2, max_new_tokens=16)


@pytest.mark.parametrize(
    "arguments",
    [
        {"no_repeat_ngram_size": 2},
        {"min_new_tokens": 12, "suppress_tokens": [7, 8]},
        {"bad_words_ids": [[40], [41, 42]]},
        {"repetition_penalty": 1.8},
        {"prompt_lookup_num_tokens": 3},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
        {"encoder_repetition_penalty": 1.5, "remove_invalid_values": True},
        {"guidance_scale": 1.5},
        {"exponential_decay_length_penalty": [4, 1.5]},
        {"assistant_early_exit": 1},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_arguments_mean_what_they_mean_to_generate(llama: Bench, arguments: dict[str, Any]) -> None:
    prompt = "One, two, three"
    assert llama.ask(prompt, Sampling(temperature=0, max_tokens=24, extra=arguments)) == llama.generate(prompt, **arguments)


def test_a_recurrent_model_answers_in_batches(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bench = Bench(mamba(tokenizer), tokenizer)
    for id, prompt in enumerate(PROMPTS):
        bench.submit(id, prompt)
    bench.told.wait(*range(len(PROMPTS)))
    for id, prompt in enumerate(PROMPTS):
        assert bench.told.tokens(id) == bench.generate(prompt)
    bench.engine.close()


def test_an_encoder_decoder_answers(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(2)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=64, d_kv=32, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0,
        pad_token_id=0, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    bench = Bench(T5ForConditionalGeneration(config), tokenizer)
    for id, prompt in enumerate(PROMPTS):
        bench.submit(id, prompt)
    bench.told.wait(*range(len(PROMPTS)))
    for id, prompt in enumerate(PROMPTS):
        assert bench.told.tokens(id) == bench.generate(prompt)
    with pytest.raises(UnsupportedField, match="echo"):
        bench.submit(99, "One", logprobs=0, prompt_logprobs=True)
    bench.engine.close()


def test_rows_that_would_harm_each_other_take_turns(folder: Path) -> None:
    """RWKV reads padding, and transformers continues batches of it wrongly."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(3)
    bench = Bench(
        RwkvForCausalLM(RwkvConfig(vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, context_length=CONTEXT)),
        tokenizer,
    )
    for id, prompt in enumerate((*PROMPTS, *PROMPTS)):
        bench.submit(id, prompt)
    bench.told.wait(*range(2 * len(PROMPTS)))
    for id, prompt in enumerate((*PROMPTS, *PROMPTS)):
        assert bench.told.tokens(id) == bench.generate(prompt)
    assert max(each.sequences for each in bench.told.stats) == 1
    bench.engine.close()


def test_a_job_joins_a_batch_that_runs(llama: Bench) -> None:
    llama.submit(1, PROMPTS[0], Sampling(temperature=0, max_tokens=150, ignore_eos=True))
    llama.told.wait_for_tokens(1, 20)
    llama.submit(2, PROMPTS[1], Sampling(temperature=0, max_tokens=20, ignore_eos=True))
    llama.told.wait(1, 2)
    assert 2 in {each.sequences for each in llama.told.stats}
    assert llama.told.tokens(1) == llama.generate(PROMPTS[0], max_new_tokens=150, suppress_tokens=sorted(llama.vocabulary.ends))
    first = [output.id for output in llama.told.outputs]
    assert first.index(2) < len(first) - 1 - first[::-1].index(1), "it waited for the end of the first"


def test_beams_and_plain_jobs_take_turns(llama: Bench) -> None:
    llama.submit(1, PROMPTS[0], Sampling(temperature=0, max_tokens=150, ignore_eos=True))
    llama.submit(2, PROMPTS[1], Sampling(max_tokens=8, extra={"num_beams": 2}))
    llama.told.wait(2)
    assert not llama.told.ends(1)
    llama.told.wait(1)


def test_a_cancelled_job_ends_within_a_step(llama: Bench) -> None:
    def cancel(outputs: Sequence[Output]) -> None:
        if len(llama.told.tokens(1)) >= 3:
            llama.engine.cancel(1)

    llama.told.on_step = cancel
    llama.submit(1, PROMPTS[0], Sampling(temperature=0, max_tokens=200, ignore_eos=True))
    llama.submit(2, PROMPTS[1], Sampling(temperature=0, max_tokens=10, ignore_eos=True))
    llama.told.wait(1, 2)
    assert llama.told.ends(1) == ["cancelled"]
    assert len(llama.told.tokens(1)) == 3
    assert llama.told.ends(2) == ["length"]
    assert len(llama.told.tokens(2)) == 10


def test_beams_can_be_cancelled(llama: Bench) -> None:
    llama.told.on_step = lambda outputs: llama.engine.cancel(1)
    llama.submit(1, PROMPTS[0], Sampling(max_tokens=200, ignore_eos=True, extra={"num_beams": 2}))
    llama.told.wait(1)
    assert llama.told.ends(1) == ["cancelled"]
    assert llama.told.tokens(1) == []


def test_who_waits_for_a_slot_can_be_cancelled(folder: Path) -> None:
    bench = Bench(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), slots=1)
    bench.submit(1, PROMPTS[0], Sampling(temperature=0, max_tokens=100, ignore_eos=True))
    bench.told.wait_for_tokens(1, 1)
    bench.submit(2, PROMPTS[1])
    bench.submit(3, PROMPTS[2])
    bench.engine.cancel(2)
    bench.told.wait(2)
    assert not bench.told.ends(1)
    bench.told.wait(1, 3)
    assert [bench.told.ends(id) for id in (1, 2)] == [["length"], ["cancelled"]]
    assert max(each.sequences for each in bench.told.stats) == 1
    assert max(each.waiting for each in bench.told.stats) == 2
    bench.engine.close()


def test_closing_ends_every_job_once(llama: Bench) -> None:
    for id in range(12):
        extra = {"num_beams": 2} if id % 3 == 0 else {}
        llama.submit(id, PROMPTS[id % 5], Sampling(temperature=0, max_tokens=200, ignore_eos=True, extra=extra))
    llama.told.wait_for_tokens(1, 1)
    llama.engine.close()
    assert [llama.told.ends(id) for id in range(12)] == [["cancelled"]] * 12
    with pytest.raises(WorkerDied):
        llama.submit(99, "One")
    llama.engine.close()


def test_seeds_repeat_an_answer(llama: Bench) -> None:
    warm = Sampling(temperature=1.2, seed=7, max_tokens=20)
    assert llama.ask(PROMPTS[0], warm) == llama.ask(PROMPTS[0], warm)
    theirs = Sampling(temperature=1.2, seed=7, max_tokens=20, extra={"epsilon_cutoff": 0.0001})
    assert llama.ask(PROMPTS[0], theirs) == llama.ask(PROMPTS[0], theirs)
    assert llama.ask(PROMPTS[0], theirs) != llama.ask(PROMPTS[0], Sampling(**{**WARM, "seed": 8, "extra": theirs.extra}))


WARM = {"temperature": 1.2, "seed": 7, "max_tokens": 20}


def test_log_probabilities_are_the_models_own_beside_arguments(llama: Bench) -> None:
    prompt = "One, two, three"
    llama.submit(1, prompt, Sampling(temperature=0, max_tokens=6, extra={"no_repeat_ngram_size": 2}), logprobs=3)
    llama.told.wait(1)
    ids = llama.ids(prompt)
    tokens = llama.told.tokens(1)
    with torch.no_grad():
        logits = torch.log_softmax(llama.model(torch.tensor([[*ids, *tokens]])).logits[0].float(), -1)
    scores = [score for output in llama.told.of(1) for score in output.logprobs]
    assert [score.token for score in scores] == tokens
    for place, score in enumerate(scores):
        row = logits[len(ids) - 1 + place]
        assert score.logprob == pytest.approx(float(row[score.token]), abs=1e-3)
        assert [each.token for each in score.top] == row.topk(3).indices.tolist()


def test_a_prompt_is_scored(llama: Bench) -> None:
    llama.submit(1, PROMPTS[0], Sampling(max_tokens=0), logprobs=0, prompt_logprobs=True)
    llama.submit(2, PROMPTS[0], Sampling(temperature=0, max_tokens=3), logprobs=0, prompt_logprobs=True)
    llama.told.wait(1, 2)
    ids = llama.ids(PROMPTS[0])
    with torch.no_grad():
        logits = torch.log_softmax(llama.model(torch.tensor([ids])).logits[0].float(), -1)
    for id in (1, 2):
        first = llama.told.of(id)[0]
        assert [score.token for score in first.prompt_logprobs] == ids
        for place, score in enumerate(first.prompt_logprobs[1:]):
            assert score.logprob == pytest.approx(float(logits[place][score.token]), abs=1e-3)
    assert llama.told.ends(1) == ["length"]
    assert llama.told.tokens(1) == []


class OnlyDigits:
    """A constraint: the bytes of three digits, then the end."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._came = 0

    def mask(self) -> bytes:
        vocabulary = self._bench.vocabulary
        digits = [token for token in range(vocabulary.size) if vocabulary.written(token) in (b"1", b"2", b"3")]
        allowed = digits if self._came < 3 else sorted(vocabulary.ends)[:1]
        bits = bytearray(4 * (-(-vocabulary.size // 32)))
        for token in allowed:
            bits[token // 8] |= 1 << token % 8
        return bytes(bits)

    def accept(self, token: int) -> None:
        self._came += 1

    def forced(self) -> Sequence[int]:
        return ()


def test_a_constraint_holds(llama: Bench) -> None:
    for id in range(3):
        llama.submit(id, PROMPTS[id], constraint=OnlyDigits(llama))
    llama.submit(3, PROMPTS[0], Sampling(temperature=0, extra={"min_new_tokens": 2}), constraint=OnlyDigits(llama))
    llama.told.wait(*range(4))
    for id in range(4):
        assert llama.told.ends(id) == ["stop"]
        assert len(llama.told.text(id)) == 3
        assert set(llama.told.text(id)) <= set("123")


class Forcing:
    """A constraint that leaves no choice: these tokens, then one of all, then these again, then the end."""

    def __init__(self, tokens: list[int], end: int, size: int) -> None:
        self._script: list[int | None] = [*tokens, None, *tokens, end]
        self._size = size

    def mask(self) -> bytes:
        return bytes([255]) * (4 * -(-self._size // 32))

    def accept(self, token: int) -> None:
        assert self._script.pop(0) in (None, token)

    def forced(self) -> Sequence[int]:
        count = next((place for place, token in enumerate(self._script) if token is None), len(self._script))
        return [token for token in self._script[:count] if token is not None]


@pytest.mark.parametrize("together", [1, 3])
def test_what_a_constraint_forces_is_told_at_once(llama: Bench, together: int) -> None:
    forced = llama.ids("One, two")[1:]
    for id in range(together):
        constraint = Forcing(forced, sorted(llama.vocabulary.ends)[0], llama.vocabulary.size)
        llama.submit(id, PROMPTS[id], constraint=constraint)
    llama.told.wait(*range(together))
    for id in range(together):
        tokens = llama.told.tokens(id)
        assert tokens == [*forced, tokens[len(forced)], *forced]
        assert llama.told.of(id)[0].tokens == tuple(forced)
        assert llama.told.ends(id) == ["stop"]
        prompt = [*llama.ids(PROMPTS[id]), *forced]
        with torch.no_grad():
            assert tokens[len(forced)] == int(llama.model(torch.tensor([prompt])).logits[0, -1].argmax())


def test_a_constraint_that_arguments_make_impossible_is_that_jobs_error(llama: Bench) -> None:
    digits = [token for token in range(llama.vocabulary.size) if llama.vocabulary.written(token) in (b"1", b"2", b"3")]
    llama.submit(1, PROMPTS[0], Sampling(extra={"suppress_tokens": digits}), constraint=OnlyDigits(llama))
    llama.told.wait(1)
    assert llama.told.ends(1) == ["error"]
    assert "allow" in llama.told.of(1)[-1].message


def test_what_generate_refuses_ends_one_job(llama: Bench) -> None:
    llama.submit(1, PROMPTS[0], Sampling(temperature=0, extra={"watermarking_config": {"greenlist_ratio": 7}}))
    llama.submit(2, PROMPTS[0])
    llama.told.wait(1, 2)
    assert llama.told.ends(1) == ["error"]
    assert "watermarking_config" in llama.told.of(1)[-1].message
    assert "greenlist_ratio" in llama.told.of(1)[-1].message
    error = llama.told.of(1)[-1].error
    assert error is not None and error.kind == "InvalidField" and error.field == "watermarking_config"
    assert llama.told.tokens(2) == llama.generate(PROMPTS[0])


@pytest.mark.parametrize(
    "arguments",
    [
        {"assistant_early_exit": 1},
        {"cache_implementation": "quantized"},
        {"use_mtp": True},
        {"cache_implementation": "offloaded"},
        {"prefill_chunk_size": 2, "no_repeat_ngram_size": 3},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_whatever_is_asked_for_the_engine_goes_on(llama: Bench, arguments: dict[str, Any]) -> None:
    llama.submit(1, PROMPTS[0], Sampling(temperature=0, max_tokens=8, extra=arguments))
    llama.told.wait(1)
    assert llama.told.ends(1) in (["stop"], ["length"], ["error"])
    assert llama.ask(PROMPTS[1]) == llama.generate(PROMPTS[1])


def test_generation_config_json_chooses_nothing(folder: Path) -> None:
    """What is in it would be refused by generate() for every request, or is not heeded in the other engine either."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, value in {"penalty_alpha": 0.6, "stop_strings": ["e"], "forced_eos_token_id": 9, "guidance_scale": 1.5}.items():
        setattr(model.generation_config, name, value)
    bench = Bench(model, AutoTokenizer.from_pretrained(folder))
    assert bench.ask(PROMPTS[0]) == bench.generate(PROMPTS[0])
    bench.engine.close()


def test_only_one_job_has_many_beams_at_a_time(llama: Bench) -> None:
    for id in range(3):
        llama.submit(id, PROMPTS[id], Sampling(max_tokens=6, extra={"num_beams": 4}))
    llama.told.wait(0, 1, 2)
    assert {each.sequences for each in llama.told.stats} <= {0, 1}
    for id in range(3):
        assert llama.told.tokens(id) == llama.generate(PROMPTS[id], num_beams=4, max_new_tokens=6)


def test_an_unknown_argument_is_refused_at_once(llama: Bench) -> None:
    with pytest.raises(InvalidField, match="num_beams"):
        llama.submit(1, PROMPTS[0], Sampling(extra={"num_beam": 2}))
    assert not llama.told.outputs


def test_other_ends_end_an_answer(llama: Bench) -> None:
    whole = llama.ask(PROMPTS[0], Sampling(temperature=0, max_tokens=24, ignore_eos=True))
    third = whole[2]
    told = llama.ask(PROMPTS[0], Sampling(temperature=0, max_tokens=24, ignore_eos=True, extra={"eos_token_id": third}))
    assert told == whole[: whole.index(third) + 1]
    assert llama.told.outputs[-1].finish == "stop"


def test_stop_strings_end_an_answer(llama: Bench) -> None:
    whole = Sampling(temperature=0, max_tokens=24, ignore_eos=True)
    llama.submit(1, PROMPTS[1], whole)
    llama.told.wait(1)
    stop = llama.told.text(1)[3:5]
    for id, more in ((2, {}), (3, {"num_beams": 1, "prompt_lookup_num_tokens": 2})):
        llama.submit(id, PROMPTS[1], Sampling(temperature=0, max_tokens=24, extra={"stop_strings": [stop], **more}))
        llama.told.wait(id)
        assert llama.told.ends(id) == ["stop"]
        assert stop in llama.told.text(id)
        assert len(llama.told.tokens(id)) < len(llama.told.tokens(1))


def test_the_yamls_arguments_hold_for_all_jobs(folder: Path) -> None:
    bench = Bench(
        AutoModelForCausalLM.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        generate={"num_beams": 2, "max_new_tokens": 9},
    )
    assert bench.ask(PROMPTS[0], Sampling()) == bench.generate(PROMPTS[0], num_beams=2, max_new_tokens=9)
    assert len(bench.ask(PROMPTS[0], Sampling(max_tokens=4, ignore_eos=True))) == 4
    plain = Sampling(temperature=0, max_tokens=9, extra={"num_beams": 1})
    assert bench.ask(PROMPTS[0], plain) == bench.generate(PROMPTS[0], max_new_tokens=9)
    bench.engine.close()


def test_a_broken_model_ends_all_jobs_and_is_told(llama: Bench) -> None:
    class Broken(RuntimeError): ...

    def fail(module: Any, inputs: Any) -> None:
        raise Broken("the device is gone")

    llama.model.register_forward_pre_hook(fail)
    llama.submit(1, PROMPTS[0])
    with llama.told.changed:
        assert llama.told.changed.wait_for(lambda: llama.told.errors, DEADLINE)
    assert isinstance(llama.told.errors[0], Broken)
    assert llama.told.ends(1) == ["error"]


def test_seeds_hold_beside_others(llama: Bench) -> None:
    """transformers draws from torch's one generator."""

    def drawn(seed: int) -> Sampling:
        return Sampling(temperature=1.0, max_tokens=16, ignore_eos=True, seed=seed, extra={"top_h": 0.9})

    alone = [llama.ask(PROMPTS[0], drawn(seed)) for seed in range(3)]
    for id in range(3):
        llama.submit(id, PROMPTS[0], drawn(id))
    llama.told.wait(0, 1, 2)
    assert [llama.told.tokens(id) for id in range(3)] == alone
    assert alone[0] != alone[1]
