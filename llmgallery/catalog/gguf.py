"""What a GGUF file says of its model, and how much memory the model takes. Reads headers, never tensor data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from llmgallery.catalog.gguf_reader import Array, Contents, Tensor, read
from llmgallery.catalog.gguf_types import FILE_TYPES, TYPE_BY_NAME, GgmlType
from llmgallery.config.regular import open_regular
from llmgallery.core.clues import Clues, control_tokens
from llmgallery.core.errors import BadWeights

KV_PADDING = 256  # llama.cpp rounds a context up to this many cells
MAX_LAYERS = 4096
CONTROLS = (3, 4)  # tokenizer.ggml.token_type: control, and user defined


class Header(msgspec.Struct, frozen=True):
    """A model by its header. Sizes in tokens and elements; 0 or None where the file does not say.

    `head_counts_kv`: per layer; 0 = a layer without attention. `templates`: named chat templates, without the default.
    `metadata`: every key; long arrays as Array(type, count).
    """

    version: int
    architecture: str
    name: str
    context_length: int
    block_count: int
    embedding_length: int
    head_counts: tuple[int, ...]
    head_counts_kv: tuple[int, ...]
    key_length: int
    value_length: int
    sliding_window: int
    file_type: str | None
    split_count: int
    num_tokens: int
    chat_template: str | None
    templates: dict[str, str]
    tensors: tuple[Tensor, ...]
    data_offset: int
    metadata: dict[str, Any]

    @property
    def data_end(self) -> int:
        """How long the file must be at least; shorter = truncated."""
        return self.data_offset + max((tensor.offset + tensor.bytes for tensor in self.tensors), default=0)


def is_gguf(file: Path) -> bool:
    """By its first bytes, whatever its name."""
    try:
        with open_regular(file) as stream:
            return stream.read(4) == b"GGUF"
    except OSError:
        return False


def read_header(source: Path | bytes, *, arrays: bool = False) -> Header:
    """The header of a file, or of its first bytes. `arrays`: keep long arrays (the vocabulary) whole.

    Raises BadWeights with the offset at which the file is not what it should be.
    """
    contents = read(source, arrays=arrays)
    return _header(contents, "these bytes" if isinstance(source, bytes) else str(source))


def _header(contents: Contents, name: str) -> Header:
    keys = _Keys(contents.metadata, name)
    layers = keys.number("block_count")
    if layers > MAX_LAYERS:
        raise BadWeights(f"{name}: {keys.architecture}.block_count is {layers}, more than {MAX_LAYERS}")
    embedding = keys.number("embedding_length")
    heads = keys.per_layer("attention.head_count", layers)
    heads_kv = keys.per_layer("attention.head_count_kv", layers) or heads
    head_size = embedding // max(heads) if heads and max(heads) > 0 else 0
    templates = keys.templates()
    return Header(
        version=contents.version,
        architecture=keys.architecture,
        name=keys.text("general.name") or "",
        context_length=keys.number("context_length"),
        block_count=layers,
        embedding_length=embedding,
        head_counts=heads,
        head_counts_kv=heads_kv,
        key_length=keys.number("attention.key_length", head_size),
        value_length=keys.number("attention.value_length", head_size),
        sliding_window=keys.number("attention.sliding_window"),
        file_type=FILE_TYPES.get(keys.count("general.file_type", -1)),
        split_count=keys.count("split.count"),
        num_tokens=keys.length("tokenizer.ggml.tokens"),
        chat_template=templates.pop("", None),
        templates=templates,
        tensors=contents.tensors,
        data_offset=contents.data_offset,
        metadata=contents.metadata,
    )


class _Keys:
    """Metadata by key, each checked for its type; keys without a dot at the architecture's own."""

    TEMPLATE = "tokenizer.chat_template"

    def __init__(self, metadata: dict[str, Any], name: str) -> None:
        self._metadata = metadata
        self._name = name
        self.architecture = self.text("general.architecture") or ""

    def text(self, key: str) -> str | None:
        value = self._metadata.get(key)
        if value is not None and not isinstance(value, str):
            raise self._bad(key, value, "a text")
        return value

    def number(self, key: str, otherwise: int = 0) -> int:
        """A size: an int from 0 to 2^32; of an array, one for each layer, the largest."""
        return self.count(f"{self.architecture}.{key}", otherwise)

    def count(self, key: str, otherwise: int = 0) -> int:
        value = self._metadata.get(key)
        if value is None or value == ():
            return otherwise
        if isinstance(value, tuple) and all(isinstance(item, int) for item in value):
            value = max(value)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
            raise self._bad(key, value, "a size")
        return value

    def per_layer(self, key: str, layers: int) -> tuple[int, ...]:
        """One number for all layers, or an array with one each; () when absent."""
        full = f"{self.architecture}.{key}"
        value = self._metadata.get(full)
        if not isinstance(value, tuple):
            return (self.count(full),) * layers if value is not None else ()
        if len(value) < layers or not all(isinstance(item, int) and 0 <= item < 1 << 32 for item in value):
            raise self._bad(full, value, f"a size for each of {layers} layers")
        return value[:layers]

    def length(self, key: str) -> int:
        value = self._metadata.get(key)
        if isinstance(value, Array):
            return value.count
        return len(value) if isinstance(value, tuple) else 0

    def templates(self) -> dict[str, str]:
        """Chat templates by name; the default's name is empty."""
        prefix = f"{self.TEMPLATE}."
        named = {key[len(prefix) :]: self.text(key) for key in self._metadata if key.startswith(prefix)}
        found = {"": self.text(self.TEMPLATE), **named}
        return {name: text for name, text in found.items() if text is not None}

    def _bad(self, key: str, value: Any, expected: str) -> BadWeights:
        return BadWeights(f"{self._name}: metadata key {key} is {str(value)[:80]!r}, not {expected}")


def clues_of(file: Path) -> Clues:
    """What a file says of the prompt format it was trained with; the vocabulary only where it brings no template. Raises
    BadWeights."""
    header = read_header(file)
    if header.chat_template is None and not header.templates:
        header = read_header(file, arrays=True)
    keys = _Keys(header.metadata, str(file))
    texts, kinds = (header.metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    pairs = zip(texts, kinds, strict=False) if isinstance(texts, tuple) and isinstance(kinds, tuple) else ()
    controls = control_tokens(text for text, kind in pairs if kind in CONTROLS and isinstance(text, str))
    return Clues(str(file), header.architecture, header.name, keys.text("tokenizer.ggml.pre") or "", controls)


def is_causal(header: Header) -> bool:
    """Each token sees only those before it, so that what was computed for them can be kept. False for encoders such as BERT."""
    return header.metadata.get(f"{header.architecture}.attention.causal") is not False


def weights_bytes(header: Header) -> int:
    """Bytes of all tensors of this file (a split model's other parts are theirs)."""
    return sum(tensor.bytes for tensor in header.tensors)


def kv_bytes(header: Header, context: int, slots: int = 1, type_k: str = "f16", type_v: str = "f16") -> int:
    """Bytes of llama.cpp's KV cache for `slots` sequences of `context` tokens each, and of recurrent states.

    An upper bound for models whose layers see a sliding window. Raises BadWeights for a type that is none.
    """
    cells = -(-context // KV_PADDING) * KV_PADDING * slots
    row_k, row_v = _cache_type(type_k).bytes_of, _cache_type(type_v).bytes_of
    attention = sum(
        cells * (row_k(heads * header.key_length) + row_v(heads * header.value_length)) for heads in header.head_counts_kv
    )
    return attention + slots * _recurrent_bytes(header)


def _cache_type(name: str) -> GgmlType:
    try:
        return TYPE_BY_NAME[name.lower()]
    except KeyError:
        raise BadWeights(f"no cache type {name}: f16, bf16, f32, q8_0, q5_1, q5_0, q4_1, q4_0 or iq4_nl") from None


def _recurrent_bytes(header: Header) -> int:
    """State of one sequence in state-space layers (Mamba): convolution and scan states in f32.

    Hybrid models have them in the layers without attention, pure ones in all.
    """
    keys = _Keys(header.metadata, header.name)
    inner, state = keys.number("ssm.inner_size"), keys.number("ssm.state_size")
    convolution = max(0, keys.number("ssm.conv_kernel") - 1)
    groups = keys.number("ssm.group_count")
    layers = sum(heads == 0 for heads in header.head_counts_kv) if header.head_counts_kv else header.block_count
    return layers * 4 * (convolution * (inner + 2 * groups * state) + inner * state)
