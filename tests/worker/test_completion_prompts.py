"""From completion requests to jobs: prompts of every form, echo, logprobs, suffix, nothing to generate."""

from __future__ import annotations

import pytest

from llmgallery.backends.base import Loaded
from llmgallery.backends.echo import vocab
from llmgallery.backends.echo.backend import EchoBackend
from llmgallery.config.model import ModelConfig, OnUnsupported, Template
from llmgallery.core.errors import ContextExceeded, InvalidField, UnsupportedField
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest, CompletionRequest
from llmgallery.core.sampling import Sampling
from llmgallery.worker.prepare import MOST_LOGPROBS, Prepared, check_scores, prepare

MARKS = vocab.GAP
PLAIN = Loaded(context_size=20, vocab_size=vocab.SIZE, chat_template=vocab.CHAT_TEMPLATE)
FILLING = Loaded(context_size=20, vocab_size=vocab.SIZE, fim=MARKS)
BOS = vocab.TOOL


class WithBos(EchoBackend):
    """echo's vocabulary with a BOS."""

    def tokenize(self, text: str, *, special: bool, bos: bool) -> list[int]:
        return [BOS] * bos + super().tokenize(text, special=special, bos=False)


def prepared(request: CompletionRequest, loaded: Loaded = PLAIN, config: ModelConfig | None = None) -> Prepared:
    return prepare(5, request, config or ModelConfig(), WithBos(), loaded)


@pytest.mark.parametrize("prompt", ["ab", (97, 98)])
def test_a_prompt_may_be_text_or_tokens(prompt: str | tuple[int, ...]) -> None:
    ready = prepared(CompletionRequest(prompt, stop=("x", "y", "x")))
    assert (ready.job.id, list(ready.job.prompt), ready.stops, ready.preamble) == (5, [97, 98], ("x", "y"), "")
    assert (ready.job.logprobs, ready.job.prompt_logprobs) == (None, False)


@pytest.mark.parametrize("prompt", ["ab", (97, 98)])
def test_an_echo_is_the_prompt_s_text_and_with_logprobs_its_tokens_are_scored(prompt: str | tuple[int, ...]) -> None:
    assert not prepared(CompletionRequest(prompt, echo=True)).job.prompt_logprobs
    ready = prepared(CompletionRequest(prompt, echo=True, logprobs=3))
    assert (ready.preamble, ready.job.logprobs, ready.job.prompt_logprobs) == ("ab", 3, True)
    assert list(ready.job.prompt)[ready.echoed] == [97, 98]
    assert not prepared(CompletionRequest(prompt, logprobs=3)).job.prompt_logprobs


def test_a_template_writes_the_prompt_and_an_echo_shows_what_it_wrote() -> None:
    model = ModelConfig(template=Template(completion="<{{.Input}}>", reply_prefix="!"), stopwords=["END"])
    ready = prepared(CompletionRequest("ab", echo=True, logprobs=1, stop=("x",)), config=model)
    assert (bytes(ready.job.prompt), ready.preamble, ready.stops) == (b"<ab>", "<ab>!", ("x", "END"))
    assert prepared(CompletionRequest((97, 98), stop=("x",)), config=model).stops == ("x",)
    bos = Loaded(context_size=20, vocab_size=vocab.SIZE, bos="<|tool|>", add_bos=True)
    begun = ModelConfig(template=Template(completion="<|tool|>{{.Input}}"))
    assert list(prepared(CompletionRequest("a"), bos, begun).job.prompt) == [BOS, 97]
    assert list(prepared(CompletionRequest("a"), bos, ModelConfig()).job.prompt) == [BOS, 97]


def test_an_edit_that_does_not_fit_is_its_input_s_fault() -> None:
    for text, kind in (("x" * 30, ContextExceeded), ("", InvalidField)):
        with pytest.raises(kind) as caught:
            prepared(CompletionRequest(text, instruction="do"), config=ModelConfig(template=Template(edit="{{.Input}}")))
        assert caught.value.field == "input"


def test_a_template_that_fails_is_told_and_the_prompt_goes_as_it_came() -> None:
    ready = prepared(CompletionRequest("ab"), config=ModelConfig(template=Template(completion="{{.No}}")))
    assert bytes(ready.job.prompt) == b"ab" and "template.completion, line 1" in ready.warnings[0]


def test_a_chat_s_logprobs_reach_its_job() -> None:
    ready = prepare(1, ChatRequest((say("user", "x"),), logprobs=2), ModelConfig(), EchoBackend(), PLAIN)
    assert (ready.job.logprobs, ready.job.prompt_logprobs, ready.preamble) == (2, False, "")


def test_a_prompt_may_fill_the_context_when_nothing_is_to_be_generated() -> None:
    nothing = Sampling(max_tokens=0)
    assert len(prepared(CompletionRequest("x" * 20, nothing)).job.prompt) == 20
    for length, sampling in ((20, Sampling()), (21, nothing)):
        with pytest.raises(ContextExceeded, match=f"{length} tokens, but the context holds 20") as caught:
            prepared(CompletionRequest("x" * length, sampling))
        assert caught.value.field == "prompt"


def test_no_limit_is_none() -> None:
    assert prepared(CompletionRequest("x", Sampling(max_tokens=-1))).job.sampling.max_tokens is None
    assert prepared(CompletionRequest("x", Sampling(max_tokens=0))).job.sampling.max_tokens == 0


@pytest.mark.parametrize("prompt", ["ab", (97, 98)])
@pytest.mark.parametrize("add_bos", [False, True])
def test_a_gap_is_marked_around_prefix_and_suffix(prompt: str | tuple[int, ...], add_bos: bool) -> None:
    loaded = Loaded(context_size=20, vocab_size=vocab.SIZE, fim=MARKS, add_bos=add_bos)
    ready = prepared(CompletionRequest(prompt, suffix="yz", echo=True, logprobs=1), loaded)
    assert list(ready.job.prompt) == [BOS] * add_bos + [MARKS[0], 97, 98, MARKS[1], 121, 122, MARKS[2]]
    assert list(ready.job.prompt)[ready.echoed] == [97, 98]
    assert ready.preamble == "ab"


def test_bos_is_not_doubled_and_stands_before_the_mark() -> None:
    loaded = Loaded(context_size=20, vocab_size=vocab.SIZE, fim=MARKS, add_bos=True)
    ready = prepared(CompletionRequest((BOS, 97), suffix="z"), loaded)
    assert list(ready.job.prompt) == [BOS, MARKS[0], 97, MARKS[1], 122, MARKS[2]]


def test_texts_around_a_gap_hold_no_control_tokens() -> None:
    ready = prepared(CompletionRequest("<|end|>", suffix="<|"), FILLING)
    assert list(ready.job.prompt) == [MARKS[0], *b"<|end|>", MARKS[1], *b"<|", MARKS[2]]


def test_a_gap_may_be_at_the_beginning() -> None:
    assert list(prepared(CompletionRequest("", suffix="z"), FILLING).job.prompt) == [MARKS[0], MARKS[1], 122, MARKS[2]]
    with pytest.raises(InvalidField, match="the prompt is empty"):
        prepared(CompletionRequest("", suffix=""), FILLING)


def test_prefix_and_suffix_and_marks_fit_together() -> None:
    assert len(prepared(CompletionRequest("x" * 8, suffix="y" * 8), FILLING).job.prompt) == 19
    with pytest.raises(ContextExceeded, match="20 tokens"):
        prepared(CompletionRequest("x" * 8, suffix="y" * 9), FILLING)
    with pytest.raises(ContextExceeded, match="shorten the suffix") as caught:
        prepared(CompletionRequest("x", suffix="y" * 20_000), FILLING)
    assert caught.value.field == "suffix"
    with pytest.raises(InvalidField, match="token 9999 is not in the vocabulary"):
        prepared(CompletionRequest((9999,), suffix="y"), FILLING)


def test_a_model_without_those_tokens_refuses_warns_or_ignores() -> None:
    request = CompletionRequest("ab", suffix="z")
    with pytest.raises(UnsupportedField, match="suffix: this model cannot fill in text") as caught:
        prepared(request)
    assert caught.value.field == "suffix"
    warned = prepared(request, config=ModelConfig(on_unsupported=OnUnsupported(demands="warn")))
    assert list(warned.job.prompt) == [97, 98]
    assert len(warned.warnings) == 1 and warned.warnings[0].startswith("suffix was ignored")
    assert prepared(request, config=ModelConfig(on_unsupported=OnUnsupported(demands="ignore"))).warnings == ()


def test_more_logprobs_than_an_answer_can_carry_are_refused_with_what_would_fit() -> None:
    check_scores(MOST_LOGPROBS // 6, 5)
    with pytest.raises(InvalidField, match=r"20 for each of 100000 echoed tokens .* logprobs of 9 at most") as caught:
        check_scores(100_000, 20)
    assert caught.value.field == "logprobs"
    with pytest.raises(InvalidField, match="shorten the prompt"):
        check_scores(MOST_LOGPROBS + 1, 0)
