"""From a Hub id to a plan: what its repo holds, which of its files to take, and the YAML that serves them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llmgallery.catalog import formats, gguf
from llmgallery.catalog.gallery.localai import Engine
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_client import FileMeta, near_names
from llmgallery.catalog.hub_repo import Repo, RepoFile
from llmgallery.catalog.install import choose
from llmgallery.catalog.install.backends import backend_for
from llmgallery.catalog.install.choose import Candidate
from llmgallery.catalog.install.header import Judge, RemoteHeader, judged, remote_header
from llmgallery.catalog.install.plan import InstallPlan, PlannedFile
from llmgallery.catalog.install.write import checked, yaml_text
from llmgallery.catalog.purpose import purpose
from llmgallery.catalog.reference import HubReference
from llmgallery.config.load import LoadedModel
from llmgallery.config.model import ModelConfig
from llmgallery.config.outside import Outside
from llmgallery.core.errors import BadWeights, HubNotFound, HubUnavailable, NotAllowed

PLAN_SECONDS = 300.0
"""The longest that a plan may take: listing, configuration and one or two headers."""

WORTH_HAVING = 8192
"""Tokens of context, or all that a model has: a quantisation that leaves no memory for as many does not fit."""

_CONFIG_BYTES = 4 << 20
_MOST_LISTED = 40
_EMBEDS = frozenset({1, 2, 3})
"""llama.cpp's pooling types mean, cls and last; only models that make vectors have one of them in their header."""
_EMBEDDING_TASKS = frozenset({"feature-extraction", "sentence-similarity"})
_RANKING_TASK = "text-ranking"
_NO_MODELS = frozenset({"adapter", "imatrix", "mmproj", "projector", "control-vector", "controlvector"})


async def plan_hub(
    hub: Hub,
    ref: HubReference,
    *,
    specs: Mapping[str, Engine],
    judge: Judge | None = None,
    name: str | None = None,
    outside: Outside | None = None,
    folder: Path = Path(),
    allow_pickle: bool = False,
) -> InstallPlan:
    """What installing a Hub id will do. Fetches its repo's listing, small configuration files and the beginning of a weights
    file, nothing else, in PLAN_SECONDS at most.

    `name`: the model's, else the reference itself. `judge`: None = memory is not looked at. `folder`: where the YAML will lie.
    Raises HubError (HubNotFound with near names), BackendMissing for a format that nothing here loads, NotAllowed for weights
    that hold code, BadWeights for a file that is no model, ConfigError for a name that cannot be one.
    """
    try:
        async with asyncio.timeout(PLAN_SECONDS):
            repo = await hub.describe(ref.repo, ref.revision)
            planner = _Planner(hub, ref, repo, specs, judge, name or str(ref), outside, folder)
            return await planner.plan(allow_pickle)
    except TimeoutError:
        raise HubUnavailable(f"{ref} could not be looked at within {PLAN_SECONDS:.0f} s: ask again") from None


class _Choice(NamedTuple):
    """`why`: ends the sentence "Chosen: X, ..."."""

    model: Candidate
    why: str
    others: Sequence[Candidate] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class _Planner:
    hub: Hub
    ref: HubReference
    repo: Repo
    specs: Mapping[str, Engine]
    judge: Judge | None
    name: str
    outside: Outside | None
    folder: Path
    _headers: dict[str, RemoteHeader] = field(default_factory=dict)

    async def plan(self, allow_pickle: bool) -> InstallPlan:
        models = await asyncio.to_thread(choose.candidates, self.repo.files)
        if self.ref.file is not None:
            return await self.of_file(self.ref.file, models, allow_pickle)
        if self.ref.quant is not None:
            if not models:
                raise self.no_quantisations(self.ref.quant)
            model = choose.asked_for(models, self.ref.quant, self.ref.repo)
            return await self.of_gguf(_Choice(model, "as it was asked for", models))
        return await self.of_repo(models, allow_pickle)

    async def of_file(self, path: str, models: Sequence[Candidate], allow_pickle: bool) -> InstallPlan:
        """What the file is, is told by its first bytes."""
        file = self.repo.file(path)
        if file is None:
            near = await asyncio.to_thread(near_names, path, [one.path for one in self.repo.files])
            advice = f"; nearest: {', '.join(near)}" if near else ""
            raise HubNotFound(
                f"{self.repo.name} has no file {path} at revision {self.ref.revision}{advice}",
                field="file",
                hints=tuple(f"{self.repo.name}/{one}" for one in near),
            )
        head = await self.hub.read(await self.meta(path), 0, 512)
        found = formats.of_head(head)
        if found == formats.GGUF:
            if missing := choose.missing_parts(path, self.repo.files):
                raise HubNotFound(f"{self.repo.name} lacks parts of {path}: {', '.join(missing[:5])}", field="file")
            return await self.of_gguf(_Choice(choose.whole(file, self.repo.files), "as it was asked for", models))
        if found in (formats.SAFETENSORS, formats.PYTORCH) and "/" not in path:
            return await self.of_repo([], allow_pickle)
        what = f"holds {found} weights, which cannot be installed by themselves" if found else "is no weights file that we know"
        raise BadWeights(f"{self.repo.name}/{path} {what}: name a GGUF file, or the repo alone", field="model")

    async def of_repo(self, models: list[Candidate], allow_pickle: bool) -> InstallPlan:
        """GGUF first, where something loads it."""
        if models and any(formats.GGUF in spec.formats and not spec.missing() for spec in self.specs.values()):
            return await self.of_gguf(await self.best(models))
        inside = await self.folder_kinds()
        if formats.PYTORCH in inside and not allow_pickle:
            if not models:
                raise self.pickled()
            inside = []
        kinds = [formats.GGUF, *inside] if models else inside
        if not kinds:
            raise self.nothing()
        _, backend = backend_for(self.repo.name, kinds, self.specs)
        return await self.of_folder(inside, backend)

    # --- GGUF ---------------------------------------------------------------------------------------------------------------

    async def best(self, models: list[Candidate]) -> _Choice:
        """The best quantisation that fits the memory; KV caches are alike for all, so that one header judges them."""
        found, others = choose.main_model(models)
        warnings: tuple[str, ...] = ()
        if others:
            listed = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
            warnings = (f"{self.repo.name} holds other models too ({listed}): name a file of it to have one of them",)
        usual = choose.usual(found)
        if len(found) == 1:
            return _Choice(usual, "the only one there is", models, warnings)
        if self.judge is None or any(part.size is None for one in found for part in one.parts):
            return _Choice(usual, "the usual choice", models, warnings)
        header = await self.header(usual)
        context = min(header.header.context_length or WORTH_HAVING, WORTH_HAVING)
        config = msgspec.structs.replace(ModelConfig(context_size=context, parallel=1), **_uses(header.header, self.repo.task))
        for one in choose.by_quality(found):
            if (await judged(self.judge, config, _sizes(one, header.data))).fits:
                return _Choice(one, "the best quantisation that fits this machine's memory", models, warnings)
        return _Choice(usual, "the usual choice: no quantisation fits this machine's memory", models, warnings)

    async def of_gguf(self, choice: _Choice) -> InstallPlan:
        model = choice.model
        _, backend = backend_for(self.repo.name, [formats.GGUF], self.specs)
        read = await self.header(model)
        _check_model(read.header, f"{self.repo.name}/{model.file}", model.parts[0].size)
        projector = choose.projector(self.repo.files, model)
        uses = _uses(read.header, self.repo.task)
        config: dict[str, Any] = {
            "name": self.name,
            "description": _title(read.header.name or self.repo.name.partition("/")[2], model.label),
            "owned_by": self.repo.name.partition("/")[0],
            "backend": backend,
            "parameters": {"model": self.pinned(model.file)},
            **({"mmproj": self.pinned(projector.path)} if projector else {}),
            **uses,
        }
        notes = self.notes(choice, projector)
        if not uses and read.header.chat_template is None and not read.header.templates:
            notes.append(_NO_TEMPLATE)
        files = [*model.parts, *([projector] if projector else [])]
        loaded_files = _sizes(model, read.data)
        if projector is not None and "mmproj" in self.specs[backend].keys:
            loaded_files.append((projector.path, projector.size or 0, b""))
        return await self.finish(config, notes, files, loaded_files, choice.warnings)

    async def header(self, model: Candidate) -> RemoteHeader:
        if model.file not in self._headers:
            self._headers[model.file] = await remote_header(self.hub, await self.meta(model.file))
        return self._headers[model.file]

    async def meta(self, path: str) -> FileMeta:
        return await self.hub.metadata(self.repo.name, self.repo.commit, path)

    def notes(self, choice: _Choice, projector: RepoFile | None) -> list[str]:
        """What was chosen, what else there is, and how to have that."""
        model = choice.model
        chosen = f"Chosen: {model.title} ({size_text(model.size)}), {choice.why}."
        parts = f" Its {len(model.parts)} parts come together." if len(model.parts) > 1 else ""
        beside = f" {projector.name} comes with it, the projector for images." if projector else ""
        others = [one for one in choose.by_quality(choice.others) if one.file != model.file]
        if not others:
            return [chosen + parts + beside]
        listed = [f"{one.title} ({size_text(one.size)})" for one in others[:_MOST_LISTED]]
        more = f" and {len(others) - _MOST_LISTED} more" if len(others) > _MOST_LISTED else ""
        return [
            chosen + parts + beside,
            f"Also there: {', '.join(listed)}{more}.",
            f"To have another one: ask for {self.repo.name}:{others[0].title}, which is installed beside this one, or write its "
            "file's name after model: below.",
        ]

    # --- folders --------------------------------------------------------------------------------------------------------------

    async def folder_kinds(self) -> list[str]:
        """The formats in which the repo's own folder can be loaded, the most telling first."""
        names = [file.path for file in self.repo.files if "/" not in file.path]
        found = formats.of_names(names, await self.small_json("config.json"))
        if found is None:
            return []
        is_sentence = "modules.json" in names and found in (formats.SAFETENSORS, formats.PYTORCH)
        return [formats.SENTENCE_TRANSFORMERS, found] if is_sentence else [found]

    async def small_json(self, path: str) -> dict[str, Any] | None:
        file = self.repo.file(path)
        if file is None or (file.size or 0) > _CONFIG_BYTES:
            return None
        try:
            value = json.loads(await self.hub.read(await self.meta(path), 0, _CONFIG_BYTES))
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    async def of_folder(self, kinds: Sequence[str], backend: str) -> InstallPlan:
        """`kinds`: what the folder is, the format of its weights last."""
        format_ = kinds[-1]
        files = choose.folder_files(self.repo.files, format_)
        weights = [file for file in files if file.name.endswith(choose.weight_suffixes(format_))]
        total = sum(file.size or 0 for file in files)
        config: dict[str, Any] = {
            "name": self.name,
            "description": _title(self.repo.name.partition("/")[2], format_),
            "owned_by": self.repo.name.partition("/")[0],
            "backend": backend,
            "parameters": {"model": f"{self.repo.name}@{self.repo.commit}"},
            **_folder_uses(kinds, self.repo.task),
        }
        note = f"Chosen: the {format_} weights ({size_text(total)} in {len(files)} files), which backend {backend} loads."
        return await self.finish(config, [note], files, [(file.path, file.size or 0, b"") for file in weights], ())

    # --- both ------------------------------------------------------------------------------------------------------------------

    async def finish(
        self,
        config: dict[str, Any],
        notes: list[str],
        files: Sequence[RepoFile],
        loads: Sequence[tuple[str, int, bytes]],
        warnings: tuple[str, ...],
    ) -> InstallPlan:
        """The YAML, read back; and what loading it will take."""
        branch = "main" if self.ref.pinned else self.ref.revision
        text = yaml_text(config, [*self.origin(files), *notes], {"parameters": _PINNED.format(branch=branch)})
        loaded = checked(text, self.name, self.folder, self.specs, self.outside)
        return InstallPlan(
            name=self.name,
            source=f"{self.repo.name}@{self.repo.commit}",
            yaml=text,
            files=tuple(self.planned(file) for file in files),
            backend=config["backend"],
            licence=self.repo.licence,
            memory_bytes=None if any(file.size is None for file in files) else await self.memory(loaded, loads),
            warnings=(*warnings, *(f"{warning.key}: {warning.message}" for warning in loaded.warnings)),
        )

    async def memory(self, loaded: LoadedModel, loads: Sequence[tuple[str, int, bytes]]) -> int | None:
        if self.judge is None or loaded.config is None:
            return None
        return (await judged(self.judge, loaded.config, loads)).bytes

    def origin(self, files: Sequence[RepoFile]) -> list[str]:
        asked = "" if self.ref.pinned else f", which {self.ref.revision} was when it was installed"
        count = f"{len(files)} files" if len(files) > 1 else "one file"
        size = size_text(sum(file.size or 0 for file in files))
        task = f" Made for: {self.repo.task}." if self.repo.task else ""
        return [
            f"From {self.hub.settings.endpoint}/{self.repo.name}, commit {self.repo.commit}{asked}.",
            f"Licence: {self.repo.licence or 'not stated there'}.{task} Size: {size} in {count}.",
        ]

    def planned(self, file: RepoFile) -> PlannedFile:
        return PlannedFile(uri=f"hf://{self.pinned(file.path)}", name=file.path, sha256=file.sha256, size=file.size)

    def pinned(self, path: str) -> str:
        return str(HubReference(self.repo.name, path, revision=self.repo.commit))

    # --- what cannot be --------------------------------------------------------------------------------------------------------

    def no_quantisations(self, quant: str) -> HubNotFound:
        return HubNotFound(
            f"{self.repo.name} has no GGUF file, and only those are chosen by a quantisation such as {quant}: ask for "
            f"{self.repo.name} alone, or for a repo of GGUF files (their names often end in -GGUF)",
            field="model",
            hints=(self.repo.name,),
        )

    def nothing(self) -> HubNotFound:
        names = {file.path for file in self.repo.files}
        if "adapter_config.json" in names:
            why = "is a LoRA adapter: install its base model, and name an adapter in GGUF under lora_adapters in its YAML"
        elif "model_index.json" in names:
            why = "is made of parts for diffusers, for images or sound; only models that read and write text are served"
        elif split := [one for one in names if one.lower().endswith(".gguf") and choose.missing_parts(one, self.repo.files)]:
            why = f"lacks parts of its model: {', '.join(choose.missing_parts(min(split), self.repo.files)[:3])}"
        elif any(name.endswith(".safetensors") for name in names):
            why = "holds safetensors files without the config.json that says what they are: name a repo that has one"
        else:
            why = "holds no weights in a format that is known here (GGUF, safetensors, GPTQ, AWQ, EXL2, EXL3, OpenVINO)"
        hints = tuple(sorted(names, key=lambda name: (name.endswith((".md", ".gitattributes")), name))[:10])
        return HubNotFound(f"{self.repo.name} {why}", field="model", hints=hints)

    def pickled(self) -> NotAllowed:
        names = [file.path for file in self.repo.files if file.name.endswith(choose.PICKLE)]
        return NotAllowed(
            f"{self.repo.name} holds its weights as pickle only ({', '.join(names[:3])}), which can run any code when it is "
            "loaded: ask for a version in safetensors or GGUF, or write a YAML of your own that names these files",
            field="model",
        )


_NO_TEMPLATE = (
    "The file brings no chat template, so that chats are written in a common format. Where the model was trained for another "
    "one, say so: template: {preset: NAME}."
)
_PINNED = (
    "The weights, at a commit, so that they never change by themselves. @{branch} in its place would follow the repo; every "
    "load then asks the Hub first."
)


def _sizes(model: Candidate, head: bytes) -> list[tuple[str, int, bytes]]:
    """For the judge: all parts, the first with a header."""
    return [(part.path, part.size or 0, head if index == 0 else b"") for index, part in enumerate(model.parts)]


def _check_model(header: gguf.Header, where: str, size: int | None) -> None:
    """Raises BadWeights for a GGUF file that is something else, or that was not uploaded whole."""
    if header.tensors and size is not None and size < header.data_end:
        raise BadWeights(f"{where} is cut: the Hub has {size:,} of {header.data_end:,} bytes; take another file", field="model")
    kind = str(header.metadata.get("general.type", "model"))
    if header.architecture in ("clip", "mmproj") or kind in _NO_MODELS:
        what = f"of type {kind}" if kind not in ("model", "mmproj", "projector") else "a projector"
        raise BadWeights(f"{where} is no model: it is {what}; name the file of the model", field="model")


def _uses(header: gguf.Header, task: str | None) -> dict[str, bool]:
    """`embeddings` or `reranking`, where the header or the repo's task says that the model is made for it."""
    made_for = purpose(header)
    if made_for == "rerank":
        return {"reranking": True}
    pools = header.metadata.get(f"{header.architecture}.pooling_type") in _EMBEDS
    return {"embeddings": True} if made_for == "embed" or pools or task in _EMBEDDING_TASKS else {}


def _folder_uses(kinds: Sequence[str], task: str | None) -> dict[str, bool]:
    if task == _RANKING_TASK:
        return {"reranking": True}
    embeds = formats.SENTENCE_TRANSFORMERS in kinds or task in _EMBEDDING_TASKS
    return {"embeddings": True} if embeds else {}


def _title(name: str, what: str) -> str:
    plain = "".join(sign for sign in name if sign.isprintable()).strip()[:100]
    return f"{plain}, {what}" if what else plain


def size_text(size: int) -> str:
    """Bytes as people read them, with three digits that count."""
    for unit, power in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 1 << power:
            return f"{size / (1 << power):.3g} {unit}" if size < 1000 << power else f"{size >> power} {unit}"
    return f"{size} bytes"
