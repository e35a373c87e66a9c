"""Writes the generated parts of README.md and docs/: tables made from the code, and the help of each command.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; what is between them is replaced. `--check` writes nothing
and exits with 1 when something would change.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import msgspec

sys.path.insert(0, str(Path(__file__).parent))
import conformance_matrix

from llmgallery import cli
from llmgallery.api.app import create_app
from llmgallery.api.dialects.openai import convert, schema
from llmgallery.backends.loader import specs
from llmgallery.catalog.gallery.entry import EntryFile, GalleryEntry
from llmgallery.catalog.gallery.read import read_index
from llmgallery.cli import stack
from llmgallery.config import checks
from llmgallery.config.model import LOAD_KEYS, LOAD_PARAMETERS, ModelConfig, OnUnsupported, Section
from llmgallery.config.settings import Settings, setting_rows
from llmgallery.core.errors import UnsupportedField
from llmgallery.service.demands import settle
from llmgallery.templates import presets

ROOT = Path(__file__).parent.parent
FILES = (
    "README.md", "docs/backends.md", "docs/models.md", "docs/settings.md", "docs/cli.md", "docs/gallery.md",
    "docs/gallery-format.md",
)  # fmt: skip
PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = Sequence[str]


def table(headings: Row, rows: Iterable[Row]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |\n" for line in lines)


# --- what works --------------------------------------------------------------------------------------------------------------


HARDWARE = {"cuda": "an NVIDIA GPU"}


def backends() -> str:
    found = {record["backend"]: record for record in json.loads(conformance_matrix.RESULTS.read_text(encoding="utf-8"))}
    python = metadata("llmgallery")["Requires-Python"].removeprefix(">=") + " or newer"
    rows = [
        (
            f"`{spec.name}`",
            ", ".join(spec.formats) or "none needed",
            summary(spec),
            f"`llmgallery backends install {spec.name}`" if spec.extra else "comes with llmgallery",
            python,
            " and ".join(HARDWARE[name] for name in spec.hardware) or "any",
            what_ran(found.get(spec.name, {})),
        )
        for spec in specs().values()
    ]
    return table(("backend", "weights", "what it is", "adding it", "Python", "hardware", "what was run to check it"), rows)


def what_ran(record: Mapping[str, Any]) -> str:
    """With what a backend was checked, where and when."""
    if "date" not in record:
        return "**not run**"
    versions = ", ".join(f"{name.replace('_', '-')} {version}" for name, version in record["versions"].items())
    return f"{versions}; {record['platform']}, {record['device'].replace('cpu', 'CPU')}; {record['date']}"


def backend_names() -> str:
    rows = [
        (f"`{spec.name}`", aliases(spec.aliases), HEEDED[spec.level], ", ".join(f"`{key}`" for key in sorted(spec.keys)))
        for spec in specs().values()
    ]
    return table(("backend", "also called", "what it is given", "load keys that it heeds"), rows)


HEEDED = {"tokens": "tokens; we sample", "text": "the prompt's text", "chat": "the conversation"}


def summary(spec: Any) -> str:
    """The docstring of the module that declares a backend, without the name in front."""
    text = (sys.modules[spec.options.__module__].__doc__ or "").strip().splitlines()[0]
    return text.partition(": ")[2] or text


def aliases(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


async def _build() -> Any:
    return create_app(stack.build(Settings()).gallery, Settings())


def endpoints() -> str:
    """By path; the other paths of a route stand with its first, which is the one under /v1."""
    paths: dict[tuple[str, str], list[str]] = {}
    for route in asyncio.run(_build()).routes:
        for handler in getattr(route, "route_handlers", []):
            for method in sorted(handler.http_methods - {"OPTIONS", "HEAD"}):
                doc = (handler.fn.__doc__ or "").strip().partition("\n")[0].partition(" Raises ")[0]
                paths.setdefault((method, doc), []).append(route.path_format)
    rows = []
    for (method, doc), found in paths.items():
        first, *others = sorted(found, key=lambda path: (not path.startswith("/v1/"), len(path), path))
        rows.append((f"`{method} {first}`", f"{doc} Also {aliases(others)}." if others else doc))
    return table(("endpoint", "what it does"), sorted(rows, key=lambda row: row[0].split()[1]))


FEATURES: dict[str, dict[str, Any]] = {
    "streaming, with `stream_options.include_usage`": {"stream": True, "stream_options": {"include_usage": True}},
    "`n` answers": {"n": 2},
    "`stop`: a string or a list": {"stop": ["END"]},
    "`temperature`, `top_p`, `presence_penalty`, `frequency_penalty`": {
        "temperature": 0.5, "top_p": 0.9, "presence_penalty": 0.5, "frequency_penalty": 0.5,
    },
    "`max_tokens`, `max_completion_tokens`": {"max_completion_tokens": 5},
    "`seed`, `logit_bias`": {"seed": 1, "logit_bias": {"5": 1.0}},
    "`top_k`, `min_p`, `typical_p`, `repeat_penalty`, `repeat_last_n`, `ignore_eos` (not OpenAI's)": {
        "top_k": 5, "min_p": 0.1, "typical_p": 0.9, "repeat_penalty": 1.1, "repeat_last_n": 64, "ignore_eos": True,
    },
    "llama-server's samplers: `top_n_sigma`, XTC, DRY, Mirostat, dynamic temperature, and their order in `samplers`": {
        "top_n_sigma": 1.0, "xtc_probability": 0.5, "dry_multiplier": 0.8, "mirostat": 0, "dynatemp_range": 0.2,
        "samplers": "kpt",
    },
    "tool calls, with models whose YAML says how they are written ([docs/answers.md](docs/answers.md))": {
        "tools": [{"type": "function", "function": {"name": "f"}}]
    },
    "structured output (`response_format`)": {"response_format": {"type": "json_object"}},
    "`logprobs`": {"logprobs": True},
    "images, with models that see": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]
    },
}  # fmt: skip


def features() -> str:
    """Each feature is asked of the code that decides; what it refuses does not work yet."""
    rows = []
    for name, fields in FEATURES.items():
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
        parsed, extra = schema.read(msgspec.json.encode(body), schema.ChatBody)
        try:
            settle(convert.chat_ask(parsed, extra, None).wishes, OnUnsupported(), "m")
            rows.append((name, "works"))
        except UnsupportedField:
            rows.append((name, "not yet: 400 `unsupported_parameter`"))
    return table(("POST /v1/chat/completions", ""), rows)


def formats() -> str:
    of_gatogpt, of_kobold = (", ".join(f"`{name}`" for name in presets.names(kind)) for kind in ("gatogpt", "kobold"))
    ours = ", ".join(f"`{name}`" for name in presets.names("jinja"))
    return f"Presets of `template.preset`: {ours}; GatoGPT's profiles {of_gatogpt}; KoboldCpp's adapters {of_kobold}.\n"


# --- keys --------------------------------------------------------------------------------------------------------------------


def bare(type_: Any) -> Any:
    """Without Annotated and without None."""
    while get_origin(type_) is Annotated:
        type_ = get_args(type_)[0]
    if get_origin(type_) in (Union, types.UnionType):
        rest = [part for part in get_args(type_) if part is not type(None)]
        return bare(rest[0]) if len(rest) == 1 else tuple(bare(part) for part in rest)
    return type_


def words(type_: Any) -> str:
    """A type as people say it."""
    type_ = bare(type_)
    if isinstance(type_, tuple):
        return " or ".join(words(part) for part in type_)
    origin = get_origin(type_)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(type_))
    if origin is list:
        return f"list of {words(get_args(type_)[0])}s"
    names = {str: "text", int: "whole number", float: "number", bool: "yes/no"}
    return names.get(type_, "mapping")


def meaning(type_: Any) -> str:
    found = [meta.description for meta in getattr(type_, "__metadata__", ()) if getattr(meta, "description", None)]
    return found[-1] if found else ""


def keys(cls: type[msgspec.Struct] = ModelConfig, above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, type) in the order of the structs, sections before what is in them."""
    for field in msgspec.structs.fields(cls):
        inner = bare(field.type)
        yield above + field.name, field.type
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from keys(inner, f"{above}{field.name}.")


def used(key: str) -> bool:
    """Whether this version does something with a key: all that say what they do, except those that are listed as not yet used."""
    return key not in checks.NOT_YET and bool(meaning(dict(keys())[key]))


def reloads(key: str) -> bool:
    top, _, below = key.partition(".")
    return top in LOAD_KEYS or (top == "parameters" and below in LOAD_PARAMETERS)


def model_keys() -> str:
    rows = [
        (f"`{key}`", words(type_), meaning(type_), "reload" if reloads(key) else "next request")
        for key, type_ in keys()
        if used(key) and not isinstance(bare(type_), type(Section))
    ]
    return table(("key", "value", "meaning", "a change acts at the"), rows)


def other_keys() -> str:
    sections = {key for key, type_ in keys() if isinstance(bare(type_), type(Section))}
    rest = [key for key, _ in keys() if not used(key) and key not in sections]
    return ", ".join(f"`{key}`" for key in rest) + ".\n"


def options() -> str:
    parts = []
    for spec in specs().values():
        rows = [(f"`options.{key}`", words(type_), meaning(type_)) for key, type_ in keys(spec.options)]
        if rows:
            parts.append(f"`backend: {spec.name}`\n\n" + table(("key", "value", "meaning"), rows))
    return "\n".join(parts)


def settings() -> str:
    rows = [
        (f"`{row.name}`", f"`{row.flag}`", f"`{row.variable}`", f"`{row.default}`" if row.default else "", row.description)
        for row in setting_rows()
    ]
    return table(("settings file", "flag of `serve`", "variable", "default", "meaning"), rows)


# --- help --------------------------------------------------------------------------------------------------------------------


def command_help() -> str:
    """Usage, help and options of every command. Not what --help prints, which differs between versions of click."""
    return "\n".join(help_of(command, name) for name, command in cli.main.commands.items())


def help_of(command: click.Command, name: str, heading: str = "##") -> str:
    arguments = [param.make_metavar(click.Context(command)) for param in command.params if isinstance(param, click.Argument)]
    usage = " ".join(["llmgallery", name, *(["COMMAND"] if isinstance(command, click.Group) else []), "[OPTIONS]", *arguments])
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.help or ""))
    rows = [
        (" ".join(f"`{name}`" for name in param.opts) + argument(param), param.help or "")
        for param in command.params
        if isinstance(param, click.Option)
    ]
    shown = "\n" + table(("option", "meaning"), rows) if rows else ""
    commands = command.commands if isinstance(command, click.Group) else {}
    below = [help_of(each, f"{name} {word}", "###") for word, each in commands.items()]
    return "\n".join([f"{heading} {name}\n\n    {usage}\n\n{text}\n{shown}", *below])


def argument(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return f" `{'|'.join(option.type.choices)}`"
    return "" if option.is_flag else " …"


# --- the gallery -------------------------------------------------------------------------------------------------------------


def gallery_files() -> Iterator[tuple[str, list[GalleryEntry]]]:
    """(what a file of the gallery is about, its entries), in the order of the files' names."""
    for path in sorted((ROOT / "gallery").glob("*.yaml")):
        data = path.read_bytes()
        title = data.decode("utf-8").partition("\n")[0].removeprefix("# ").partition(". ")[0]
        yield title, list(read_index(data, path.name, "llmgallery").entries.values())


def gallery_families() -> str:
    rows = []
    for title, entries in gallery_files():
        names = [entry.name for entry in entries if ":" not in entry.name]
        rows.append((title, str(len(names)), aliases(names[:3]) + (", ..." if len(names) > 3 else "")))
    return table(("", "models", "such as"), rows)


def gallery_models() -> str:
    """A table for each file; quantisations stand with their model."""
    parts = []
    for title, entries in gallery_files():
        rows = [
            (f"`{entry.name}`", entry.description, entry.licence or "", aliases(quants(entry)), "yes" if checked(entry) else "")
            for entry in entries
            if ":" not in entry.name
        ]
        parts.append(f"## {title}\n\n" + table(("name", "what it is", "licence", "also as", "sha256"), rows))
    return "\n".join(parts)


def quants(entry: GalleryEntry) -> list[str]:
    """What may follow the name."""
    return [variant.removeprefix(entry.name) for variant in entry.variants]


def checked(entry: GalleryEntry) -> bool:
    return bool(entry.files) and all(file.sha256 for file in entry.files)


# --- entries of a gallery ----------------------------------------------------------------------------------------------------

ENTRY_WORDS = {"size": "size", "variants": "list", "files": "list"}
OURS = {"revision", "aliases", "config"}


def entry_keys(cls: type[msgspec.Struct] = GalleryEntry) -> str:
    """The keys that say what they mean; the rest of the struct is not the file's."""
    rows = []
    for field in msgspec.structs.fields(cls):
        if text := meaning(field.type):
            is_theirs = field.name not in (OURS if cls is GalleryEntry else {"size"})
            listed = "list of texts" if get_origin(bare(field.type)) is tuple else words(field.type)
            key = "license" if field.name == "licence" else field.name
            rows.append((f"`{key}`", ENTRY_WORDS.get(key, listed), text, "yes" if is_theirs else ""))
    return table(("key", "value", "meaning", "LocalAI's too"), rows)


PARTS: dict[str, Callable[[], str]] = {
    "entry-keys": entry_keys,
    "entry-file-keys": lambda: entry_keys(EntryFile),
    "backends": backends,
    "conformance": conformance_matrix.matrix,
    "backend-names": backend_names,
    "endpoints": endpoints,
    "features": features,
    "presets": formats,
    "model-keys": model_keys,
    "other-keys": other_keys,
    "options": options,
    "settings": settings,
    "help": command_help,
    "gallery-families": gallery_families,
    "gallery-models": gallery_models,
}


def generated(text: str) -> str:
    """The document with every generated part made anew."""
    return PART.sub(lambda found: found[1] + PARTS[found[2]]() + found[3], text)


def main() -> int:
    stale = []
    for name in FILES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = generated(before)
        if after != before:
            stale.append(name)
            if "--check" not in sys.argv:
                path.write_text(after, encoding="utf-8")
    print(f"changed: {', '.join(stale)}" if stale else "everything is up to date")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
