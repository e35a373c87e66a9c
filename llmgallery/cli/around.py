"""What importers are handed of this program and its environment."""

from __future__ import annotations

import os
from pathlib import Path

from llmgallery.backends.loader import specs
from llmgallery.cli.stack import outside
from llmgallery.importers.base import Around


def around(folder: Path, weights: str | None = None, name: str | None = None, user_data: Path | None = None) -> Around:
    """For an import into `folder`, with what the command names."""
    return Around(specs(), folder, outside(), weights, name, user_data, os.environ)
