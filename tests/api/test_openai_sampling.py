"""llama-server's sampling fields in OpenAI's bodies: read into Sampling, or refused by name."""

import json
from typing import Any

import httpx
import pytest
from live_server import error_of, user

from llmgallery.api.dialects.openai import convert, schema
from llmgallery.core.errors import InvalidField
from llmgallery.core.sampling import SAMPLERS, Sampling
from llmgallery.service.spread import Ask

NUMBERS = {
    "top_n_sigma": 1.5,
    "xtc_probability": 0.25,
    "xtc_threshold": 0.125,
    "dry_multiplier": 0.75,
    "dry_base": 1.5,
    "dry_allowed_length": 3,
    "dry_penalty_last_n": -1,
    "mirostat": 2,
    "mirostat_tau": 4.5,
    "mirostat_eta": 0.5,
    "dynatemp_range": 0.25,
    "dynatemp_exponent": 2.0,
}


def chat(**fields: Any) -> Ask:
    body = {"messages": [{"role": "user", "content": "Hello!"}], **fields}
    return convert.chat_ask(*schema.read(json.dumps(body).encode(), schema.ChatBody), token=None)


def completion(**fields: Any) -> Ask:
    return convert.completion_ask(*schema.read(json.dumps({"prompt": "a", **fields}).encode(), schema.CompletionBody), token=None)


@pytest.mark.parametrize("ask", [chat, completion])
def test_every_sampler_s_field_arrives_and_none_is_a_hint(ask: Any) -> None:
    asked = ask(**NUMBERS, dry_sequence_breakers=["\n", "."], samplers=["temp", "TOP-K", "typ"])
    sampling = Sampling(**NUMBERS, dry_sequence_breakers=("\n", "."), samplers=("temperature", "top_k", "typ_p"))  # type: ignore[arg-type]
    assert [request.sampling for request in asked.prompts] == [sampling]
    assert asked.wishes == ()


def test_samplers_as_letters_and_the_default_order() -> None:
    assert chat(samplers="edskypmxt").prompts[0].sampling.samplers == tuple(SAMPLERS)
    assert chat(samplers="kk").prompts[0].sampling.samplers == ("top_k", "top_k")


def test_a_dry_base_below_1_is_the_default() -> None:
    assert chat(dry_base=0.5).prompts[0].sampling.dry_base is None


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"samplers": ["top_k", "tfs_z"]}, "samplers"),
        ({"samplers": ["adaptive_p"]}, "samplers"),
        ({"samplers": "kz"}, "samplers"),
        ({"samplers": []}, "samplers"),
        ({"samplers": ["top_k"] * 4}, "samplers"),
        ({"samplers": 4}, "samplers"),
        ({"samplers": [4]}, "samplers[0]"),
        ({"mirostat": 3}, "mirostat"),
        ({"mirostat": 1.5}, "mirostat"),
        ({"xtc_probability": 1.01}, "xtc_probability"),
        ({"xtc_threshold": -0.1}, "xtc_threshold"),
        ({"dry_multiplier": -1}, "dry_multiplier"),
        ({"dry_base": 101}, "dry_base"),
        ({"dry_allowed_length": -1}, "dry_allowed_length"),
        ({"dry_penalty_last_n": -2}, "dry_penalty_last_n"),
        ({"dry_sequence_breakers": []}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": "\n"}, "dry_sequence_breakers"),
        ({"dry_sequence_breakers": ["a", "b\0"]}, "dry_sequence_breakers[1]"),
        ({"dry_sequence_breakers": ["a"] * 33}, "dry_sequence_breakers"),
        ({"mirostat_tau": "5"}, "mirostat_tau"),
        ({"dynatemp_range": -0.5}, "dynatemp_range"),
        ({"top_n_sigma": -2}, "top_n_sigma"),
    ],
)
def test_what_is_out_of_range_is_refused_by_its_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        chat(**fields)
    assert caught.value.field == field
    assert field in caught.value.message


def test_an_unknown_sampler_is_a_400_that_lists_the_names(http: httpx.Client) -> None:
    body = {"model": "echo", "messages": user("Hello!"), "samplers": ["top_k", "magic"]}
    reply = http.post("/v1/chat/completions", json=body)
    error = error_of(reply)
    assert (reply.status_code, error["param"]) == (400, "samplers")
    assert all(name in error["message"] for name in ("'magic'", *SAMPLERS))


def test_a_model_that_needs_none_of_them_answers_all_the_same(http: httpx.Client) -> None:
    fields = {**NUMBERS, "dry_sequence_breakers": ["a"], "samplers": "edskypmxt"}
    reply = http.post("/v1/completions", json={"model": "echo", "prompt": "one two", **fields})
    assert reply.status_code == 200
    assert "warnings" not in reply.json()
