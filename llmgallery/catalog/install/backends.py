"""Which backend loads a format; and when none does, what to do about it before anything is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmgallery.catalog import formats
from llmgallery.catalog.gallery.localai import Engine, check_library
from llmgallery.core.errors import BackendMissing

MADE_FOR: Mapping[str, str] = {
    formats.GGUF: "llama-cpp",
    formats.EXL2: "exllama",
    formats.EXL3: "exllama",
    formats.GPTQ: "transformers",
    formats.AWQ: "transformers",
    formats.SAFETENSORS: "transformers",
    formats.PYTORCH: "transformers",
    formats.OPENVINO: "openvino",
    formats.SENTENCE_TRANSFORMERS: "embeddings",
}
"""The backend that a format is made for, whether it is here or not."""


def backend_for(what: str, kinds: Sequence[str], specs: Mapping[str, Engine]) -> tuple[str, str]:
    """(format, backend) of the first of `kinds` that a backend here loads. Raises BackendMissing for `what`, naming format,
    backend and what to do."""
    able = [(kind, spec) for kind in kinds for spec in specs.values() if kind in spec.formats]
    for kind, spec in able:
        if not spec.missing():
            return kind, spec.name
    for kind, spec in able:
        check_library(spec, f"{what} ({kind} weights)")
    loads = sorted({kind for spec in specs.values() for kind in spec.formats})
    raise BackendMissing(
        f"{what} holds {kinds[0]} weights, which need backend {MADE_FOR.get(kinds[0], kinds[0])}; this version does not have it. "
        f"Ask for a version of the model in {' or '.join(loads) or 'another format'} "
        f"(backends here: {', '.join(sorted(specs))})"
    )
