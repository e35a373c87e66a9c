"""Prompts with images: the model's processor makes tokens and pixels of them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from llmgallery.backends.transformers.sight.images import read_image
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BackendMissing, BadWeights, InvalidField, Overloaded, UnsupportedField

KEPT_BYTES = 256 << 20
"""Pixels of the latest prompts; those of earlier ones are made again when their jobs begin."""

KEPT_TEXTS = 32 << 20
"""Characters of these prompts, of which more are kept than of their pixels."""

LONGEST_REASON = 400
RETRY_SECONDS = 5
_REFUSALS = (OSError, ValueError, ImportError, KeyError, TypeError, AttributeError)
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def sees(config: Mapping[str, Any]) -> bool:
    """By its config.json: the model has eyes, and answers in text."""
    names = config.get("architectures") or [""]
    return "vision_config" in config and str(names[0]).endswith(("ForConditionalGeneration", "ForImageTextToText", "ForCausalLM"))


class Sight:
    """The processor of one model. Thread-safe for one who tokenises and one who generates."""

    def __init__(self, folder: Path, config: ModelConfig, trust_remote_code: bool = False) -> None:
        """Raises BadWeights, BackendMissing."""
        try:
            import PIL  # noqa: F401
        except ImportError as exc:
            raise BackendMissing("images need pillow, not installed here: pip install 'llmgallery[transformers]'") from exc
        self._processor = _processor(folder, trust_remote_code)
        if getattr(self._processor, "image_processor", None) is None:
            raise BadWeights(f"{folder.name}: no processor of images among its files (preprocessor_config.json)")
        self._limit = (config.limit_mm_per_prompt or {}).get("image")
        self._kept: OrderedDict[bytes, dict[str, Any]] = OrderedDict()
        self._texts: OrderedDict[bytes, str] = OrderedDict()
        self._lock = threading.Lock()
        self._busy = threading.Lock()  # tokenizers are changed by every use

    @property
    def chat_template(self) -> str | None:
        """Of repos that keep it beside the processor and not with the tokenizer."""
        template = getattr(self._processor, "chat_template", None)
        return template if isinstance(template, str) else None

    def tokenize_with_images(self, text: str, images: Sequence[bytes], *, bos: bool) -> list[int]:
        """The tokens of the prompt, those of its images among them. Raises InvalidField naming `images[index]`, or `messages`
        when there are more markers than images; UnsupportedField for a prompt that shows no place for them."""
        if self._limit is not None and len(images) > self._limit:
            raise InvalidField(f"{len(images)} images; this model is set to take {self._limit}", field="messages")
        self._check_markers(text, len(images))
        tokenizer = self._processor.tokenizer
        if bos and tokenizer.bos_token:
            text = tokenizer.bos_token + text
        text = text.encode(errors="replace").decode()
        made = self._processed(text, images)
        tokens: list[int] = made.pop("input_ids")[0].tolist()
        self._keep(_key(tokens, images), text, made)
        return tokens

    def _processed(self, text: str, images: Sequence[bytes]) -> dict[str, Any]:
        pictures = [read_image(data, f"images[{index}]") for index, data in enumerate(images)]
        try:
            with self._busy:
                made = self._processor(text=[text], images=pictures, add_special_tokens=False, return_tensors="pt")
        except (ValueError, IndexError, ZeroDivisionError) as exc:
            sizes = ", ".join(f"{picture.width} x {picture.height}" for picture in pictures)
            raise InvalidField(f"the model's processor refuses these images ({sizes}): {exc}", field="images[0]") from exc
        return {name: value for name, value in made.items() if name != "attention_mask"}

    def _check_markers(self, text: str, count: int) -> None:
        names = (getattr(self._processor, name, None) for name in ("boi_token", "image_token"))
        marks = [name for name in names if isinstance(name, str) and name]
        found = max((text.count(mark) for mark in marks), default=count)
        if not found:
            raise UnsupportedField("the chat template leaves images out: it writes none of the model's markers", field="messages")
        if found != count:
            said = f"the prompt has {found} places for images ({marks[0]}), but {count} images came"
            raise InvalidField(f"{said}: leave this marker out of the text of messages", field="messages")

    def inputs(self, prompt: Sequence[int], images: Sequence[bytes]) -> dict[str, Any]:
        """What generate() is given beside input_ids and attention_mask, for a batch of this one prompt: pixel_values, and what
        else the processor made. Tensors on the CPU, in float32."""
        key = _key(prompt, images)
        with self._lock:
            made, text = self._kept.get(key), self._texts.get(key)
        if made is None and text is not None:
            made = self._processed(text, images)
            made.pop("input_ids")
        if made is None:
            raise Overloaded("too many prompts with images wait: the pixels of this one were dropped", retry_after=RETRY_SECONDS)
        return dict(made)

    def _keep(self, key: bytes, text: str, made: dict[str, Any]) -> None:
        with self._lock:
            self._kept[key], self._texts[key] = made, text
            self._kept.move_to_end(key)
            self._texts.move_to_end(key)
            while len(self._kept) > 1 and sum(map(_size, self._kept.values())) > KEPT_BYTES:
                self._kept.popitem(last=False)
            while len(self._texts) > 1 and sum(map(len, self._texts.values())) > KEPT_TEXTS:
                self._texts.popitem(last=False)


def _key(tokens: Sequence[int], images: Sequence[bytes]) -> bytes:
    digest = hashlib.sha256(repr(list(tokens)).encode())
    for data in images:
        digest.update(hashlib.sha256(data).digest())
    return digest.digest()


def _size(made: Mapping[str, Any]) -> int:
    return sum(each.nelement() * each.element_size() for each in made.values() if isinstance(each, torch.Tensor))


def _processor(folder: Path, trust_remote_code: bool) -> Any:
    """Images by Pillow, without torchvision; what processes videos, which only that can, is left out. Raises BadWeights, and
    BackendMissing for a library that its class asks for."""
    settings = {"trust_remote_code": trust_remote_code, "local_files_only": True, "backend": "pil"}
    try:
        return transformers.AutoProcessor.from_pretrained(folder, **settings)
    except _REFUSALS as exc:
        first = exc
    try:
        return _for_images(_class(folder)).from_pretrained(folder, **settings)
    except _REFUSALS as exc:
        # What it says the second time is about images; the first fault may be one of videos.
        text = " ".join(str(exc if isinstance(exc, ImportError) else first).split())[:LONGEST_REASON]
        kind = BackendMissing if isinstance(exc, ImportError) else BadWeights
        raise kind(f"{folder.name}: its processor of images does not load: {text}") from exc


def _class(folder: Path) -> Any:
    """The processor that the files name, else that of the architecture."""
    name = None
    for file in PROCESSOR_FILES:
        if name is None and (folder / file).is_file():
            name = json.loads((folder / file).read_text(encoding="utf-8")).get("processor_class")
    if name is None:
        name = PROCESSOR_MAPPING_NAMES[json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]]
    return getattr(transformers, name)


def _for_images(processor: Any) -> Any:
    """The same class, made of a tokenizer and a processor of images alone."""

    def arguments(cls: Any, /, folder: Path, processor_dict: Any = None, **settings: Any) -> list[Any]:
        loaders = {"tokenizer": transformers.AutoTokenizer, "image_processor": transformers.AutoImageProcessor}
        return [loaders[name].from_pretrained(folder, **settings) if name in loaders else None for name in cls.get_attributes()]

    def check(self: Any, name: str, part: Any) -> Any:
        return None if part is None else processor.check_argument_for_proper_class(self, name, part)

    own = {"_get_arguments_from_pretrained": classmethod(arguments), "check_argument_for_proper_class": check}
    return type(processor.__name__, (processor,), own)
