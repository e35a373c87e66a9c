"""A bare llama_decode loop over one libllama, whichever: what its machine code can do, without any server around it.

Standard library only, and no package of ours: it runs in each peer's environment, as a file. Of the C structs it knows the first
fields, and checks them by their documented defaults, so that it works, or says that it does not, with other versions too.

    python control.py LIBRARY MODEL --sequences 1,8 --threads 2
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROMPT = 128
BATCH = 512
DEFAULTS = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1}
FLASH_ATTENTION = 13  # which word of the context's parameters it is, in the llama.cpp that llama-cpp-python 0.3.36 brings
NO_CHANGES: Mapping[int, int] = {}
THREADS = (7, 8)  # which 32-bit words of llama_context_params are n_threads and n_threads_batch


class Opaque(ctypes.Structure):
    """Room for any of llama.cpp's parameter structs. They travel in memory, so that trailing bytes do no harm."""

    _fields_ = [("words", ctypes.c_uint32 * 128)]


class Batch(ctypes.Structure):
    """llama_batch of llama.h."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]

    def fill(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, sequence, whether its logits are wanted) of each token."""
        for index, (token, position, sequence, wanted) in enumerate(rows):
            self.token[index], self.pos[index], self.logits[index] = token, position, wanted
            self.n_seq_id[index], self.seq_id[index][0] = 1, sequence
        self.n_tokens = len(rows)


def bind(path: Path) -> Any:
    """The library, with the types of what is called. Its file may be an extension module of Python that has llama.cpp in it."""
    library = ctypes.CDLL(str(path))
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("llama_backend_init", None, []),
        ("llama_model_default_params", Opaque, []),
        ("llama_context_default_params", Opaque, []),
        ("llama_model_load_from_file", pointer, [ctypes.c_char_p, Opaque]),
        ("llama_init_from_model", pointer, [pointer, Opaque]),
        ("llama_batch_init", Batch, [ctypes.c_int32] * 3),
        ("llama_decode", ctypes.c_int32, [pointer, Batch]),
        ("llama_synchronize", None, [pointer]),
        ("llama_free", None, [pointer]),
        ("llama_model_free", None, [pointer]),
        ("llama_log_set", None, [pointer, pointer]),
        ("llama_print_system_info", ctypes.c_char_p, []),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def context_params(library: Any, sequences: int, context: int, threads: int) -> Opaque:
    """Raises ValueError when the struct is not what we know."""
    params: Opaque = library.llama_context_default_params()
    found = dict(zip(DEFAULTS, params.words, strict=False))
    if found != DEFAULTS or len({params.words[place] for place in THREADS}) != 1:
        raise ValueError(f"this libllama's context parameters are laid out otherwise: {found}")
    params.words[0:4] = [context * sequences, BATCH, BATCH, sequences]
    for place in THREADS:
        params.words[place] = threads
    return params


def decode_rate(
    library: Any, model: Any, sequences: int, context: int, threads: int, steps: int, changes: Mapping[int, int] = NO_CHANGES
) -> float:
    """Tokens a second of all sequences together, one token of each in a step, after prompts of PROMPT tokens. `changes`: words
    of the context's parameters that are not llama.cpp's defaults, by their place."""
    params = context_params(library, sequences, context, threads)
    for place, word in changes.items():
        params.words[place] = word & 0xFFFFFFFF
    handle = library.llama_init_from_model(model, params)
    if not handle:
        raise ValueError("llama.cpp makes no context")
    batch = library.llama_batch_init(BATCH, 0, 1)

    def decode(rows: list[tuple[int, int, int, bool]]) -> None:
        batch.fill(rows)
        if result := library.llama_decode(handle, batch):
            raise ValueError(f"llama_decode gave {result}")

    for sequence in range(sequences):
        decode([(300 + place + sequence, place, sequence, place == PROMPT - 1) for place in range(PROMPT)])
    library.llama_synchronize(handle)
    began = time.perf_counter()
    for step in range(steps):
        decode([(400 + step + sequence, PROMPT + step, sequence, True) for sequence in range(sequences)])
        library.llama_synchronize(handle)
    seconds = time.perf_counter() - began
    library.llama_free(handle)
    return sequences * steps / seconds


def features(library: Any) -> str:
    """What the CPU code was compiled to use."""
    return str(library.llama_print_system_info().decode().strip().strip("|").strip())


def ggml_version(library: Any, path: Path) -> str:
    """ggml's own word for its version; it lies in a library of its own where they are not linked into one."""
    for place in (path, path.with_name("libggml-base.so"), path.with_name("libggml-base.dylib")):
        try:
            found = library if place == path else ctypes.CDLL(str(place))
            version, commit = found.ggml_version, found.ggml_commit
        except (OSError, AttributeError):
            continue
        version.restype = commit.restype = ctypes.c_char_p
        return f"{version().decode()} ({commit().decode()})"
    return "unknown"


_SILENT = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda level, text, data: None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sequences", default="1,8")
    parser.add_argument("--context", type=int, default=1024, help="tokens of each sequence")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=48)
    given = parser.parse_args()
    file = given.model.resolve()
    library = bind(given.library.resolve())
    library.llama_log_set(_SILENT, None)
    library.llama_backend_init()
    model = library.llama_model_load_from_file(bytes(file), library.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp does not load {file}")
    rates = {
        count: decode_rate(library, model, int(count), given.context, given.threads, given.steps)
        for count in given.sequences.split(",")
    }
    print(json.dumps({"ggml": ggml_version(library, given.library), "features": features(library), "rates": rates}))


if __name__ == "__main__":
    main()
