"""LocalAI's keys that cut answers: the same text however the answer comes in pieces, and no later than need be."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmgallery.chat.cutting import SPACE, Cutter
from llmgallery.chat.rules import STEPS, Allowance
from llmgallery.config.model import ModelConfig
from llmgallery.templates.gotmpl.budget import Limits, guarding
from llmgallery.templates.gotmpl.regexp import compile_regexp

PATTERNS = (
    "a", "ab*", "(?s)<.*>", "(?s)<.*?>", "^a", "a$", "(?m)^a", "(?m)b$", r"\bab\b", "a*", "(a|ab)(c|bcd)?", "b+?c", "", "x|",
    "aa|b", "(?m)a*$", "(.*?)</b", r"\Aab",
)  # fmt: skip


def finetuned(config: ModelConfig, text: str) -> str:
    """What LocalAI makes of a whole answer."""
    with guarding(Limits()):
        for pattern in config.cutstrings:
            text = compile_regexp(pattern).replace_all(text, lambda _: "")
        found = [(text, compile_regexp(pattern).search(text)) for pattern in config.extract_regex]
        text = "".join(text[marks[0] : marks[1]] for text, marks in found if marks) or text
    for prefix in config.trimspace:
        text = text.removeprefix(prefix).strip(SPACE)
    for suffix in config.trimsuffix:
        text = text.removesuffix(suffix).strip(SPACE)
    return text


def cut(config: ModelConfig, *pieces: str) -> list[str]:
    """What goes out with each piece, and at the end."""
    cutter = Cutter(config, Allowance())
    return [*(cutter.feed(piece) for piece in pieces), cutter.finish()]


short = st.text("ab <\n", max_size=3)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(st.sampled_from(PATTERNS), max_size=2),
    st.lists(st.sampled_from(PATTERNS), max_size=1),
    st.lists(short, max_size=2),
    st.lists(short, max_size=2),
    st.lists(st.text("abc<>/ \n", max_size=5), max_size=8),
)
def test_pieces_are_cut_like_the_whole(
    cuts: list[str], extracts: list[str], prefixes: list[str], suffixes: list[str], pieces: list[str]
) -> None:
    config = ModelConfig(cutstrings=cuts, extract_regex=extracts, trimspace=prefixes, trimsuffix=suffixes)
    assert "".join(cut(config, *pieces)) == finetuned(config, "".join(pieces))


@pytest.mark.parametrize(
    ("keys", "text", "told"),
    [
        ({"cutstrings": [r"(?s)<think>.*?</think>\s*"]}, "<think>\nhm\n</think>\nYes.", "Yes."),
        ({"cutstrings": ["(.*?)</thinking>"]}, "so it is</thinking>Yes.", "Yes."),
        ({"cutstrings": ["foo", "(?i)bar+"]}, "a foo BARR b", "a   b"),
        ({"extract_regex": [r"(?s)<answer>.*</answer>"]}, "x <answer>1\n2</answer> y", "<answer>1\n2</answer>"),
        ({"extract_regex": ["[0-9]+", "[a-z]+"]}, "AB 12 cd 34", "12cd"),
        ({"extract_regex": ["[0-9]+"]}, "none", "none"),
        ({"trimspace": ["Answer:", "It is"]}, "Answer:\n It is  so. ", "so."),
        ({"trimspace": ["Answer:"]}, "\n Answer: 1", "Answer: 1"),
        ({"trimsuffix": ["</s>", "."]}, " Yes.\n</s>", "Yes"),
        (
            {"cutstrings": ["X"], "extract_regex": ["<.*>"], "trimspace": ["<"], "trimsuffix": [">"]},
            "a <X b X> c",
            "b",
        ),
    ],
)  # fmt: skip
def test_what_the_keys_do(keys: dict[str, Any], text: str, told: str) -> None:
    assert "".join(cut(ModelConfig(**keys), *text)) == "".join(cut(ModelConfig(**keys), text)) == told


def test_text_goes_out_as_soon_as_nothing_can_change_it() -> None:
    think = ModelConfig(cutstrings=["(?s)<think>.*?</think>"])
    pieces = ["One two", " <th", "ree", " <think>", "x</thi", "nk>four "]
    assert cut(think, *pieces) == ["One two", " ", "<three", " ", "", "four ", ""]
    trimmed = ModelConfig(trimspace=["Answer:"], trimsuffix=["END"])
    assert cut(trimmed, "Ans", "wer: on", "e two", " EN", "D ") == ["", "", "one", " tw", "o", ""]


def test_a_long_answer_is_cut_in_time_linear_in_its_length() -> None:
    """What is done with is let go, and a search that waits for its end goes on where it was."""
    config = ModelConfig(cutstrings=["(?s)<a>.*?</a>", r"\bnever\b"])
    pieces = ["word <a>", *["gone "] * 3000, "</a>", *["kept "] * 3000]
    allowance = Allowance()
    cutter = Cutter(config, allowance)
    told = "".join([*(cutter.feed(piece) for piece in pieces), cutter.finish()])
    assert told == "word " + "kept " * 3000 and not allowance.is_spent
    assert allowance.left > STEPS // 2


@pytest.mark.parametrize("keys", [{"trimspace": ["Answer:"]}, {"trimsuffix": ["<" + "/s" * 200]}])
def test_spaces_wait_for_what_comes_and_are_looked_at_once(keys: dict[str, Any]) -> None:
    config = ModelConfig(**keys)
    text = ("x" + " " * 399) * 1000
    assert "".join(cut(config, *(text[at : at + 4] for at in range(0, len(text), 4)))) == text.strip()
    blank = " " * 400_000
    assert "".join(cut(config, "a", *(blank[at : at + 4] for at in range(0, len(blank), 4)), "b")) == f"a{blank}b"


def test_expressions_that_are_too_much_work_leave_the_text_alone() -> None:
    hard = ["(a?){500}a{500}b"]
    for config in (ModelConfig(cutstrings=hard), ModelConfig(extract_regex=hard)):
        allowance = Allowance(20_000)
        cutter = Cutter(config, allowance)
        assert "".join([*(cutter.feed("a" * 50) for _ in range(20)), cutter.finish()]) == "a" * 1000
        assert "too much work" in allowance.fault
