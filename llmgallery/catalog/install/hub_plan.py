"""From a Hub id to a plan: what its repo holds, which of its files to take, and the YAML that serves them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from llmgallery.catalog import formats
from llmgallery.catalog.engines import Engine
from llmgallery.catalog.folder import MOST, facts, read_object
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.hub_client import FileMeta
from llmgallery.catalog.hub_repo import Repo, RepoFile, near_names
from llmgallery.catalog.install import choose
from llmgallery.catalog.install.backends import backend_for
from llmgallery.catalog.install.choose import Candidate
from llmgallery.catalog.install.header import Judge, RemoteHeader, judged, remote_header
from llmgallery.catalog.install.hub_words import (
    check_model,
    folder_uses,
    header_uses,
    no_quantisations,
    nothing,
    pickled,
    size_text,
    sizes,
    title,
)
from llmgallery.catalog.install.plan import InstallPlan, PlannedFile
from llmgallery.catalog.install.write import checked, yaml_text
from llmgallery.catalog.reference import HubReference
from llmgallery.catalog.repo_folder import NUMBERED, folder_files, weight_suffixes
from llmgallery.config.load import LoadedModel
from llmgallery.config.model import ModelConfig
from llmgallery.config.outside import Outside
from llmgallery.core.errors import BadWeights, HubNotFound, HubUnavailable

PLAN_SECONDS = 300.0
"""The longest that a plan may take: listing, configuration and one or two headers."""

WORTH_HAVING = 8192
"""Tokens of context, or all that a model has: a quantisation that leaves no memory for as many does not fit."""

_MOST_LISTED = 40


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
    _small: dict[str, bytes] = field(default_factory=dict)

    async def plan(self, allow_pickle: bool) -> InstallPlan:
        models = await asyncio.to_thread(choose.candidates, self.repo.files)
        if self.ref.file is not None:
            return await self.of_file(self.ref.file, models, allow_pickle)
        if self.ref.quant is not None:
            if not models:
                raise no_quantisations(self.repo, self.ref.quant)
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
        if self.ref.whole is not None:
            models = []
        if models and any(formats.GGUF in spec.formats and not spec.lacks(formats.GGUF) for spec in self.specs.values()):
            return await self.of_gguf(await self.best(models))
        inside = await self.folder_kinds()
        if formats.PYTORCH in inside and not (allow_pickle or (self.ref.whole is not None and self.ref.whole.pickles)):
            if not models:
                raise pickled(self.repo)
            inside = []
        kinds = [formats.GGUF, *inside] if models else inside
        if not kinds:
            raise nothing(self.repo)
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
        config = msgspec.structs.replace(
            ModelConfig(context_size=context, parallel=1), **header_uses(header.header, self.repo.task)
        )
        for one in choose.by_quality(found):
            if (await judged(self.judge, config, sizes(one, header.data))).fits:
                return _Choice(one, "the best quantisation that fits this machine's memory", models, warnings)
        return _Choice(usual, "the usual choice: no quantisation fits this machine's memory", models, warnings)

    async def of_gguf(self, choice: _Choice) -> InstallPlan:
        model = choice.model
        _, backend = backend_for(self.repo.name, [formats.GGUF], self.specs)
        read = await self.header(model)
        check_model(read.header, f"{self.repo.name}/{model.file}", model.parts[0].size)
        projector = choose.projector(self.repo.files, model)
        uses = header_uses(read.header, self.repo.task)
        config: dict[str, Any] = {
            "name": self.name,
            "description": title(read.header.name or self.repo.name.partition("/")[2], model.label),
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
        loaded_files = sizes(model, read.data)
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
        found = formats.of_names(names, read_object(await self.small("config.json")))
        if found is None:
            return []
        is_sentence = "modules.json" in names and found in (formats.SAFETENSORS, formats.PYTORCH)
        return [formats.SENTENCE_TRANSFORMERS, found] if is_sentence else [found]

    async def small(self, path: str) -> bytes:
        """A configuration file; b"" = there is none."""
        if path not in self._small:
            file = self.repo.file(path)
            is_there = file is not None and (file.size or 0) <= MOST
            self._small[path] = await self.hub.read(await self.meta(path), 0, MOST) if is_there else b""
        return self._small[path]

    async def of_folder(self, kinds: Sequence[str], backend: str) -> InstallPlan:
        """`kinds`: what the folder is, the format of its weights last."""
        format_ = kinds[-1]
        only, files = self.named_of(folder_files(self.repo.files, format_), format_)
        config_json = await self.small("config.json")
        told = facts(read_object(config_json) or {}, [file.path for file in files])
        total = sum(file.size or 0 for file in files)
        model = self.pinned(only) if only else f"{self.repo.name}@{self.repo.commit}"
        config: dict[str, Any] = {
            "name": self.name,
            "description": title(self.repo.name.partition("/")[2], format_),
            "owned_by": self.repo.name.partition("/")[0],
            "backend": backend,
            "parameters": {"model": model},
            **folder_uses(told, self.repo.task),
        }
        note = f"Chosen: the {format_} weights ({size_text(total)} in {len(files)} files), which backend {backend} loads."
        known = [(file.path, file.size or 0, config_json if file.path == "config.json" else b"") for file in files]
        return await self.finish(config, [note], files, known, (), whole=True)

    def named_of(self, files: tuple[RepoFile, ...], format_: str) -> tuple[str | None, tuple[RepoFile, ...]]:
        """The weights file that was asked for, where the folder holds others beside it that are no parts of it, and the files
        that then remain."""
        weights = [file.path for file in files if file.name.endswith(weight_suffixes(format_)) and "/" not in file.path]
        if self.ref.file not in weights or len(weights) == 1 or any(NUMBERED.search(path) for path in weights):
            return None, files
        return self.ref.file, tuple(file for file in files if file.path == self.ref.file or file.path not in weights)

    # --- both ------------------------------------------------------------------------------------------------------------------

    async def finish(
        self,
        config: dict[str, Any],
        notes: list[str],
        files: Sequence[RepoFile],
        loads: Sequence[tuple[str, int, bytes]],
        warnings: tuple[str, ...],
        whole: bool = False,
    ) -> InstallPlan:
        """The YAML, read back; and what loading it will take. `loads`: the files that are loaded; `whole`: as a folder."""
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
            memory_bytes=None if any(file.size is None for file in files) else await self.memory(loaded, loads, whole),
            warnings=(*warnings, *(f"{warning.key}: {warning.message}" for warning in loaded.warnings)),
        )

    async def memory(self, loaded: LoadedModel, loads: Sequence[tuple[str, int, bytes]], whole: bool) -> int | None:
        if self.judge is None or loaded.config is None:
            return None
        return (await judged(self.judge, loaded.config, loads, whole=whole)).bytes

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


_NO_TEMPLATE = (
    "The file brings no chat template, so that chats are written in a common format. Where the model was trained for another "
    "one, say so: template: {preset: NAME}."
)
_PINNED = (
    "The weights, at a commit, so that they never change by themselves. @{branch} in its place would follow the repo; every "
    "load then asks the Hub first."
)
