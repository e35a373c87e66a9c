"""GatoGPT's download list: resources that it fetches by itself, and the definitions that it makes for them.

Source: https://github.com/elgatopanzon/gatogpt, ModelDownloadManager.cs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from yaml.nodes import MappingNode, SequenceNode

from llmgallery.importers.ledger import Table
from llmgallery.importers.local_files import reference_to

BASE = "user://Models"

_TIMES = {"DownloadProcessSec": (60,), "MaxConcurrentDownloads": (1,), "DownloadBandwidthLimit": (0,)}
_WHEN = "a model is downloaded when it is asked for: not imported"


class Found(NamedTuple):
    """A download's weights: how a model file names them, their path as GatoGPT writes it, and where they are listed."""

    reference: str
    path: str
    table: Table


class Downloads:
    """By the ids that definitions name them by: `owner/repo/QUANT`."""

    def __init__(self) -> None:
        self._items: dict[str, Table] = {}
        self._base = BASE

    def read(self, top: Table) -> list[tuple[str, Table]]:
        """Take in a file's list. The definitions that come with it, by their names, with nothing but the id of their weights."""
        node = top.node_of("UrlDownloads")
        found = []
        for index, item in enumerate(node.value if isinstance(node, SequenceNode) else []):
            if not isinstance(item, MappingNode):
                top.ledger.leave(item, f"UrlDownloads[{index}]", "is no download: not imported")
                continue
            table = top.ledger.table(item, f"UrlDownloads[{index}]", folded=True)
            self._items["/".join(str(table.get(name, str) or "") for name in ("Id", "Quantization"))] = table
            for name in ("Type", "CreateResourceDefinition"):
                table.node_of(name)
            definition = table.table("ModelDefinition")
            if definition is not None and (id := definition.get("Id", str)):
                found.append((id, definition))
        if node is not None and not isinstance(node, SequenceNode):
            top.leave("UrlDownloads", "expected a list of downloads: not imported")
        self._base = top.get("DownloadBasePath", str) or self._base
        for name, neutral in _TIMES.items():
            if (value := top.get(name, int)) is not None and value not in neutral:
                top.leave(name, _WHEN)
        return found

    def id_of(self, definition: Table) -> str | None:
        """The weights of a definition that came with a download."""
        return next((id for id, table in self._items.items() if definition.key == f"{table.key}.ModelDefinition"), None)

    def weights(self, id: str, located: Callable[[str], str]) -> Found | None:
        """The file of the download `id`, if GatoGPT has fetched it, else the Hub's. None = no download has this id, or nobody can
        know where it comes from, which is told. `located`: a path on this machine."""
        table = self._items.get(id)
        url = table.get("Url", str) if table is not None else None
        if table is None or not url:
            return None
        path = "/".join([self._base, *id.split("/")[:2], url.partition("?")[0].rpartition("/")[2]])
        here = Path(located(path))
        if _is_file(here):
            return Found(str(here), path, table)
        try:
            return Found(reference_to(url, here.parent, here.parent), path, table)
        except ValueError as error:
            table.leave("Url", str(error))
            return None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
