"""Which backend loads a format; and when none does, what to do about it before anything is downloaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmgallery.catalog import formats
from llmgallery.catalog.engines import Engine, able, check_here
from llmgallery.core.errors import BackendMissing

MADE_FOR: Mapping[str, str] = {
    formats.GGUF: "llama-cpp",
    formats.EXL2: "exllamav2",
    formats.EXL3: "exllamav2",
    formats.GPTQ: "transformers",
    formats.AWQ: "transformers",
    formats.SAFETENSORS: "transformers",
    formats.PYTORCH: "transformers",
    formats.OPENVINO: "openvino",
    formats.SENTENCE_TRANSFORMERS: "transformers",
}
"""The backend that a format is made for, whether it is here or not."""


def backend_for(what: str, kinds: Sequence[str], specs: Mapping[str, Engine]) -> tuple[str, str]:
    """(format, backend) of the first of `kinds` that a backend here loads. Raises BackendMissing for `what`, naming format,
    backend and what to do."""
    found = able(kinds, specs)
    for kind, spec in found:
        if not spec.lacks(kind):
            return kind, spec.name
    for kind, spec in found:
        check_here(spec, f"{what} ({kind} weights)", kind)
    loads = sorted({kind for spec in specs.values() for kind in spec.formats})
    raise BackendMissing(
        f"{what} holds {kinds[0]} weights, which need backend {MADE_FOR.get(kinds[0], kinds[0])}; this version does not have it. "
        f"Ask for a version of the model in {' or '.join(loads) or 'another format'} "
        f"(backends here: {', '.join(sorted(specs))})"
    )
