"""KoboldCpp's settings files (.kcpps, and .kcppt templates), and folders of them, to model files."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from llmgallery.config.problems import Problem
from llmgallery.core.errors import ConfigError, InvalidField
from llmgallery.importers import kobold_keys
from llmgallery.importers.base import MAX_PORT, SECRET, Around, Imported, Importer, WrittenFile
from llmgallery.importers.draft import Draft, finish
from llmgallery.importers.jsontext import read_json
from llmgallery.importers.ledger import Ledger, Table, keys_of
from llmgallery.importers.local_files import is_foreign, reference_to, stem_of
from llmgallery.templates import kobold

SUFFIXES = (".kcpps", ".kcppt")


def recognises(source: Path) -> bool:
    """A settings file by its suffix or its keys, or a folder with one."""
    if source.is_dir():
        return any(path.suffix.lower() in SUFFIXES for path in source.iterdir())
    return source.suffix.lower() in SUFFIXES or {"model_param", "contextsize"} <= keys_of(source)


def read(source: Path, around: Around) -> Imported:
    """Each file is a model; one that names no text model is a problem, and in a folder one that cannot be read. Raises
    ConfigError for a single file that cannot be read."""
    if not source.is_dir():
        return _finished([_Settings(source, around).read()], around, [])
    readings, failed = [], []
    for path in sorted(path for path in source.iterdir() if path.suffix.lower() in SUFFIXES):
        try:
            readings.append(_Settings(path, around).read())
        except ConfigError as error:
            failed += [Problem(hint, 0, 0, "", "the file cannot be imported") for hint in error.hints or (error.message,)]
    return _finished(readings, around, failed)


IMPORTER = Importer("kobold", "KoboldCpp's settings files (.kcpps)", recognises, read)


def _finished(readings: list[_Settings], around: Around, failed: list[Problem]) -> Imported:
    drafts = [draft for reading in readings for draft in reading.drafts]
    taken: set[str] = set()
    for draft in drafts:
        # Several files may be about one model: its old name is that of the first.
        draft.config["aliases"] = [alias for alias in draft.config.get("aliases", []) if alias not in taken]
        taken.update(draft.config["aliases"])
    settings: dict[str, Any] = {}
    for reading in readings:
        settings = {**reading.settings, **settings}
    return finish(
        drafts,
        [reading.ledger for reading in readings],
        around,
        files=_one_key_file([file for reading in readings for file in reading.files]),
        notes=[note for reading in readings for note in reading.notes],
        settings=settings,
        default=drafts[0].name if len(readings) == 1 and drafts else None,
        problems=[*failed, *(problem for reading in readings for problem in reading.problems)],
    )


def _one_key_file(files: list[WrittenFile]) -> list[WrittenFile]:
    """The server takes any of the keys; they lie in the first one's file."""
    lines = dict.fromkeys(file.text for file in files)
    return [replace(files[0], text="".join(lines))] if files else []


@dataclass
class _Settings:
    """One settings file, being read."""

    path: Path
    around: Around
    drafts: list[Draft] = field(default_factory=list)
    files: list[WrittenFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.path)

    def read(self) -> _Settings:
        root = read_json(self.path, self.ledger)
        if root is None:
            raise ConfigError(f"{self.path} is empty")
        table = self.ledger.table(root)
        self.model(table)
        self.embeddings(table)
        self.server(table)
        _leave_the_rest(table)
        return self

    def model(self, table: Table) -> None:
        weights, key = self.weights(table)
        if weights is None:
            message = "no text model is named, and nothing else of KoboldCpp is served here"
            self.problems.append(Problem(self.path, 0, 0, "model_param", message))
            return
        draft = Draft(self.around.name or self.path.stem, self.ledger)
        draft.set("name", draft.name)
        draft.set("aliases", [f"koboldcpp/{self.shown_name(table, weights)}"])
        if self.reference(draft, table, key, weights, "parameters.model"):
            self.drafts.append(draft)
            draft.fill(table, kobold_keys.ROWS)
            _hardware(draft, table)
            _rope(draft, table)
            self.companions(draft, table)
            self.template(draft, table)

    def weights(self, table: Table) -> tuple[str | None, str]:
        """What is loaded, and the key that says so."""
        listed = table.get("model", list) or []
        first = table.get("model_param", str)
        more = [item for item in listed[1:] if stem_of(item) != stem_of(listed[0])]
        if more:
            table.warn("model", f"only one model is loaded: {', '.join(more)} not imported")
        if first:
            return first, "model_param"
        if listed:
            return listed[0], "model"
        return self.around.weights, "model_param"

    def shown_name(self, table: Table, weights: str) -> str:
        """What KoboldCpp calls the model in answers and lists."""
        own = table.get("hordemodelname", str)
        return own.removeprefix("koboldcpp/") if own else re.sub(r"[^\w.-]", "", stem_of(weights)) or self.path.stem

    def reference(self, draft: Draft, table: Table, name: str, text: str, key: str) -> bool:
        """Write where a file is; False = nobody can know, which is noted."""
        try:
            value = reference_to(text, self.path.parent, self.around.folder)
        except ValueError as error:
            if key == "parameters.model":
                self.problems.append(Problem(self.path, 0, 0, table.path(name), str(error)))
            table.leave(name, str(error))
            return False
        if is_foreign(text):
            table.warn(name, f"{text} is a path of another machine: {value} is looked for beside the model's YAML")
        draft.set(key, [value] if key == "lora_adapters" else value, table, name)
        return True

    def companions(self, draft: Draft, table: Table) -> None:
        """Files beside the weights."""
        for name, key in (("mmproj", "mmproj"), ("draftmodel", "draft_model")):
            if text := table.get(name, str):
                self.reference(draft, table, name, text, key)
        amount = table.get("draftamount", int)
        if amount is not None and draft.get("draft_model") is not None:
            draft.set("n_draft", amount, table, "draftamount")
        loras = table.get("lora", list) or []
        if loras and self.reference(draft, table, "lora", loras[0], "lora_adapters"):
            scale = table.get("loramult", float)
            if scale not in (None, 1.0):
                draft.set("lora_scales", [scale], table, "loramult")
        if len(loras) > 1:
            table.warn("lora", f"KoboldCpp loads the first adapter only: {', '.join(loras[1:])} not imported")

    def template(self, draft: Draft, table: Table) -> None:
        """KoboldCpp writes chats with the weights' own template where --jinja asks for it, else with an adapter."""
        arguments = table.plain("jinja_kwargs")
        jinja = any([table.get("jinja", bool), table.get("jinja_tools", bool)]) or bool(arguments)
        if arguments:
            self.arguments(draft, table, arguments)
        if file := table.get("jinjatemplate", str):
            jinja = self.template_file(draft, table, file, jinja)
        elif jinja:
            draft.set("template.use_tokenizer_template", True, table, "jinja" if "jinja" in table else "jinja_tools")
        self.adapter(draft, table, jinja)

    def arguments(self, draft: Draft, table: Table, arguments: Any) -> None:
        try:
            read = msgspec.json.decode(arguments, type=dict[str, Any]) if isinstance(arguments, str) else arguments
        except msgspec.DecodeError:
            read = None
        if isinstance(read, dict):
            draft.set("chat_template_kwargs", read, table, "jinja_kwargs")
        else:
            table.leave("jinja_kwargs", "is no JSON object: not imported")

    def template_file(self, draft: Draft, table: Table, file: str, jinja: bool) -> bool:
        """Take in a template's text; whether the model is served with Jinja."""
        path = self.path.parent / Path(file).expanduser()
        if not jinja:
            table.leave("jinjatemplate", "is not used without jinja, there as here")
            return False
        try:
            draft.set("template.chat_template", path.read_text("utf-8"), table, "jinjatemplate")
        except (OSError, UnicodeDecodeError) as error:
            table.leave("jinjatemplate", f"{path} cannot be read ({error}): the weights' own template is used")
            draft.set("template.use_tokenizer_template", True, table, "jinja")
        return True

    def adapter(self, draft: Draft, table: Table, jinja: bool) -> None:
        name = "chatcompletionsadapter"
        written = table.plain(name)
        if name in table and written in (None, "") and not jinja:
            self.notes.append(
                f"{self.path}: no adapter is set, so chats are written with KoboldCpp's defaults, as there; "
                f"`template: {{adapter: {kobold.AUTO}}}` takes the one that fits the weights"
            )
            draft.set("template.adapter", _plain_adapter({}), table, name)
            return
        adapter = self.named_adapter(table, name, kobold.AUTO if written in (None, "") else written)
        if isinstance(adapter, str):
            draft.set("template.adapter", adapter, table, name)
        elif adapter is not None:
            found, faults = kobold.examine(adapter)
            for fault in faults:
                table.warn(name, f"{fault.key or 'the adapter'}: {fault.message}: not imported", fault.suggestion)
            texts = found.flat()
            if "max_length" in texts:
                draft.set("parameters.max_tokens", texts.pop("max_length"), table, name)
            draft.set("template.adapter", _plain_adapter(texts), table, name)

    def named_adapter(self, table: Table, name: str, written: Any) -> dict[str, Any] | str | None:
        """An adapter's name, or its keys; None = nobody can know, which is noted."""
        if isinstance(written, dict):
            return written
        if not isinstance(written, str):
            table.leave(name, "is neither an adapter nor the name of one: not imported")
            return None
        path = self.path.parent / Path(written).expanduser()
        if path.is_file():
            return self.adapter_file(table, name, path)
        if kobold.is_auto(written):
            return kobold.AUTO
        stem = stem_of(written)
        try:
            kobold.named(stem)
        except InvalidField as error:
            keys = _literal(written)
            if keys is None:
                table.leave(name, f"{path} is not there, and {error.message.removeprefix('adapter: ')}")
            return keys
        return next(own for own in kobold.adapters() if own.lower() == stem.lower())

    def adapter_file(self, table: Table, name: str, path: Path) -> dict[str, Any] | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            table.leave(name, f"{path} is no adapter: {error}")
            return None

    def embeddings(self, table: Table) -> None:
        """A model of its own for embeddings, beside the one that writes."""
        text = table.get("embeddingsmodel", str)
        if not text:
            return
        draft = Draft(stem_of(text), self.ledger)
        draft.set("name", draft.name)
        if self.reference(draft, table, "embeddingsmodel", text, "parameters.model"):
            draft.set("embeddings", True, table, "embeddingsmodel")
            if size := table.get("embeddingsmaxctx", int):
                draft.set("context_size", size, table, "embeddingsmaxctx")
            if table.get("embeddingsgpu", bool) is False:
                draft.set("gpu_layers", 0, table, "embeddingsgpu")
            self.drafts.append(draft)

    def server(self, table: Table) -> None:
        """What is the server's, not the model's."""
        host, port, second = table.get("host", str), table.get("port", int), table.get("port_param", int)
        if host:
            self.settings["host"] = host
        if second not in (None, 5001) or port not in (None, 5001):
            key, wanted = ("port_param", second) if second not in (None, 5001) else ("port", port)
            if wanted is not None and 0 <= wanted <= MAX_PORT:
                self.settings["port"] = wanted
            else:
                table.leave(key, f"expected a port up to {MAX_PORT}: not imported")
        if password := (table.get("password", str) or "").strip():
            file = WrittenFile(f"{self.path.stem}.key", f"{password}\n", SECRET)
            self.files.append(file)
            self.settings["api_key_file"] = str(self.around.folder / file.name)


def _hardware(draft: Draft, table: Table) -> None:
    """GPUs, flash attention and the types of the KV cache, each of which several keys say."""
    for name in ("usecpu", "noblas"):
        if table.get(name, bool):
            draft.set("gpu_layers", 0, table, name)
    for name in ("usecuda", "usecublas"):
        for word in table.get(name, list) or []:
            if word.isdigit():
                draft.set("main_gpu", int(word), table, name)
            elif word == "lowvram":
                draft.set("no_kv_offloading", True, table, name)
            elif word == "rowsplit":
                table.warn(name, f"rowsplit: {kobold_keys.REASONS['rowsplit']}")
    if table.get("nommap", bool):
        draft.set("mmap", False, table, "nommap")
    on, off = table.get("flashattention", bool), table.get("noflashattention", bool)
    if on or off:
        draft.set("flash_attention", "off" if off else "on", table, "noflashattention" if off else "flashattention")
    split = table.plain("tensor_split")
    if isinstance(split, list) and split:
        draft.set("tensor_split", split, table, "tensor_split")
    _cache(draft, table, flash=bool(on) or off is False)


def _cache(draft: Draft, table: Table, *, flash: bool) -> None:
    written = table.get("quantkv", str)
    if written is None:
        return
    try:
        kind = kobold_keys.cache_type(written)
    except ValueError as error:
        table.leave("quantkv", str(error))
        return
    if kind is not None:
        draft.set("cache_type_k", kind, table, "quantkv")
        if flash:
            # As KoboldCpp does: without flash attention only the K cache can be smaller.
            draft.set("cache_type_v", kind, table, "quantkv")


def _rope(draft: Draft, table: Table) -> None:
    written = table.plain("ropeconfig")
    numbers = [number for number in written if isinstance(number, (int, float))] if isinstance(written, list) else []
    if not numbers or not isinstance(written, list) or len(numbers) != len(written):
        if not kobold_keys.says_nothing("ropeconfig", written):
            table.leave("ropeconfig", kobold_keys.REASONS["ropeconfig"])
        return
    scale, base = numbers[0], numbers[1] if len(numbers) > 1 else 10000.0
    if scale > 0:
        draft.set("parameters.rope_freq_scale", float(scale), table, "ropeconfig")
        draft.set("parameters.rope_freq_base", float(base), table, "ropeconfig")


def _plain_adapter(texts: dict[str, Any]) -> dict[str, Any]:
    """KoboldCpp's defaults are written out: an empty adapter would say nothing."""
    plain = kobold.Adapter()
    return texts or {"user_start": plain.user_start, "assistant_start": plain.assistant_start}


def _literal(text: str) -> dict[str, Any] | None:
    """A mapping as Python writes it, which is how KoboldCpp reads an adapter that is no file."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found if isinstance(found, dict) and all(isinstance(key, str) for key in found) else None


def _leave_the_rest(table: Table) -> None:
    """What says nothing is passed over, all else is noted, with the reason where one is known."""
    for name in table.unread():
        value = table.plain(name)
        if kobold_keys.says_nothing(name, value):
            continue
        if name in kobold_keys.SECRETS:
            table.warn(name, f"has no counterpart here: {kobold_keys.reason(name)}")
        else:
            why = kobold_keys.reason(name)
            table.leave(name, f"not imported: {why}" if why else "has no counterpart here: not imported")
