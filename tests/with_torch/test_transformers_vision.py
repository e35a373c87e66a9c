"""Images: what is read and what refused, and answers that are transformers' own to what its processor makes of them."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_transformers
import torch
from driving_transformers import Driven, driven
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from llmgallery.backends.base import SeesImages
from llmgallery.backends.transformers.sight import images as reading
from llmgallery.backends.transformers.sight.images import read_image
from llmgallery.backends.transformers.sight.vision import Sight, sees
from llmgallery.config.model import ModelConfig, Template
from llmgallery.core.errors import BadWeights, InvalidField, Overloaded, UnsupportedField
from llmgallery.core.messages import ImagePart, Message, TextPart, say
from llmgallery.core.requests import ChatRequest
from llmgallery.core.sampling import Sampling
from llmgallery.worker.prepare import prepare

GREEDY = Sampling(temperature=0, max_tokens=12)
FIELD = "messages[0].content[1]"


def picture(seed: int, size: tuple[int, int] = (40, 30), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, format: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **settings)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_transformers.make_vision(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Driven]:
    with driven(folder) as made:
        yield made


# --- bytes become pixels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_formats_that_are_read(format: str) -> None:
    image = picture(1, mode="P" if format == "GIF" else "RGB")
    read = read_image(encoded(image, format), FIELD)
    assert read.mode == "RGB" and read.size == (40, 30)
    if format in ("PNG", "BMP"):
        assert np.array_equal(np.asarray(read), np.asarray(image))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_modes_become_rgb(mode: str) -> None:
    format = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    read = read_image(encoded(picture(2, mode=mode), format), FIELD)
    assert read.mode == "RGB" and read.size == (40, 30)


def test_what_is_transparent_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((1, 1), (0, 0, 255, 255))
    read = read_image(encoded(clear), FIELD)
    assert read.getpixel((0, 0)) == (255, 255, 255) and read.getpixel((1, 1)) == (0, 0, 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    read = read_image(encoded(palette, transparency=0), FIELD)
    assert read.getpixel((0, 0)) == (255, 255, 255) and read.getpixel((1, 0)) == (0, 255, 0)


def test_an_animation_shows_its_first_picture() -> None:
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    moving = encoded(first, "GIF", save_all=True, append_images=[second], duration=100)
    assert read_image(moving, FIELD).getpixel((0, 0)) == (255, 0, 0)


def test_it_is_turned_as_its_camera_says() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(encoded(picture(3), "JPEG", exif=exif), FIELD).size == (30, 40)


def test_sixteen_bits_a_pixel_are_not_clipped() -> None:
    grey = Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))
    assert [read_image(encoded(grey), FIELD).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an image that can be read"),
        (b"GIF89a", "not an image that can be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"\(PNG, JPEG, WEBP, GIF, BMP\): its format is none of these"),
        (encoded(picture(1))[:200], "not an image that can be read"),
        (encoded(picture(1), "JPEG")[:300], "not an image that can be read"),
        (encoded(picture(1), "TIFF"), "its format is none of these"),
        (encoded(picture(1), "PPM"), "its format is none of these"),
        (bomb(9000, 9000), "9000 x 9000 pixels"),
        (bomb(60000, 60000), "too large|60000 x 60000 pixels"),
    ],
)
def test_what_is_no_image_names_its_place(data: bytes, message: str) -> None:
    with pytest.raises(InvalidField, match=message) as caught:
        read_image(data, FIELD)
    assert caught.value.field == FIELD and caught.value.message.startswith(FIELD)
    assert "BytesIO" not in caught.value.message


def test_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_BYTES", 100)
    with pytest.raises(InvalidField, match=r"has \d+ bytes; 100 are taken at most"):
        read_image(encoded(picture(1)), FIELD)


# --- prompts with images ------------------------------------------------------------------------------------------------------


def ask(*images: bytes, text: str = "What is this?") -> ChatRequest:
    return ChatRequest((Message("user", (*(ImagePart(data) for data in images), TextPart(text))),), GREEDY)


def answer(model: Driven, request: ChatRequest) -> list[int]:
    id = 10_000 + len(model.told.outputs)
    prepared = prepare(id, request, ModelConfig(), model.backend, model.loaded)
    model.backend.submit(prepared.job)
    model.told.wait_for_end(id)
    assert model.told.last(id).finish in ("stop", "length"), model.told.last(id)
    return model.told.tokens(id)


def reference(folder: Path, text: str, *images: Image.Image) -> tuple[list[int], list[int]]:
    """The prompt's tokens, and what transformers' own generate() answers."""
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    given = processor(text=[text], images=list(images), return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        made = model.generate(**given, max_new_tokens=12, do_sample=False)[0].tolist()
    prompt = given["input_ids"][0].tolist()
    return prompt, made[len(prompt) :]


def test_a_model_that_sees_says_so(model: Driven, folder: Path) -> None:
    assert {"generate", "images"} <= model.loaded.capabilities and isinstance(model.backend, SeesImages)
    assert sees(json.loads((folder / "config.json").read_text()))
    assert not sees({"architectures": ["LlamaForCausalLM"]}) and not sees({})


def test_greedy_answers_are_transformers_own(model: Driven, folder: Path) -> None:
    one, other = picture(1), picture(2)
    text = "<|begin|><|im_start|>user\n<image>What is this?<|im_end|>\n<|im_start|>assistant\n"
    answers = []
    for image in (one, other):
        prompt, expected = reference(folder, text, image)
        request = ask(encoded(image))
        prepared = prepare(1, request, ModelConfig(), model.backend, model.loaded)
        assert list(prepared.job.prompt) == prompt and prepared.job.images == (encoded(image),)
        answers.append(answer(model, request))
        ended = expected.index(3) if 3 in expected else len(expected)
        assert answers[-1][:ended] == expected[:ended]
    assert answers[0] != answers[1]


def test_several_images_in_their_order(model: Driven, folder: Path) -> None:
    one, other = picture(1), picture(2)
    text = "<|begin|><|im_start|>user\n<image><image>Compare.<|im_end|>\n<|im_start|>assistant\n"
    prompt, expected = reference(folder, text, one, other)
    request = ask(encoded(one), encoded(other), text="Compare.")
    assert list(prepare(1, request, ModelConfig(), model.backend, model.loaded).job.prompt) == prompt
    made = answer(model, request)
    ended = expected.index(3) if 3 in expected else len(expected)
    assert made[:ended] == expected[:ended]
    assert made != answer(model, ask(encoded(other), encoded(one), text="Compare."))


def test_many_at_once_are_each_its_own(model: Driven) -> None:
    requests = [ask(encoded(picture(seed))) for seed in range(4)] + [ChatRequest((say("user", "Who are you?"),), GREEDY)]
    alone = [answer(model, request) for request in requests]
    ids = range(20_000, 20_000 + len(requests))
    for id, request in zip(ids, requests, strict=True):
        model.backend.submit(prepare(id, request, ModelConfig(), model.backend, model.loaded).job)
    model.told.wait_for_end(*ids)
    assert [model.told.tokens(id) for id in ids] == alone and len({tuple(each) for each in alone}) == len(alone)


def test_a_marker_in_a_message_is_no_image(model: Driven) -> None:
    with pytest.raises(InvalidField, match=r"2 places for images \(<image>\), but 1 images came"):
        prepare(1, ask(encoded(picture(1)), text="<image>"), ModelConfig(), model.backend, model.loaded)


def test_a_template_that_leaves_images_out(model: Driven) -> None:
    config = ModelConfig(template=Template(chat_template="{% for m in messages %}{{ m.role }}{% endfor %}"))
    with pytest.raises(UnsupportedField, match="the chat template leaves images out"):
        prepare(1, ask(encoded(picture(1))), config, model.backend, model.loaded)


def test_what_is_no_image_is_refused_with_its_place_in_the_chat(model: Driven) -> None:
    with pytest.raises(InvalidField, match="not an image that can be read") as caught:
        prepare(1, ask(encoded(picture(1)), b"no image"), ModelConfig(), model.backend, model.loaded)
    assert caught.value.field == "messages[0].content[1]"


def test_a_yaml_may_limit_how_many(folder: Path) -> None:
    sight = Sight(folder, ModelConfig(limit_mm_per_prompt={"image": 1}))
    data = encoded(picture(1))
    assert len(sight.tokenize_with_images("<image>", [data], bos=False)) == 4
    with pytest.raises(InvalidField, match="2 images; this model is set to take 1"):
        sight.tokenize_with_images("<image><image>", [data, data], bos=False)


def test_pixels_that_were_dropped_are_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmgallery.backends.transformers.sight import vision

    monkeypatch.setattr(vision, "KEPT_BYTES", 1)
    sight = Sight(folder, ModelConfig())
    images = [[encoded(picture(seed))] for seed in range(3)]
    prompts = [sight.tokenize_with_images("a <image> b", each, bos=True) for each in images]
    assert len(sight._kept) == 1 and prompts[0] == prompts[1]
    fresh = [Sight(folder, ModelConfig()) for _ in images]
    for eye, prompt, each in zip(fresh, prompts, images, strict=True):
        assert eye.tokenize_with_images("a <image> b", each, bos=True) == prompt
        kept, again = eye.inputs(prompt, each), sight.inputs(prompt, each)
        assert kept.keys() == again.keys() == {"pixel_values"}
        assert all(torch.equal(kept[name], again[name]) for name in kept)
    monkeypatch.setattr(vision, "KEPT_TEXTS", 1)
    sight.tokenize_with_images("another <image>", images[0], bos=True)
    with pytest.raises(Overloaded, match="too many prompts with images wait"):
        sight.inputs(prompts[1], images[1])


def test_a_folder_without_a_processor(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(BadWeights, match="processor of images"):
        Sight(tmp_path, ModelConfig())


# --- a processor that would like torchvision, for videos ----------------------------------------------------------------------


def make_qwen(folder: Path) -> Path:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tokenizer = tiny_transformers.byte_tokenizer(512)
    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    start, end, image, video = (tokenizer.convert_tokens_to_ids(name) for name in names)
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 3,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 12, 12]}, "pad_token_id": 1,
    }  # fmt: skip
    sight = {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2, "patch_size": 14, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=text, vision_config=sight, image_token_id=image, video_token_id=video, vision_start_token_id=start,
        vision_end_token_id=end, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(5)
    model = Qwen2VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(6)
    model.save_pretrained(folder)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}{% if p.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ p.text }}"
        "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    tokenizer.save_pretrained(folder)
    pixels = {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor", "min_pixels": 28 * 28,
        "max_pixels": 16 * 28 * 28, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return folder


def test_images_of_any_size_without_torchvision(tmp_path: Path) -> None:
    folder = make_qwen(tmp_path)
    small, wide = picture(1, (60, 60)), picture(2, (120, 56))
    with driven(folder) as model:
        assert "images" in model.loaded.capabilities
        prompts, answers = [], []
        for image in (small, wide):
            request = ask(encoded(image))
            prepared = prepare(1, request, ModelConfig(), model.backend, model.loaded)
            inputs = model.backend._inputs(prepared.job)
            prompts.append(list(prepared.job.prompt))
            answers.append(answer(model, request))
            with torch.no_grad():
                given = {"input_ids": torch.tensor([prepared.job.prompt]), **inputs}
                given["attention_mask"] = torch.ones_like(given["input_ids"])
                own = AutoModelForImageTextToText.from_pretrained(folder).eval()
                made = own.generate(**given, max_new_tokens=12, do_sample=False, eos_token_id=3, pad_token_id=1)[0].tolist()
            expected = made[len(prepared.job.prompt) :]
            ended = expected.index(3) if 3 in expected else len(expected)
            assert answers[-1][:ended] == expected[:ended]
        assert len(prompts[1]) > len(prompts[0]) and answers[0] != answers[1]
        with pytest.raises(InvalidField, match="processor refuses these images") as caught:
            prepare(1, ask(encoded(picture(1, (6000, 4)))), ModelConfig(), model.backend, model.loaded)
        assert caught.value.field == "messages[0].content[0]"
