"""An entry of a gallery's index: what can be installed under a name. Plain data; knows no network and no model file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from llmgallery.config.problems import Problem


class EntryFile(msgspec.Struct, frozen=True):
    """One file of an entry. Nothing in it has been checked against the Hub."""

    filename: Annotated[str, Meta(description="what the entry's other keys call it; else the last part of `uri`")]
    uri: Annotated[str, Meta(description="where it comes from: huggingface://owner/repo/file, hf://, https://, github:")]
    sha256: Annotated[str | None, Meta(description="64 hexadecimal digits; other bytes are refused")] = None
    size: Annotated[int | None, Meta(description="bytes, or with a unit")] = None


class GalleryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry, as its index has it: not composed with its base file, and with LocalAI's keys where it is LocalAI's.

    `source`: the file it stands in, as messages name it; `place`: its line and column there. `warnings`: what in it is not
    read, each with its place. `gallery` "": none has it, a request describes it. `config` and `overrides` are plain data, with
    merges and aliases resolved.
    """

    name: Annotated[str, Meta(description="what requests call it")]
    gallery: str
    description: Annotated[str, Meta(description="shown in lists; Markdown")] = ""
    licence: Annotated[str | None, Meta(description="an SPDX identifier where there is one; `licence` is the same")] = None
    tags: Annotated[tuple[str, ...], Meta(description="to search by")] = ()
    urls: Annotated[tuple[str, ...], Meta(description="pages to read about it")] = ()
    icon: Annotated[str | None, Meta(description="address of a picture")] = None
    aliases: Annotated[tuple[str, ...], Meta(description="other names that mean it")] = ()
    url: Annotated[str | None, Meta(description="a base file, whose `config_file` the entry's own keys are laid over")] = None
    config: Annotated[
        Mapping[str, Any] | None, Meta(description="the model file's keys as a mapping; LocalAI's `config_file` is the same")
    ] = None
    overrides: Annotated[Mapping[str, Any], Meta(description="the model file's keys, laid over the base file and `config`")] = {}
    files: Annotated[tuple[EntryFile, ...], Meta(description="what is downloaded")] = ()
    variants: Annotated[
        tuple[str, ...],
        Meta(description="entries that are the same model otherwise: a list of `{model: name}`, or of names"),
    ] = ()
    size: Annotated[int | None, Meta(description="bytes of all files, or with a unit such as 4.7GB")] = None
    revision: Annotated[
        str | None, Meta(description="commit, tag or branch of the Hub repo that the files are taken from, unless they name one")
    ] = None
    last_checked: Annotated[str | None, Meta(description="the day when somebody last looked whether it still holds")] = None
    source: str = ""
    place: tuple[int, int] = (0, 0)
    warnings: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """As requests and lockfiles name it: gallery@name."""
        return f"{self.gallery}@{self.name}" if self.gallery else self.name

    @property
    def where(self) -> str:
        """file:line:column, for messages."""
        line, column = self.place
        return f"{self.source}:{line}:{column}" if line else self.source


class Index(msgspec.Struct, frozen=True):
    """What an index file says. `entries` by name, in the file's order; `problems`: why others are not among them, and what is
    not read."""

    entries: Mapping[str, GalleryEntry] = {}
    problems: tuple[Problem, ...] = ()


class Composed(msgspec.Struct, frozen=True):
    """An entry with its base file: a model file's keys, all of them known to config/model.py, and the files.

    `config` has no `name`. `lifted`: keys that were written where nobody reads them, and that have been moved to their place;
    `warnings`: keys that are not used and what else was left out. Both are sentences, one a line.
    `dropped`: dotted key -> value of what has no counterpart, so that the YAML can tell.
    """

    config: Mapping[str, Any]
    files: tuple[EntryFile, ...] = ()
    licence: str | None = None
    description: str = ""
    urls: tuple[str, ...] = ()
    lifted: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    dropped: Mapping[str, Any] = {}
