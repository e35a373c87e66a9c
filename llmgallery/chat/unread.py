"""Fields of a request that only a prompt format can honour, and what becomes of them when the model's does not read them."""

from __future__ import annotations

from collections.abc import Iterable

from llmgallery.config.model import OnUnsupported
from llmgallery.core.errors import UnsupportedField
from llmgallery.core.requests import ChatRequest


def unread(request: ChatRequest, texts: Iterable[str], policy: OnUnsupported) -> tuple[str, ...]:
    """The warnings that the client is owed. `texts`: the format's templates. Raises UnsupportedField by `on_unsupported`:
    documents are a demand, for the answer is another one without them; reasoning_effort and metadata are hints."""
    asked = {
        "documents": bool(request.template_vars.get("documents")),
        "reasoning_effort": request.reasoning_effort is not None,
        "metadata": bool(request.metadata),
    }
    warnings: list[str] = []
    for field in (field for field, wanted in asked.items() if wanted):
        key = "demands" if field == "documents" else "hints"
        rule = policy.demands if key == "demands" else policy.hints
        if rule == "ignore" or _reads(texts, field):
            continue
        why = "the model's chat template does not read it"
        if rule == "error":
            raise UnsupportedField(
                f"{field}: {why}; leave it out, or set `on_unsupported: {{{key}: warn}}` in the model's YAML to have it ignored",
                field=field,
            )
        warnings.append(f"{field} was ignored: {why}")
    return tuple(warnings)


def _reads(texts: Iterable[str], field: str) -> bool:
    """Jinja says reasoning_effort, LocalAI's Go templates .ReasoningEffort."""
    word = field.replace("_", "")
    return any(word in text.replace("_", "").lower() for text in texts)
