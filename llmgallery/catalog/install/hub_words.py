"""What planning a Hub id says of a repo: what is wrong with it, what its model is made for, how large it is. Pure."""

from __future__ import annotations

from llmgallery.catalog import gguf
from llmgallery.catalog.folder import Facts
from llmgallery.catalog.hub_repo import Repo
from llmgallery.catalog.install import choose
from llmgallery.catalog.install.choose import Candidate
from llmgallery.catalog.purpose import purpose
from llmgallery.catalog.repo_folder import PICKLE
from llmgallery.core.errors import BadWeights, HubNotFound, NotAllowed

_EMBEDS = frozenset({1, 2, 3})
"""llama.cpp's pooling types mean, cls and last; only models that make vectors have one of them in their header."""
_EMBEDDING_TASKS = frozenset({"feature-extraction", "sentence-similarity"})
_RANKING_TASK = "text-ranking"
_NO_MODELS = frozenset({"adapter", "imatrix", "mmproj", "projector", "control-vector", "controlvector"})


def no_quantisations(repo: Repo, quant: str) -> HubNotFound:
    """A quantisation was asked for, of a repo without GGUF files."""
    return HubNotFound(
        f"{repo.name} has no GGUF file, and only those are chosen by a quantisation such as {quant}: ask for "
        f"{repo.name} alone, or for a repo of GGUF files (their names often end in -GGUF)",
        field="model",
        hints=(repo.name,),
    )


def nothing(repo: Repo) -> HubNotFound:
    """There is no model in it."""
    names = {file.path for file in repo.files}
    if "adapter_config.json" in names:
        why = "is a LoRA adapter: install its base model, and name this repo under lora_adapters in its YAML"
    elif "model_index.json" in names:
        why = "is made of parts for diffusers, for images or sound; only models that read and write text are served"
    elif split := [one for one in names if one.lower().endswith(".gguf") and choose.missing_parts(one, repo.files)]:
        why = f"lacks parts of its model: {', '.join(choose.missing_parts(min(split), repo.files)[:3])}"
    elif any(name.endswith(".safetensors") for name in names):
        why = "holds safetensors files without the config.json that says what they are: name a repo that has one"
    else:
        why = "holds no weights in a format that is known here (GGUF, safetensors, GPTQ, AWQ, EXL2, EXL3, OpenVINO)"
    hints = tuple(sorted(names, key=lambda name: (name.endswith((".md", ".gitattributes")), name))[:10])
    return HubNotFound(f"{repo.name} {why}", field="model", hints=hints)


def pickled(repo: Repo) -> NotAllowed:
    """Its weights may run code."""
    names = [file.path for file in repo.files if file.name.endswith(PICKLE)]
    return NotAllowed(
        f"{repo.name} holds its weights as pickle only ({', '.join(names[:3])}), which can run any code when it is "
        "loaded: ask for a version in safetensors or GGUF, or write a YAML of your own that names this repo and allows it "
        "(options: {safetensors_only: false})",
        field="model",
    )


def sizes(model: Candidate, head: bytes) -> list[tuple[str, int, bytes]]:
    """For the judge: all parts, the first with a header."""
    return [(part.path, part.size or 0, head if index == 0 else b"") for index, part in enumerate(model.parts)]


def check_model(header: gguf.Header, where: str, size: int | None) -> None:
    """Raises BadWeights for a GGUF file that is something else, or that was not uploaded whole."""
    if header.tensors and size is not None and size < header.data_end:
        raise BadWeights(f"{where} is cut: the Hub has {size:,} of {header.data_end:,} bytes; take another file", field="model")
    kind = str(header.metadata.get("general.type", "model"))
    if header.architecture in ("clip", "mmproj") or kind in _NO_MODELS:
        what = f"of type {kind}" if kind not in ("model", "mmproj", "projector") else "a projector"
        raise BadWeights(f"{where} is no model: it is {what}; name the file of the model", field="model")


def header_uses(header: gguf.Header, task: str | None) -> dict[str, bool]:
    """`embeddings` or `reranking`, where the header or the repo's task says that the model is made for it."""
    made_for = purpose(header)
    if made_for == "rerank":
        return {"reranking": True}
    pools = header.metadata.get(f"{header.architecture}.pooling_type") in _EMBEDS
    return {"embeddings": True} if made_for == "embed" or pools or task in _EMBEDDING_TASKS else {}


def folder_uses(facts: Facts, task: str | None) -> dict[str, bool]:
    """The same of a folder, by its config.json and its files."""
    if task == _RANKING_TASK or facts.purpose == "rerank":
        return {"reranking": True}
    return {"embeddings": True} if task in _EMBEDDING_TASKS or facts.purpose == "embed" else {}


def title(name: str, what: str) -> str:
    """A description."""
    plain = "".join(sign for sign in name if sign.isprintable()).strip()[:100]
    return f"{plain}, {what}" if what else plain


def size_text(size: int) -> str:
    """Bytes as people read them, with three digits that count."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):.3g} {unit}" if size < 1000 << power else f"{size >> power} {unit}"
    return f"{size} bytes"
