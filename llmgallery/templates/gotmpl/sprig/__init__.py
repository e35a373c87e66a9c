"""sprig's functions (those of its version 3.3), a file per family."""

from __future__ import annotations

from collections.abc import Mapping

from llmgallery.templates.gotmpl.functions import Function
from llmgallery.templates.gotmpl.sprig import (
    cases,
    dates,
    defaults,
    dicts,
    encodings,
    lists,
    maths,
    paths,
    regexes,
    strings,
)
from llmgallery.templates.gotmpl.sprig.refused import REFUSED

__all__ = ["LIBRARY", "REFUSED"]

LIBRARY: Mapping[str, Function] = {
    **strings.LIBRARY,
    **cases.LIBRARY,
    **lists.LIBRARY,
    **dicts.LIBRARY,
    **maths.LIBRARY,
    **defaults.LIBRARY,
    **encodings.LIBRARY,
    **regexes.LIBRARY,
    **dates.LIBRARY,
    **paths.LIBRARY,
}
