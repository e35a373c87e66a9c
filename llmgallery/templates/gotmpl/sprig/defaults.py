"""sprig's functions that choose among values, look at their types, write and read JSON, and fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmgallery.templates.gotmpl.compare import deep_equal
from llmgallery.templates.gotmpl.encode import decode, encode
from llmgallery.templates.gotmpl.functions import Library
from llmgallery.templates.gotmpl.sprig.convert import is_empty
from llmgallery.templates.gotmpl.values import GoError, kind, type_name

LIBRARY = Library()

LIBRARY.add("empty", "any")(is_empty)
LIBRARY.add("default", "any any...")(lambda default, *given: given[0] if given and not is_empty(given[0]) else default)
LIBRARY.add("coalesce", "any...")(lambda *values: next((value for value in values if not is_empty(value)), None))
LIBRARY.add("all", "any...")(lambda *values: not any(map(is_empty, values)))
LIBRARY.add("any", "any...")(lambda *values: not all(map(is_empty, values)))
LIBRARY.add("ternary", "any any bool")(lambda yes, no, condition: yes if condition else no)
LIBRARY.add("typeOf", "any")(type_name)
LIBRARY.add("typeIs", "string any")(lambda name, value: name == type_name(value))
LIBRARY.add("typeIsLike", "string any")(lambda name, value: type_name(value) in (name, "*" + name))
LIBRARY.add("kindOf", "any")(kind)
LIBRARY.add("kindIs", "string any")(lambda name, value: name == kind(value))
LIBRARY.add("deepEqual", "any any", deep=True)(deep_equal)


@LIBRARY.add("fail", "string")
def _fail(message: str) -> str:
    raise GoError(message)


def _or(run: Callable[..., Any], otherwise: Any) -> Callable[..., Any]:
    """Functions without `must` in their names swallow errors."""

    def lenient(value: Any) -> Any:
        try:
            return run(value)
        except GoError:
            return otherwise

    return lenient


def _to_json(value: Any) -> str:
    return encode(value)


def _to_pretty_json(value: Any) -> str:
    return encode(value, indent="  ")


def _to_raw_json(value: Any) -> str:
    return encode(value, html=False)


LIBRARY.add("mustToJson", "any")(_to_json)
LIBRARY.add("mustToPrettyJson", "any")(_to_pretty_json)
LIBRARY.add("mustToRawJson", "any")(_to_raw_json)
LIBRARY.add("mustFromJson", "string")(decode)
LIBRARY.add("toJson", "any")(_or(_to_json, ""))
LIBRARY.add("toPrettyJson", "any")(_or(_to_pretty_json, ""))
LIBRARY.add("toRawJson", "any")(_or(_to_raw_json, ""))
LIBRARY.add("fromJson", "string")(_or(decode, None))
