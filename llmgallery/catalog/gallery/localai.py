"""What LocalAI calls things: its backends and use cases, and ours for them. Tables; knows no entry and no file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from llmgallery.catalog.engines import Engine
from llmgallery.config.outside import Spec
from llmgallery.core.errors import BackendMissing

_HARDWARE = re.compile(
    r"^(?:(?:cpu|metal|vulkan|cuda\d*|rocm\d*|hipblas|sycl|intel(?:-sycl)?(?:-f(?:16|32))?|nvidia-l4t(?:-arm64)?(?:-cuda\d+)?)-)+"
)
_BUILD = re.compile(r"-(?:development|fallback|avx|avx2|avx512|grpc)$")

_SPEECH, _TRANSCRIPTION, _IMAGES, _VIDEO = "speech", "transcription", "images", "video"
_SOUND, _SIGHT, _TEXT = "sound", "recognition in pictures or voices", "text"

KINDS: Mapping[str, str] = {
    **dict.fromkeys(("vllm", "vllm-cpp", "sglang", "mlx", "mlx-vlm", "openvino", "bonsai", "ds4"), _TEXT),
    **dict.fromkeys(("rwkv", "ollama", "tinygrad", "llama-ggml", "gpt4all", "cloud-proxy", "ik-llama-cpp", "turboquant"), _TEXT),
    "vllm-omni": "text, speech and pictures",
    **dict.fromkeys(
        ("piper", "bark", "bark-cpp", "coqui", "kokoro", "kokoros", "sherpa-onnx", "chatterbox", "kitten-tts"), _SPEECH
    ),
    **dict.fromkeys(("qwen3-tts-cpp", "moss-tts-cpp", "magpie-tts-cpp", "qwen-tts", "fish-speech", "vibevoice"), _SPEECH),
    **dict.fromkeys(("chatterbox", "neutts", "outetts", "parler-tts", "pocket-tts", "tts"), _SPEECH),
    **dict.fromkeys(("whisper", "faster-whisper", "whisperx", "parakeet-cpp", "qwen-asr", "nemo", "moonshine"), _TRANSCRIPTION),
    "crispasr": f"{_TRANSCRIPTION} and {_SPEECH}",
    **dict.fromkeys(("ced", "audio-cpp", "silero-vad", "acestep-cpp", "ace-step"), _SOUND),
    **dict.fromkeys(("stablediffusion", "stablediffusion-ggml", "stablediffusion-cpp", "tinydream", "dreambooth"), _IMAGES),
    "diffusers": f"{_IMAGES} and {_VIDEO}",
    "longcat-video": _VIDEO,
    **dict.fromkeys(("depth-anything", "rfdetr", "rfdetr-cpp", "insightface", "voice-detect", "sam3-cpp"), _SIGHT),
}
"""LocalAI's backends that are not ours -> what they are for."""

_TEXT_USES = frozenset({"chat", "completion", "edit", "embeddings", "rerank", "tokenize", "vision", "llm", "score"})
_TEXT_KINDS = frozenset({_TEXT, "embeddings", "reranking"})


def plain_backend(name: str) -> str:
    """A backend without LocalAI's words for hardware and builds: `cuda12-llama-cpp-development` is `llama-cpp`."""
    text = name.strip().lower()
    return _BUILD.sub("", _HARDWARE.sub("", text)) or text


def our_backend(name: str, specs: Mapping[str, Engine]) -> str | None:
    """Our name of LocalAI's backend; None = none of ours does what it does."""
    for wanted in dict.fromkeys((name.strip().lower(), plain_backend(name))):
        for spec in specs.values():
            if wanted in {spec.name.lower(), *(alias.lower() for alias in spec.aliases)}:
                return spec.name
    return None


def missing_backend(name: str, subject: str, specs: Mapping[str, Engine]) -> BackendMissing:
    """Why what `subject` names cannot be served: the backend, and what it is for."""
    kind = KINDS.get(plain_backend(name))
    what = f"{name} ({kind})" if kind else name
    later = "not available yet in this version" if kind in _TEXT_KINDS else "not one of this program's"
    return BackendMissing(
        f"{subject} needs the backend {what}, which is {later}; available: {', '.join(sorted(specs))}", field="backend"
    )


def without_foreign_draft(config: Mapping[str, Any], spec: Spec) -> tuple[dict[str, Any], list[str]]:
    """The config without a `draft_model` that belongs to a kind of speculation (LocalAI's `spec_type`) which the backend does
    not have: such weights are no model of their own, and would not load. And what was left out, in sentences."""
    listed = config.get("options")
    for item in listed if isinstance(listed, list) and "draft_model" in config else ():
        name, _, word = str(item).partition(":")
        words = spec.listed_words.get(name.strip().lstrip("-").replace("-", "_"))
        if words is not None and word.strip().replace("_", "-") not in words:
            kept = {key: value for key, value in config.items() if key != "draft_model"}
            return kept, [f"draft_model: {config['draft_model']} is left out: backend {spec.name} has no {name} {word.strip()}"]
    return dict(config), []


def use_cases(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model is for, in LocalAI's words: `known_usecases` without `FLAG_`, and what its keys say."""
    known = config.get("known_usecases")
    named = [str(use).lower().removeprefix("flag_") for use in (known if isinstance(known, list) else [])]
    switched = [use for key, use in (("embeddings", "embeddings"), ("reranking", "rerank")) if config.get(key) is True]
    pictures = ["vision"] if config.get("mmproj") else []
    return tuple(dict.fromkeys([*named, *switched, *pictures]))


def is_text(config: Mapping[str, Any]) -> bool:
    """The model reads or writes text, as far as its backend and its use cases tell: what this program is for."""
    kind = KINDS.get(plain_backend(str(config.get("backend") or "")))
    if kind is not None:
        return kind in _TEXT_KINDS
    uses = use_cases(config)
    return not uses or bool(_TEXT_USES.intersection(uses))
