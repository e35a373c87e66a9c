"""What a request becomes before it is queued, and what it is refused for."""

import pytest

from llmgallery.backends.base import Loaded
from llmgallery.backends.echo.backend import EchoBackend
from llmgallery.config.model import ModelConfig, Parameters
from llmgallery.core.errors import ContextExceeded, InvalidField, TemplateError
from llmgallery.core.messages import say
from llmgallery.core.requests import ChatRequest
from llmgallery.worker.prepare import chat_tokens, check_bias, check_fits, check_length


def test_a_prompt_leaves_room_for_one_token() -> None:
    check_fits(9, 10, "messages")
    with pytest.raises(ContextExceeded, match="10 tokens, but the context holds 10") as caught:
        check_fits(10, 10, "prompt")
    assert caught.value.field == "prompt"


def test_only_what_no_vocabulary_could_make_fit_is_refused_untokenised() -> None:
    check_length("x" * 256 * 10, 10, "messages")  # ten of the longest tokens known
    with pytest.raises(ContextExceeded, match="5121 characters, far too many for a context of 10 tokens") as caught:
        check_length("x" * 5121, 10, "messages")
    assert caught.value.field == "messages"


def test_more_messages_than_tokens_are_too_long_whatever_the_template_says() -> None:
    loaded = Loaded(context_size=3, chat_template="{% for i in range(9999) %}{% for j in range(999) %}{% endfor %}{% endfor %}")
    chat = ChatRequest((say("user", "x"), say("assistant", "y")))
    with pytest.raises(TemplateError, match="too much work"):
        chat_tokens(chat, ModelConfig(), EchoBackend(), loaded)
    with pytest.raises(ContextExceeded, match="4 messages, too many for a context of 3 tokens") as caught:
        chat_tokens(ChatRequest(chat.messages * 2), ModelConfig(), EchoBackend(), loaded)
    assert caught.value.field == "messages"


def test_biases_are_of_tokens_in_the_vocabulary() -> None:
    check_bias({0: 1.0, 259: -1.0}, ModelConfig(), 260)
    check_bias({5000: 1.0}, ModelConfig(), 0)  # a backend that does not say
    check_bias({260: 1.0}, ModelConfig(parameters=Parameters(logit_bias={"260": 1.0})), 260)
    with pytest.raises(InvalidField, match="logit_bias: token 260 is not in the vocabulary of 260 tokens") as caught:
        check_bias({5: 1.0, 260: 1.0}, ModelConfig(), 260)
    assert caught.value.field == "logit_bias"
