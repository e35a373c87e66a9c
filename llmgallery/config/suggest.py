"""Advice for unknown keys: the nearest one on the same level, or the level where it belongs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from functools import cache

import msgspec
from msgspec import inspect

from llmgallery.config.model import ModelConfig

Levels = Mapping[str, tuple[str, ...]]
"""Dotted path of a mapping ("" = top) -> its keys."""

OTHER_NAMES = {
    "ctx_size": "context_size", "n_ctx": "context_size", "num_ctx": "context_size", "context": "context_size",
    "context_length": "context_size", "max_context": "context_size", "max_seq_len": "context_size",
    "n_gpu_layers": "gpu_layers", "ngl": "gpu_layers", "num_gpu": "gpu_layers", "n_threads": "threads",
    "num_threads": "threads", "n_parallel": "parallel", "slots": "parallel", "mlock": "mmlock", "use_mlock": "mmlock",
    "use_mmap": "mmap", "n_batch": "parameters.batch", "batch_size": "parameters.batch", "temp": "parameters.temperature",
    "max_new_tokens": "parameters.max_tokens", "n_predict": "parameters.max_tokens", "num_predict": "parameters.max_tokens",
    "max_length": "parameters.max_tokens", "max_completion_tokens": "parameters.max_tokens",
    "repetition_penalty": "parameters.repeat_penalty", "rep_pen": "parameters.repeat_penalty",
    "weights": "parameters.model", "path": "parameters.model", "file": "parameters.model", "filename": "parameters.model",
    "model_path": "parameters.model", "repo_id": "parameters.model", "engine": "backend", "model_name": "name",
    "stop": "stopwords", "stop_words": "stopwords", "stop_sequences": "stopwords", "antiprompts": "stopwords",
    "system": "system_prompt", "pre_prompt": "system_prompt", "prompt_template": "template.chat_template",
    "ttl": "keep_alive", "idle_timeout": "keep_alive", "model_alias": "aliases", "keepalive": "keep_alive",
}  # fmt: skip
"""What other programs call our keys; only where difflib would not find it."""


def nearest(word: str, choices: Iterable[str], cutoff: float = 0.7) -> str | None:
    """The choice most like the word, in any case of letters and with - for _; None = none is near."""
    plain: dict[str, str] = {}
    for choice in choices:
        plain.setdefault(choice.lower().replace("-", "_"), choice)
    found = difflib.get_close_matches(word.lower().replace("-", "_"), plain, n=1, cutoff=cutoff)
    return plain[found[0]] if found else None


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Advice that names the nearest choice, or ""."""
    return f"did you mean {found}?" if (found := nearest(word, choices)) else ""


def levels_of(cls: type[msgspec.Struct], prefix: str = "") -> dict[str, tuple[str, ...]]:
    """All mappings below a struct."""
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    found = {prefix: tuple(field.encode_name for field in info.fields)}
    for field in info.fields:
        inner = field.type.type if isinstance(field.type, inspect.Metadata) else field.type
        for part in inner.types if isinstance(inner, inspect.UnionType) else (inner,):
            if isinstance(part, inspect.StructType):
                found |= levels_of(part.cls, f"{prefix}.{field.encode_name}" if prefix else field.encode_name)
    return found


@cache
def model_levels() -> dict[str, tuple[str, ...]]:
    """The mappings of a model file, without any backend's options."""
    return levels_of(ModelConfig)


def adviser(
    levels: Levels,
    other_names: Mapping[str, str] = OTHER_NAMES,
    fallback: str = "`llmgallery schema` prints all keys",
) -> Callable[[str, str], str]:
    """The advice for (unknown key, dotted path of its mapping)."""

    def advise(key: str, parent: str) -> str:
        here = levels.get(parent, ())
        elsewhere = [level for level, keys in levels.items() if level != parent and key in keys]
        if elsewhere:
            return " or ".join(map(_belongs, elsewhere[:2]))
        if (other := other_names.get(key.lower().replace("-", "_"))) is not None:
            return _meant([other], parent)
        if begun := _begun(key, parent, levels):
            return _meant(begun, parent)
        if (found := _nearest_anywhere(key, parent, levels)) is not None:
            return _meant([found], parent)
        return f"known here: {', '.join(here)}" if 0 < len(here) <= 8 else fallback

    return advise


def _meant(keys: list[str], parent: str) -> str:
    """The question; a key without a dot stands at the top, which nobody sees who wrote it below."""
    away = " (at the top level)" if parent and all("." not in key for key in keys) else ""
    return f"did you mean {' or '.join(keys)}{away}?"


def _begun(word: str, parent: str, levels: Levels) -> list[str]:
    """At most two dotted keys of which the word is the first part; those of its own level, else of the others."""
    first = word.lower().replace("-", "_") + "_"
    found = [(level != parent, dotted(level, key)) for level, keys in levels.items() for key in keys if key.startswith(first)]
    return [key for other, key in found if other == min(found)[0]][:2] if len(word) > 2 else []


def _nearest_anywhere(word: str, parent: str, levels: Levels) -> str | None:
    """The dotted key most like the word; the word's own level is preferred."""
    plain = word.lower().replace("-", "_")
    best, found = 0.7, None
    for level, keys in levels.items():
        distance = 0.0 if level == parent else 0.1
        for key in keys:
            matcher = difflib.SequenceMatcher(None, key, plain)
            likely = matcher.real_quick_ratio() - distance > best and matcher.quick_ratio() - distance > best
            if likely and (ratio := matcher.ratio() - distance) > best:
                best, found = ratio, dotted(level, key)
    return found


def dotted(level: str, key: str) -> str:
    """A key with its way from the top."""
    return f"{level}.{key}" if level else key


def _belongs(level: str) -> str:
    return f"it belongs under {level}" if level else "it belongs at the top level"
