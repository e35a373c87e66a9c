"""Answers about images, through generate(): the same as generate()'s own."""

import io
from pathlib import Path

import pytest
import torch
from generate_bench import GREEDY, Bench
from PIL import Image
from tiny_transformers import make_llama, make_vision
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from llmgallery.backends.transformers.sight.vision import Sight
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import Overloaded, UnsupportedField
from llmgallery.core.jobs import Job
from llmgallery.core.sampling import Sampling


def test_images_are_seen(tmp_path: Path) -> None:
    folder = make_vision(tmp_path / "vision")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sight = Sight(folder, ModelConfig(), False)
    bench = Bench(model, tokenizer, inputs=lambda job: sight.inputs(job.prompt, job.images))
    images = [picture(color) for color in ("red", "blue")]
    prompts = [sight.tokenize_with_images("Look: <image> What is it?", [image], bos=True) for image in images]
    for id, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        bench.engine.submit(Job(id, prompt, GREEDY, images=(image,)))
    bench.submit(2, "One, two")
    beams = Sampling(max_tokens=6, extra={"num_beams": 2})
    bench.engine.submit(Job(3, prompts[0], beams, images=(images[0],)))
    bench.told.wait(0, 1, 2, 3)
    ends = sorted(bench.vocabulary.ends)
    for id, arguments in ((0, {}), (1, {}), (3, {"num_beams": 2, "max_new_tokens": 6})):
        prompt, image = prompts[id % 3], images[id % 3]
        ids = torch.tensor([prompt])
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, eos_token_id=ends,
            **{"max_new_tokens": 24, "do_sample": False, **arguments}, **sight.inputs(prompt, [image]),
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert bench.told.tokens(id) == [token for token in made if token not in ends]
    assert bench.told.tokens(0) != bench.told.tokens(1)
    assert bench.told.tokens(2) == bench.generate("One, two")
    bench.engine.close()


def test_images_that_are_gone_end_one_job(tmp_path: Path) -> None:
    folder = make_vision(tmp_path / "vision")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)

    def inputs(job: Job) -> dict[str, object]:
        raise Overloaded("the pixels were dropped", retry_after=5)

    bench = Bench(model, AutoTokenizer.from_pretrained(folder), inputs=inputs)
    bench.engine.submit(Job(1, bench.ids("Look"), GREEDY, images=(picture("red"),)))
    bench.submit(2, "One, two")
    bench.told.wait(1, 2)
    error = bench.told.of(1)[-1].error
    assert bench.told.ends(1) == ["error"] and error is not None and error.kind == "Overloaded" and error.retry_after == 5
    assert bench.told.tokens(2) == bench.generate("One, two")
    bench.engine.close()


def test_models_that_remember_images_between_steps_do_not_mix_them_up(tmp_path: Path) -> None:
    """Qwen2-VL keeps in the model how far the images of its last call moved the positions; batches take turns with it."""
    tokenizer = AutoTokenizer.from_pretrained(make_llama(tmp_path))
    model = qwen()
    seen = {id: qwen_inputs(id, height, length) for id, (height, length) in enumerate([(2, 9), (8, 3), (4, 20)])}
    bench = Bench(model, tokenizer, inputs=lambda job: seen[job.id][1])
    for id, (prompt, _) in seen.items():
        bench.engine.submit(Job(id, prompt, GREEDY, images=(b"image",)))
    bench.submit(9, "One, two")
    bench.told.wait(*seen, 9)
    ends = sorted(bench.vocabulary.ends)
    for id, (prompt, inputs) in seen.items():
        ids = torch.tensor([prompt])
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=0, eos_token_id=ends, max_new_tokens=24,
            do_sample=False, **inputs,
        )[0, len(prompt) :].tolist()  # fmt: skip
        assert bench.told.tokens(id) == [token for token in made if token not in ends]
    order = [output.id for output in bench.told.outputs]
    assert order.index(1) < len(order) - 1 - order[::-1].index(0), "they did not take turns"
    assert bench.told.tokens(9) == bench.generate("One, two")
    bench.engine.close()


PATCH, IMAGE_TOKEN = 4, 300


def qwen() -> Qwen2VLForConditionalGeneration:
    torch.manual_seed(0)
    text = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 1,
        "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [8, 12, 12]},
        "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": None,
    }  # fmt: skip
    sight = {"embed_dim": 64, "hidden_size": 64, "depth": 1, "num_heads": 1, "patch_size": PATCH, "spatial_merge_size": 2}
    config = Qwen2VLConfig(text_config=text, vision_config=sight, image_token_id=IMAGE_TOKEN, vision_start_token_id=301)
    return Qwen2VLForConditionalGeneration(config)


def qwen_inputs(seed: int, height: int, length: int) -> tuple[list[int], dict[str, torch.Tensor]]:
    """An image of height x 4 patches, of which four make a token, and `length` tokens of text after it."""
    torch.manual_seed(seed)
    patches, tokens = height * 4, height
    prompt = [0, 301, *[IMAGE_TOKEN] * tokens, 302, *range(20, 20 + length)]
    kinds = [int(token == IMAGE_TOKEN) for token in prompt]
    return prompt, {
        "pixel_values": torch.randn(patches, 3 * 2 * PATCH * PATCH),
        "image_grid_thw": torch.tensor([[1, height, 4]]),
        "mm_token_type_ids": torch.tensor([kinds]),
    }


def picture(color: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (28, 28), color).save(file, "PNG")
    return file.getvalue()


def test_models_without_eyes_take_no_images(tmp_path: Path) -> None:
    folder = make_llama(tmp_path)
    llama = Bench(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    with pytest.raises(UnsupportedField, match="no images"):
        llama.engine.submit(Job(1, llama.ids("One"), GREEDY, images=(picture("red"),)))
