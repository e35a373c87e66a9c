"""Images of a chat on their way to a backend that sees, and to one that does not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from llmgallery.backends.base import Loaded, SeesImages
from llmgallery.backends.echo.backend import EchoBackend
from llmgallery.config.model import ModelConfig, OnUnsupported
from llmgallery.core.errors import ContextExceeded, InvalidField, UnsupportedField
from llmgallery.core.messages import ImagePart, Message, Part, TextPart
from llmgallery.core.requests import ChatRequest
from llmgallery.worker.prepare import prepare

TEMPLATE = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}<img>{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
EYE = 1000


class Seeing(EchoBackend):
    """Four tokens for an image; bytes that are b"bad" are none."""

    def tokenize_with_images(self, text: str, images: Sequence[bytes], *, bos: bool) -> list[int]:
        if b"bad" in images:
            place = f"images[{images.index(b'bad')}]"
            raise InvalidField(f"{place}: not an image that can be read", field=place)
        pieces = text.split("<img>")
        if len(pieces) != len(images) + 1:
            raise InvalidField("other places than images", field="messages")
        tokens = self.tokenize(pieces[0], special=True, bos=bos)
        for image, piece in zip(images, pieces[1:], strict=True):
            tokens += [EYE + len(image)] * 4 + self.tokenize(piece, special=True, bos=False)
        return tokens


LOADED = Loaded(context_size=64, vocab_size=2000, chat_template=TEMPLATE, capabilities=frozenset({"generate", "images"}))
BLIND = Loaded(context_size=64, vocab_size=2000, chat_template=TEMPLATE, capabilities=frozenset({"generate"}))


def chat(*parts: Part | str) -> ChatRequest:
    said = tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
    return ChatRequest((Message("user", (TextPart("Look: "),)), Message("user", said)))


def test_a_job_has_the_images_and_their_tokens() -> None:
    assert isinstance(Seeing(), SeesImages) and not isinstance(EchoBackend(), SeesImages)
    prepared = prepare(1, chat("a", ImagePart(b"12"), "b", ImagePart(b"345"), "c"), ModelConfig(), Seeing(), LOADED)
    assert prepared.job.images == (b"12", b"345")
    seen = [token - EYE for token in prepared.job.prompt if token >= EYE]
    assert seen == [2] * 4 + [3] * 4 and not prepared.warnings
    text = bytes(token for token in prepared.job.prompt if token < EYE)
    assert text == b"Look: abc"


def test_a_chat_without_images_is_tokenised_as_ever() -> None:
    prepared = prepare(1, chat("abc"), ModelConfig(), Seeing(), LOADED)
    assert prepared.job.images == () and bytes(prepared.job.prompt) == b"Look: abc"


def test_what_is_no_image_is_named_by_its_place() -> None:
    request = chat("a", ImagePart(b"12"), "b", ImagePart(b"bad"))
    with pytest.raises(InvalidField) as caught:
        prepare(1, request, ModelConfig(), Seeing(), LOADED)
    assert caught.value.field == "messages[1].content[3]"
    assert caught.value.message == "messages[1].content[3]: not an image that can be read"


def test_other_faults_keep_their_field() -> None:
    with pytest.raises(InvalidField, match="other places than images") as caught:
        prepare(1, chat("<img>", ImagePart(b"12")), ModelConfig(), Seeing(), LOADED)
    assert caught.value.field == "messages"


def test_an_address_alone_is_no_image() -> None:
    with pytest.raises(UnsupportedField, match="only the address of this image came") as caught:
        prepare(1, chat("a", ImagePart(url="https://example.org/cat.png")), ModelConfig(), Seeing(), LOADED)
    assert caught.value.field == "messages[1].content[1]"


def test_images_count_in_the_context() -> None:
    parts = [ImagePart(b"1")] * 16
    with pytest.raises(ContextExceeded, match="the prompt has 70 tokens, but the context holds 64"):
        prepare(1, chat(*parts), ModelConfig(), Seeing(), LOADED)


@pytest.mark.parametrize(("backend", "loaded"), [(Seeing(), BLIND), (EchoBackend(), LOADED), (EchoBackend(), BLIND)])
def test_a_blind_model_refuses_warns_or_ignores_as_its_yaml_says(backend: EchoBackend, loaded: Loaded) -> None:
    request = chat("a", ImagePart(b"12"), "b")
    with pytest.raises(
        UnsupportedField, match=r"messages\[1\]\.content\[1\]: this model sees no images; leave them out"
    ) as caught:
        prepare(1, request, ModelConfig(), backend, loaded)
    assert caught.value.field == "messages[1].content[1]"
    warned = prepare(1, request, ModelConfig(on_unsupported=OnUnsupported(demands="warn")), backend, loaded)
    assert warned.warnings == ("messages[1].content[1] was ignored: this model sees no images",)
    ignored = prepare(1, request, ModelConfig(on_unsupported=OnUnsupported(demands="ignore")), backend, loaded)
    assert ignored.warnings == () and ignored.job.images == ()
    assert bytes(ignored.job.prompt) == bytes(warned.job.prompt) == b"Look: ab"
