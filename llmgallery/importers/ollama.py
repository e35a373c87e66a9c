"""Ollama's Modelfiles, and all models that Ollama keeps on this machine, to model files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from yaml.error import Mark
from yaml.nodes import MappingNode, ScalarNode

from llmgallery.catalog.install.write import file_name
from llmgallery.config.problems import Problem
from llmgallery.config.regular import open_regular
from llmgallery.core.errors import ConfigError
from llmgallery.importers import modelfile, ollama_store
from llmgallery.importers.base import Around, Imported, Importer, WrittenFile
from llmgallery.importers.draft import Draft, Origin, Row, finish
from llmgallery.importers.ledger import Ledger, read_source
from llmgallery.importers.local_files import is_foreign, reference_to, stem_of
from llmgallery.importers.modelfile import Instruction
from llmgallery.templates.ollama import check_ollama

_FILE = re.compile(r"(^|[._-])modelfile([._-]|$)", re.I)
_PATH = re.compile(r"(/|\.|~|[A-Za-z]:[\\/]|\\\\)")
_HUB = re.compile(r"(hf\.co|huggingface\.co)/", re.I)
_PROJECTOR = re.compile(r"(^|[-_./])(mmproj|projector)([-_.]|$)", re.I)
_MOST = 4 * 1024 * 1024


def _tokens(value: int) -> int:
    if value == 0:
        raise ValueError("0 tokens: not imported")
    return max(value, -1)


ROWS = (
    Row(("num_ctx",), "context_size", int, neutral=(0,)),
    Row(("num_predict",), "parameters.max_tokens", int, convert=_tokens),
    Row(("draft_num_predict",), "n_draft", int),
    Row(("num_gpu",), "gpu_layers", int, neutral=(-1,)),
    Row(("main_gpu",), "main_gpu", int, neutral=(0,)),
    Row(("num_thread",), "threads", int, neutral=(0,)),
    Row(("num_batch",), "parameters.batch", int),
    Row(("use_mmap",), "mmap", bool),
    Row(("use_mlock",), "mmlock", bool, neutral=(False,)),
    Row(("f16_kv",), "f16", bool, neutral=(True,)),
    Row(("numa",), "numa", bool, neutral=(False,)),
    Row(("embedding_only",), "embeddings", bool, neutral=(False,)),
    Row(("rope_frequency_base",), "parameters.rope_freq_base", float, neutral=(0,)),
    Row(("rope_frequency_scale",), "parameters.rope_freq_scale", float, neutral=(0,)),
    *(Row((name,), f"parameters.{name}", int) for name in ("seed", "top_k", "repeat_last_n", "mirostat")),
    *(Row((name,), f"parameters.{name}", float) for name in ("temperature", "top_p", "min_p", "typical_p", "repeat_penalty")),
    *(Row((name,), f"parameters.{name}", float) for name in ("presence_penalty", "frequency_penalty")),
    *(Row((name,), f"parameters.{name}", float) for name in ("mirostat_tau", "mirostat_eta")),
)
"""Parameters that one key of a model file means as well. Source: api/types.go of Ollama, of all its versions."""

REASONS = {
    "num_keep": "a conversation that is too long is refused, never cut",
    "tfs_z": "llama.cpp has no tail-free sampling any more",
    "penalize_newline": "line ends are penalised like all other tokens",
    "low_vram": "llama.cpp has nothing like it any more",
    "num_gqa": "the weights say it",
    "logits_all": "a request asks for logprobs",
    "vocab_only": "a model is loaded when it is asked for",
    "REQUIRES": "it is about versions of Ollama",
    "RENDERER": "it is a part of Ollama: chats are written with the template of the weights",
    "PARSER": "it is a part of Ollama",
    "CAPABILITY": "the weights say what they can do",
    "MESSAGE": "an example conversation: send it with each request",
}
"""Why something has no counterpart."""


def recognises(source: Path) -> bool:
    """A Modelfile by its name or by what stands in it, a folder with one, or Ollama's folder of models."""
    if source.is_dir():
        return ollama_store.is_store(source) or (source / "Modelfile").is_file()
    return bool(_FILE.search(source.name)) or _reads_like_one(source)


def read(source: Path, around: Around) -> Imported:
    """Raises ConfigError for a Modelfile that cannot be read or says nothing of weights."""
    if source.is_dir() and ollama_store.is_store(source):
        return _all_of(source, around)
    path = source / "Modelfile" if source.is_dir() else source
    text = modelfile.decoded(read_source(path, _MOST))
    instructions, odd = modelfile.parse(text, path)
    if "\ufffd" in text:
        line = text.count("\n", 0, text.index("\ufffd")) + 1
        odd.append(Problem(path, line, 1, "", "is not UTF-8: such characters become \ufffd, as in Ollama", "save it as UTF-8"))
    recipe = _Recipe(path, instructions, around, ollama_store.folder(around.env))
    recipe.ledger.warnings += odd
    return _finished([recipe.read()], around)


IMPORTER = Importer("ollama", "an Ollama Modelfile, or Ollama's folder of models", recognises, read)


def _reads_like_one(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            text = modelfile.decoded(file.read(64 * 1024))
        found, odd = modelfile.parse(text, path)
    except (OSError, ConfigError):
        return False
    return not odd and any(one.name == "FROM" for one in found)


def _all_of(store: Path, around: Around) -> Imported:
    recipes, failed = [], []
    for name, manifest in ollama_store.names(store).items():
        try:
            instructions = ollama_store.instructions(store, manifest)
        except (OSError, msgspec.DecodeError) as error:
            failed.append(Problem(manifest, 0, 0, "", f"{name} cannot be read: {error}"))
            continue
        recipes.append(_Recipe(manifest, instructions, around, store, name).read())
    return _finished(recipes, around, failed)


def _finished(recipes: Sequence[_Recipe], around: Around, failed: Sequence[Problem] = ()) -> Imported:
    return finish(
        [draft for recipe in recipes for draft in recipe.drafts],
        [ledger for recipe in recipes for ledger in recipe.ledgers],
        around,
        files=[file for recipe in recipes for file in recipe.files],
        notes=[note for recipe in recipes for note in recipe.notes],
        problems=[*failed, *(problem for recipe in recipes for problem in recipe.problems)],
    )


@dataclass
class _Recipe:
    """One model: its instructions, and those of the model that it is made from."""

    path: Path
    own: list[Instruction]
    around: Around
    store: Path
    name: str | None = None
    base: list[Instruction] = field(default_factory=list)
    drafts: list[Draft] = field(default_factory=list)
    files: list[WrittenFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.path)
        self.ledgers = [self.ledger]

    def read(self) -> _Recipe:
        sources = [one for one in self.own if one.name == "FROM" and not _is_projector(one)]
        if not sources:
            self.problems.append(Problem(self.path, 0, 0, "FROM", "nothing says which weights: a Modelfile needs a FROM"))
            return self
        reference = self.weights(sources[0])
        if reference is None:
            return self
        draft = self.draft(sources[0])
        draft.set("name", draft.name)
        self.put(draft, "parameters.model", reference, sources[0])
        self.drafts.append(draft)
        self.other_files(draft, sources[1:])
        self.parameters(draft)
        self.texts(draft)
        for one in (*self.base, *self.own):
            if one.name in ("REQUIRES", "RENDERER", "PARSER", "CAPABILITY"):
                self.leave(one)
        return self

    def draft(self, source: Instruction) -> Draft:
        """Ollama knows `llama3.2:latest` without its tag as well."""
        if self.name is None or self.around.name:
            return Draft(self.around.name or self.made_up_name(source), self.ledger)
        short = self.name.removesuffix(":latest")
        draft = Draft(short, self.ledger)
        if short != self.name:
            draft.set("aliases", [self.name])
        return draft

    # --- files -------------------------------------------------------------------------------------------------------------

    def weights(self, source: Instruction) -> str | None:
        """The reference of what a FROM names; None = nobody can know, which is a problem."""
        text = source.value.strip()
        if not _HUB.match(text) and not _PATH.match(text) and not (self.path.parent / text).exists():
            return self.from_library(source, text)
        return self.reference(source, _one_of(self.path.parent, text))

    def from_library(self, source: Instruction, name: str) -> str | None:
        """The weights of a model that Ollama has here under this name; what else it says of the model is the base."""
        manifest = ollama_store.manifest_of(self.store, name)
        if manifest is not None:
            try:
                self.base = ollama_store.instructions(self.store, manifest)
            except (OSError, msgspec.DecodeError) as error:
                self.problems.append(Problem(manifest, 0, 0, "", f"{name} cannot be read: {error}"))
                return None
            blobs = [one for one in self.base if one.name == "FROM" and not _is_projector(one)]
            if blobs:
                return self.reference(blobs[0], blobs[0].value)
        if self.around.weights:
            return self.around.weights
        message = f"{name} is a model of Ollama's library, and Ollama does not keep it on this machine"
        advice = f"`ollama pull {name}` gets it, or --model names other weights, such as owner/repo:Q4_K_M of the Hub"
        self.problems.append(Problem(source.path, source.line, 1, "FROM", message, advice))
        return None

    def reference(self, source: Instruction, text: str) -> str | None:
        """How a model file names a file; None = it cannot, which is a problem."""
        try:
            found = reference_to(text, source.path.parent, self.around.folder)
        except ValueError as error:
            self.problems.append(Problem(source.path, source.line, 1, source.key, str(error)))
            return None
        if is_foreign(text):
            message = f"{text} is a path of another machine: {found} is looked for beside the model's YAML"
            self.ledger.warn(source.node(), source.key, message)
        return found

    def other_files(self, draft: Draft, more: Sequence[Instruction]) -> None:
        """Projectors, adapters, the draft model. `more`: FROMs after the first, which are its other parts."""
        first = draft.get("parameters.model")
        for one in more:
            if stem_of(one.value) != stem_of(str(first)):
                self.leave(one, "one model has one set of weights: not imported")
        keys = {"ADAPTER": "lora_adapters", "DRAFT": "draft_model", "FROM": "mmproj"}
        named = [one for one in (*self.base, *self.own) if one.name in ("ADAPTER", "DRAFT") or _is_projector(one)]
        for one in named:
            found = self.reference(one, one.value.strip())
            before = draft.get(keys[one.name])
            if found is not None and one.name == "ADAPTER":
                self.put(draft, keys[one.name], list(dict.fromkeys([*(before or ()), found])), one)
            elif found is not None:
                if before not in (None, found):
                    self.ledger.warn(one.node(), one.key, f"counts in place of {before}, which is not imported")
                self.put(draft, keys[one.name], found, one)

    # --- what it says ------------------------------------------------------------------------------------------------------

    def parameters(self, draft: Draft) -> None:
        own = {one.word: one for one in self.own if one.name == "PARAMETER"}
        base = {one.word: one for one in self.base if one.name == "PARAMETER" and one.word not in own}
        for one in self.own:
            if one.name == "PARAMETER" and one.word != "stop" and own[one.word] is not one:
                self.leave(one, f"line {own[one.word].line} says it again, which counts")
        for instructions, ledger in ((own, self.ledger), (base, self.base_ledger())):
            self.stops(draft, self.own if instructions is own else self.base)
            table = ledger.table(_mapping(instructions), "PARAMETER")
            draft.fill(table, ROWS)
            for name in table.unread():
                table.leave(name, *([f"not imported: {REASONS[name]}"] if name in REASONS else []))

    def base_ledger(self) -> Ledger:
        """For what the model says that this one is made from."""
        if len(self.ledgers) == 1 and self.base:
            self.ledgers.append(Ledger(self.base[0].path))
        return self.ledgers[-1]

    def stops(self, draft: Draft, instructions: Sequence[Instruction]) -> None:
        found = [one for one in instructions if one.name == "PARAMETER" and one.word == "stop" and one.value]
        if found and draft.get("stopwords") is None:
            self.put(draft, "stopwords", list(dict.fromkeys(one.value for one in found)), found[0])

    def texts(self, draft: Draft) -> None:
        system, template = self.last("SYSTEM"), self.last("TEMPLATE")
        messages = [one for one in (*self.base, *self.own) if one.name == "MESSAGE"]
        if system is None or not system.value:
            system = next((one for one in messages if one.word == "system"), None)
        if system is not None and system.value:
            self.put(draft, "system_prompt", system.value, system)
        for one in messages:
            if one is not system:
                self.leave(one)
        if template is not None and template.value:
            self.template(draft, template)
        if licences := [one.value for one in (*self.base, *self.own) if one.name == "LICENSE" and one.value.strip()]:
            name = file_name(draft.name).removesuffix(".yaml")
            self.files.append(WrittenFile(f"{name}.license.txt", "\n\n".join(text.strip() for text in licences) + "\n"))

    def template(self, draft: Draft, template: Instruction) -> None:
        if self.last("RENDERER") is not None:
            self.leave(template, "Ollama uses its RENDERER instead; chats are written with the template of the weights")
            return
        if fault := check_ollama(template.value):
            message = f"does not parse (line {fault.line}, column {fault.column}: {fault.message})"
            self.leave(template, f"{message}: the template of the weights is used")
            return
        self.put(draft, "template.engine", "ollama", template)
        self.put(draft, "template.chat", template.value, template)

    # --- small things ------------------------------------------------------------------------------------------------------

    def last(self, name: str) -> Instruction | None:
        """What counts of an instruction that may stand there several times."""
        return next((one for one in reversed([*self.base, *self.own]) if one.name == name), None)

    def put(self, draft: Draft, key: str, value: Any, source: Instruction) -> None:
        draft.set(key, value)
        draft.origins[key] = Origin(source.path, source.node(), source.key)

    def leave(self, one: Instruction, message: str = "") -> None:
        """Note an instruction that is not imported, with its value."""
        why = REASONS.get(one.name, "has no counterpart here")
        ledger = self.ledger if one in self.own else self.base_ledger()
        key = one.key if one.key not in ledger.left else f"{one.key} (line {one.line})"
        ledger.leave(one.node(), key, message or f"not imported: {why}")

    def made_up_name(self, source: Instruction) -> str:
        """A Modelfile does not say its model's name: what stands beside `Modelfile` in the file's name, else the weights'."""
        own = ".".join(part for part in re.split(r"[._-]?modelfile[._-]?", self.path.name, flags=re.I) if part)
        name = own or stem_of(source.value) or self.path.parent.name
        self.notes.append(f"{self.path}: a Modelfile does not name its model, which is called {name} here; --name says another")
        return name


def _is_projector(one: Instruction) -> bool:
    return one.name == "FROM" and (one.word == "projector" or bool(_PROJECTOR.search(one.value)))


def _one_of(base: Path, text: str) -> str:
    """The first file of a pattern (parts of split weights), and the only GGUF file of a folder."""
    path = base / Path(text).expanduser()
    if "*" in path.name:
        return str(next(iter(sorted(path.parent.glob(path.name))), path))
    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    return str(files[0]) if len({stem_of(file.name) for file in files}) == 1 else text


def _mapping(instructions: dict[str, Instruction]) -> MappingNode:
    """Parameters as the mapping that they would be in YAML; `stop` is read elsewhere."""
    pairs = [(one.node(), name) for name, one in instructions.items() if name != "stop"]
    mark = Mark("", 0, 0, 0, None, 0)
    rows = [(ScalarNode(node.tag, name, node.start_mark, node.end_mark), node) for node, name in pairs]
    return MappingNode("tag:yaml.org,2002:map", rows, mark, mark)
