"""stop_strings of generate(): found wherever they cross tokens, in the time that they take to read."""

import pytest
import torch
from tiny_transformers import byte_tokenizer

from llmgallery.backends.transformers.generation.stop_texts import StopTexts
from llmgallery.backends.transformers.weights.vocabulary import HubVocabulary

PROMPT = "The capital of "


@pytest.fixture(scope="module")
def vocabulary() -> HubVocabulary:
    return HubVocabulary(byte_tokenizer())


def ended(vocabulary: HubVocabulary, text: str, stops: list[str], *, prompt: str = PROMPT, step: int = 1) -> int | None:
    """How many tokens of `text` there were when it ended, `step` by `step`; None = it did not."""
    before, after = (vocabulary.tokenize(each, special=False, bos=False) for each in (prompt, text))
    stop = StopTexts(stops, vocabulary, len(before))
    for count in range(step, len(after) + 1, step):
        if bool(stop(torch.tensor([before + after[:count]]), None)[0]):
            return count
    return None


def test_a_text_ends_with_its_last_byte(vocabulary: HubVocabulary) -> None:
    text = "France is Paris. Grüße 🎉 to all"
    tokens = vocabulary.tokenize(text, special=False, bos=False)
    for stop in ("France", "s Par", "ris.", "ß", "🎉", "🎉 t"):
        count = ended(vocabulary, text, ["nowhere", stop])
        assert count is not None
        said = b"".join(map(vocabulary.written, tokens[:count]))
        assert stop.encode() in said
        assert stop.encode() not in b"".join(map(vocabulary.written, tokens[: count - 1]))


def test_the_prompt_may_begin_it_but_not_hold_it(vocabulary: HubVocabulary) -> None:
    assert ended(vocabulary, "France", ["capital"]) is None
    assert ended(vocabulary, "France", ["of France"]) is not None
    assert ended(vocabulary, "France", ["", "of "]) is None


def test_guessed_tokens_hide_none(vocabulary: HubVocabulary) -> None:
    assert ended(vocabulary, "France is Paris. What is it?", ["Fra"], step=4) == 4


def test_rows_end_by_themselves(vocabulary: HubVocabulary) -> None:
    first, second = (vocabulary.tokenize(text, special=False, bos=False) for text in ("a.", "b,"))
    assert StopTexts(["."], vocabulary, 0)(torch.tensor([first, second]), None).tolist() == [True, False]


def test_many_and_long_texts_cost_little(vocabulary: HubVocabulary) -> None:
    stops = [f"never {number}" for number in range(2000)] + ["x" * 100_000]
    assert ended(vocabulary, "France is Paris", stops) is None
