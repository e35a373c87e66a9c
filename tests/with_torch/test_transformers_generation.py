"""Generation by transformers' continuous batching: what comes is what the model says by itself, whoever else is in the batch."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from driving_transformers import Driven, driven
from tiny_transformers import EOS, byte_tokenizer, make_llama
from transformers import MambaConfig, MambaForCausalLM

from llmgallery.core.errors import LoadError, UnsupportedField, WorkerDied
from llmgallery.core.sampling import Sampling

GREEDY = Sampling(temperature=0, max_tokens=40)
PROMPTS = (
    "Hello", "What is the capital of France?", "Grüße aus Köln", "one, two, three, four, five, six, seven, eight", "{", "42",
    "def answer(question: str) -> int:", "你好，世界",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def llama(folder: Path) -> Iterator[Driven]:
    with driven(folder) as made:
        yield made


def alone(llama: Driven, prompt: list[int], length: int) -> list[int]:
    """What generate() makes of it, with its ends."""
    ids = torch.tensor([prompt])
    ends = sorted(llama.backend._vocab().ends)
    with llama.backend._setting.turns:
        made = llama.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )
    return made[0, len(prompt) :].tolist()


def logits_of(llama: Driven, tokens: list[int]) -> np.ndarray:
    with torch.no_grad(), llama.backend._setting.turns:
        return llama.model(torch.tensor([tokens])).logits[0].float().numpy()


def test_what_is_loaded_is_told(llama: Driven, folder: Path) -> None:
    loaded = llama.loaded
    assert loaded.details["batching"] == "continuous"
    assert (loaded.context_size, loaded.slots, loaded.vocab_size) == (128, 8, 512)
    assert loaded.capabilities == {"generate", "logprobs", "prompt_logprobs", "constraints", "seed"}
    assert loaded.add_bos and loaded.bos == "<|begin|>" and loaded.eos == "<|im_end|>"
    assert loaded.chat_template is not None and "add_generation_prompt" in loaded.chat_template
    weights = (folder / "model.safetensors").stat().st_size
    assert loaded.memory_bytes > weights * 0.9 + 8 * 128 * 2 * 2 * 64 * 4
    assert llama.told.fractions == sorted(llama.told.fractions) and llama.told.fractions[-1] == 1.0


@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_greedy_is_generates_own(llama: Driven, prompt: str) -> None:
    id = llama.run(prompt, GREEDY)
    tokens = llama.tokens_of(prompt)
    expected = alone(llama, tokens, 40)
    output = llama.told.last(id)
    ended = expected[-1] in llama.backend._vocab().ends
    assert llama.told.tokens(id) == (expected[:-1] if ended else expected)
    assert output.finish == ("stop" if ended else "length")
    assert output.usage.completion_tokens == len(expected) and output.usage.prompt_tokens == len(tokens)
    assert llama.told.text(id) == llama.backend.detokenize(expected)


def test_greedy_in_a_batch_of_eight_is_too(llama: Driven) -> None:
    before = len(llama.told.steps)
    ids = [llama.submit(prompt, GREEDY) for prompt in PROMPTS]
    llama.told.wait_for_end(*ids)
    for id, prompt in zip(ids, PROMPTS, strict=True):
        expected = alone(llama, llama.tokens_of(prompt), 40)
        told = llama.told.tokens(id)
        assert told == expected[: len(told)] and len(told) >= len(expected) - 1
    steps = llama.told.steps[before:]
    assert max(step.sequences for step in steps) == 8
    assert [step.step for step in steps] == sorted({step.step for step in steps})
    assert sum(step.tokens for step in steps) >= sum(len(llama.tokens_of(prompt)) for prompt in PROMPTS)


def test_more_requests_than_slots_wait_and_are_served(llama: Driven) -> None:
    ids = [llama.submit(f"{number}", Sampling(temperature=0, max_tokens=6)) for number in range(30)]
    llama.told.wait_for_end(*ids)
    assert max(step.waiting for step in llama.told.steps) >= 20
    assert all(llama.told.finishes(id) in (["length"], ["stop"]) for id in ids)


def test_a_small_cache_serves_many_different_prompts(folder: Path) -> None:
    """What is kept for later prompts must give way to new ones."""
    with driven(folder, context_size=64, parallel=2) as small:
        for number in range(40):
            id = small.run([5 + (number * 7 + place * 11) % 500 for place in range(60)], Sampling(temperature=0, max_tokens=4))
            assert small.told.last(id).finish in ("length", "stop")


def test_a_prefix_that_was_computed_is_not_computed_again(llama: Driven) -> None:
    prompt = [5 + place * 13 % 490 for place in range(100)]
    first, second = (llama.told.last(llama.run(prompt, Sampling(temperature=0, max_tokens=5))) for _ in range(2))
    assert first.usage.cached_tokens == 0
    assert 64 <= second.usage.cached_tokens < 100
    assert second.tokens == first.tokens


def test_a_prompt_longer_than_a_step_is_computed_in_parts(folder: Path) -> None:
    with driven(folder, parameters={"batch": 16}) as sliced:
        prompt = [5 + place * 17 % 490 for place in range(90)]
        id = sliced.run(prompt, GREEDY)
        expected = alone(sliced, prompt, 38)
        assert sliced.told.tokens(id) == expected[: len(sliced.told.tokens(id))]
        assert max(step.tokens for step in sliced.told.steps) <= 16


def test_a_full_context_ends_with_length(llama: Driven) -> None:
    prompt = [5 + place % 400 for place in range(120)]
    id = llama.run(prompt, Sampling(temperature=0, ignore_eos=True))
    output = llama.told.last(id)
    assert output.finish == "length" and output.usage.completion_tokens == 8


def test_no_tokens_are_wanted(llama: Driven) -> None:
    id = llama.run("Hello", Sampling(max_tokens=0))
    assert llama.told.finishes(id) == ["length"] and llama.told.tokens(id) == []


def test_an_end_token_ends_and_is_not_told(llama: Driven) -> None:
    end = llama.backend.tokenize(EOS, special=True, bos=False)[0]
    id = llama.run("Hello", Sampling(temperature=0, max_tokens=20, logit_bias={end: 1000.0}))
    output = llama.told.last(id)
    assert (output.finish, output.tokens, output.text, output.usage.completion_tokens) == ("stop", (), "", 1)
    on = llama.run("Hello", Sampling(temperature=0, max_tokens=20, logit_bias={end: 1000.0}, ignore_eos=True))
    assert llama.told.last(on).finish == "length" and end not in llama.told.tokens(on)


def test_text_never_splits_a_character(llama: Driven) -> None:
    """The bytes of 🎉, one token each, one after the other."""
    party = "🎉".encode()
    vocab = llama.backend._vocab()
    by_byte = {vocab.written(token): token for token in range(vocab.size)}
    steps = count()

    class Spells:
        def mask(self) -> bytes:
            place = next(steps)
            token = by_byte[party[place % 4 : place % 4 + 1]]
            words = bytearray(-(-vocab.size // 32) * 4)
            words[token // 8] |= 1 << token % 8
            return bytes(words)

        def accept(self, token: int) -> None: ...

        def forced(self) -> tuple[int, ...]:
            return ()

    id = llama.run("say", Sampling(max_tokens=10), constraint=Spells())
    texts = [output.text for output in llama.told.outputs[id]]
    assert texts == ["", "", "", "🎉", "", "", "", "🎉", "", "\ufffd"]


def test_a_cancelled_job_ends_once_and_frees_its_slot(folder: Path) -> None:
    with driven(folder, parallel=1, context_size=512) as one:
        endless = one.submit("Hello", Sampling(temperature=0, ignore_eos=True))
        waiting = one.submit("Hello", Sampling(temperature=0, max_tokens=3))
        dropped = one.submit("Hello", Sampling(temperature=0, max_tokens=3))
        one.backend.cancel(dropped)
        one.told.wait(lambda: len(one.told.outputs.get(endless, [])) > 3)
        one.backend.cancel(endless)
        one.told.wait_for_end(endless, waiting, dropped)
        assert [one.told.finishes(id) for id in (endless, dropped)] == [["cancelled"], ["cancelled"]]
        assert one.told.finishes(waiting)[0] in ("length", "stop")
        one.backend.cancel(endless)
        one.backend.cancel(12345)
        assert one.told.last(one.run("Hello", GREEDY)).finish in ("length", "stop")
        assert one.told.finishes(endless) == ["cancelled"]


def test_who_hears_an_output_may_cancel_the_job(llama: Driven) -> None:
    def stop_at_second(output: object) -> None:
        if len(llama.told.outputs[llama._id]) == 2:
            llama.backend.cancel(llama._id)

    llama.told.on_output = stop_at_second
    id = llama.run("Hello", Sampling(temperature=0, ignore_eos=True, max_tokens=50))
    llama.told.on_output = lambda output: None
    assert llama.told.finishes(id) == ["cancelled"] and len(llama.told.tokens(id)) == 2


def test_closing_ends_everybody(folder: Path) -> None:
    with driven(folder, parallel=1, context_size=512) as one:
        ids = [one.submit("Hello", Sampling(temperature=0, ignore_eos=True)) for _ in range(3)]
        one.told.wait(lambda: ids[0] in one.told.outputs)
        engine = one.backend._continuous
        one.backend.close()
        assert [one.told.finishes(id) for id in ids] == [["cancelled"]] * 3
        with pytest.raises(WorkerDied):
            engine.submit(None)


def test_a_broken_engine_tells_everybody(folder: Path) -> None:
    made = Driven(folder)

    def break_once(output: object) -> None:
        made.told.on_output = lambda output: None
        raise ZeroDivisionError

    made.told.on_output = break_once
    ids = [made.submit("Hello", GREEDY) for _ in range(2)]
    made.told.wait(lambda: made.told.failure is not None)
    assert isinstance(made.told.failure, ZeroDivisionError)
    assert all(made.told.finishes(id) == ["error"] for id in ids)
    made.backend.close()


def test_log_probabilities_are_those_of_the_raw_logits(llama: Driven) -> None:
    sampling = Sampling(
        temperature=1.7, seed=4, top_k=3, logit_bias={20: 3.0}, repeat_penalty=1.4, max_tokens=12, ignore_eos=True
    )
    id = llama.run("What is", sampling, logprobs=5)
    prompt, tokens = llama.tokens_of("What is"), llama.told.tokens(id)
    rows = torch.log_softmax(torch.tensor(logits_of(llama, [*prompt, *tokens])), -1).numpy()[len(prompt) - 1 :]
    told = [entry for output in llama.told.outputs[id] for entry in output.logprobs]
    assert [entry.token for entry in told] == tokens
    for entry, row in zip(told, rows, strict=False):
        assert entry.logprob == pytest.approx(row[entry.token], abs=1e-4)
        assert [each.token for each in entry.top] == np.argsort(-row, kind="stable")[:5].tolist()


def test_a_prompts_log_probabilities_come_once(llama: Driven) -> None:
    prompt = llama.tokens_of("The capital of France is Paris. " * 4)
    for length in (3, 0):
        id = llama.run(prompt, Sampling(temperature=0, max_tokens=length), logprobs=2, prompt_logprobs=True)
        scores = [entry for output in llama.told.outputs[id] for entry in output.prompt_logprobs]
        rows = torch.log_softmax(torch.tensor(logits_of(llama, prompt)), -1).numpy()
        assert [entry.token for entry in scores] == prompt and scores[0].logprob is None
        assert all(score.logprob == pytest.approx(rows[place][score.token], abs=1e-4) for place, score in enumerate(scores[1:]))
        assert sum(bool(output.prompt_logprobs) for output in llama.told.outputs[id]) == 1
        assert llama.told.finishes(id) == ["length"] and len(llama.told.tokens(id)) == length


def test_several_end_tokens_of_generation_config(llama: Driven) -> None:
    assert {llama.backend._vocab().written(token) for token in llama.backend._vocab().ends} == {b"<|im_end|>", b"<|end_of_text|>"}


def test_one_token_prompts_can_be_scored(llama: Driven) -> None:
    id = llama.run([7], Sampling(temperature=0, max_tokens=1), logprobs=0, prompt_logprobs=True)
    assert [entry.token for entry in llama.told.last(id).prompt_logprobs] == [7]


def test_continuous_batching_can_be_switched_off(folder: Path) -> None:
    with driven(folder, options={"continuous_batching": "off"}) as plain:
        assert plain.loaded.details["batching"].startswith("generate()")
        id = plain.run("Hello", GREEDY)
        assert plain.told.tokens(id) == alone(plain, plain.tokens_of("Hello"), 40)[: len(plain.told.tokens(id))]


def test_eager_attention_is_batched_too_and_generate_runs_beside(folder: Path) -> None:
    with driven(folder, options={"attn_implementation": "eager", "continuous_batching": "on"}) as made:
        assert (made.loaded.details["batching"], made.loaded.details["attention"]) == ("continuous", "eager")
        ids = [made.submit(prompt, GREEDY) for prompt in PROMPTS[:4]]
        beams = made.submit("Hello", Sampling(max_tokens=12, extra={"num_beams": 2}))
        made.told.wait_for_end(*ids, beams)
        assert made.told.finishes(beams)[0] != "error"
        for id, prompt in zip(ids, PROMPTS, strict=False):
            assert made.told.tokens(id) == alone(made, made.tokens_of(prompt), 40)[: len(made.told.tokens(id))]


def test_the_yaml_can_insist_on_continuous_batching(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=512, hidden_size=64, num_hidden_layers=2, state_size=8, eos_token_id=3, pad_token_id=1)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(LoadError, match=r"continuous_batching: on: .*linear_attention"):
        Driven(tmp_path, options={"continuous_batching": "on"})


def test_arguments_of_generate_run_beside_the_continuous_batch(llama: Driven) -> None:
    plain = [llama.submit(prompt, GREEDY) for prompt in PROMPTS[:3]]
    beams = llama.submit("Hello", Sampling(max_tokens=12, extra={"num_beams": 3}))
    llama.told.wait_for_end(*plain, beams)
    tokens = torch.tensor([llama.tokens_of("Hello")])
    ends = sorted(llama.backend._vocab().ends)
    with llama.backend._setting.turns:
        made = llama.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), num_beams=3, max_new_tokens=12, do_sample=False,
            eos_token_id=ends, pad_token_id=ends[0],
        )  # fmt: skip
    expected = [token for token in made[0, tokens.shape[1] :].tolist() if token not in ends]
    assert llama.told.tokens(beams) == expected
    assert llama.told.tokens(plain[0]) == alone(llama, llama.tokens_of("Hello"), 40)[: len(llama.told.tokens(plain[0]))]


def test_vectors_of_a_model_that_generates_are_refused(llama: Driven) -> None:
    with pytest.raises(UnsupportedField, match="embeddings: true"):
        llama.backend.embed(None)
    with pytest.raises(UnsupportedField, match="reranking"):
        llama.backend.rerank(None)
