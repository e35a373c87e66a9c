"""Literals of a Go template as values: what the parameter wants, else what the way they are written says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmgallery.templates.gotmpl.functions import ANY, REFLECT
from llmgallery.templates.gotmpl.lookup import Fault
from llmgallery.templates.gotmpl.nodes import Bool, Number, String
from llmgallery.templates.gotmpl.values import Byte, Int32, Int64

_SIZED: Mapping[str, type[int]] = {"int64": Int64, "int32": Int32, "uint8": Byte}


def ideal(node: Number) -> Any:
    """A number where nothing says of what type: the way it is written does."""
    if node.as_float is None and node.as_complex is not None:
        return node.as_complex
    if node.text.endswith("i"):
        return node.as_complex
    if node.as_float is not None and _reads_as_float(node.text):
        return node.as_float
    if node.as_int is not None:
        return node.as_int
    raise Fault(node.pos, f"{node.text} overflows int")


def _reads_as_float(written: str) -> bool:
    is_hex = written[:2] in ("0x", "0X") and "p" not in written.lower()
    return written[0] != "'" and not is_hex and any(sign in written for sign in ".eEpP")


def constant(node: Bool | String | Number, wanted: str) -> Any:
    """A literal for a parameter of a certain type."""
    if wanted == "string" and isinstance(node, String):
        return node.value
    if wanted == "bool" and isinstance(node, Bool):
        return node.value
    number = node if isinstance(node, Number) else Number(node.pos, node.text)
    made: Any = None
    expected = {"string": "string", "bool": "bool"}.get(wanted, "")
    if wanted.startswith("int"):
        expected, made = "integer", number.as_int
    elif wanted.startswith("uint"):
        expected, made = "unsigned integer", number.as_uint
    elif wanted.startswith("float"):
        expected, made = "float", number.as_float
    elif wanted.startswith("complex"):
        expected, made = "complex", number.as_complex
    if not expected:
        raise Fault(node.pos, f"can't handle {node.text} for arg of type {wanted}")
    if made is None:
        raise Fault(node.pos, f"expected {expected}; found {node.text}")
    return _SIZED.get(wanted, type(made))(made)


def can_be_nil(wanted: str) -> bool:
    return wanted in (ANY, REFLECT) or wanted.startswith(("[]", "map[", "*", "func("))
