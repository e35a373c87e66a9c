"""llm-api's config.yaml, with its LLM_API_ variables: one model, and the server's settings.

Source: https://github.com/1b5d/llm-api, app/config.py and app/llms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmgallery.catalog.formats import YAML_SUFFIXES
from llmgallery.config.nodes import PLAIN
from llmgallery.config.problems import Problem
from llmgallery.core.errors import ConfigError
from llmgallery.importers.base import MAX_PORT, Around, Imported, Importer
from llmgallery.importers.draft import Draft, Origin, Row, finish
from llmgallery.importers.ledger import Ledger, Table, keys_of, read_yaml

PREFIX = "LLM_API_"
DEFAULT_FAMILY = "llama"
DEFAULT_MODELS_DIR = "./models"
DEFAULT_HOST, DEFAULT_PORT = "0.0.0.0", 8000

_MAPS = ("setup_params", "model_params")
_FIELDS = ("models_dir", "model_family", *_MAPS, "host", "port", "log_level")
_BACKENDS = {"llama": "llama-cpp", "gptq_llama": "gptq", "huggingface": "transformers", "autoawq": "awq"}
_LOG_LEVELS = {"trace": "debug", "debug": "debug", "info": "info", "warning": "warning", "error": "error", "critical": "error"}


def _dtype(text: str) -> str:
    return text.removeprefix("torch.")


LLAMA = (
    Row(("n_ctx", "ctx_size"), "context_size", int, (0,)),
    Row(("n_gpu_layers",), "gpu_layers", int),
    Row(("seed",), "parameters.seed", int, (-1,)),
    Row(("use_mmap",), "mmap", bool),
    Row(("use_mlock",), "mmlock", bool),
    Row(("f16_kv",), "f16", bool),
    Row(("n_threads", "num_threads"), "threads", int, (0,)),
    Row(("n_batch", "batch_size"), "parameters.batch", int, (0,)),
    Row(("last_n_tokens_size",), "parameters.repeat_last_n", int),
    Row(("lora_base",), "lora_base", str, ("",)),
    Row(("lora_path",), "lora_adapter", str, ("",)),
    Row(("low_vram",), "low_vram", bool, (False,)),
    Row(("main_gpu",), "main_gpu", int),
    Row(("rope_freq_base",), "parameters.rope_freq_base", float, (0,)),
    Row(("rope_freq_scale",), "parameters.rope_freq_scale", float, (0,)),
    Row(("embedding",), "embeddings", bool, (True, False)),
)
"""model_params of family llama. `embedding` was always on, also for models that generate."""

TORCH = (
    Row(("trust_remote_code",), "trust_remote_code", bool),
    Row(("torch_dtype",), "dtype", str, (), _dtype),
)
"""model_params of the others; what is not here goes to the backend's options as it is."""


def recognises(source: Path) -> bool:
    """A YAML file with model_family, or with setup_params or model_params."""
    if source.is_dir() or source.suffix.lower() not in YAML_SUFFIXES:
        return False
    keys = keys_of(source)
    return "model_family" in keys or bool(keys & set(_MAPS))


def read(source: Path, around: Around) -> Imported:
    """The file under the variables."""
    ledger = Ledger(source)
    root = read_yaml(source)
    return _read(ledger, MappingNode("tag:yaml.org,2002:map", []) if root is None else root, source.absolute().parent, around)


def from_variables(around: Around, folder: Path) -> Imported | None:
    """What the variables alone say; None = nothing that llm-api would have served. `folder`: that of relative paths."""
    if f"{PREFIX}SETUP_PARAMS" not in {name.upper() for name in around.env}:
        return None
    return _read(Ledger("the environment"), MappingNode("tag:yaml.org,2002:map", []), folder, around)


IMPORTER = Importer("llm-api", "llm-api's config.yaml, with the LLM_API_ variables that are set", recognises, read)


def _read(ledger: Ledger, root: Node, folder: Path, around: Around) -> Imported:
    variables = _variables(around.env)
    top = ledger.table(_under_variables(root, around.env, variables))
    family = (top.get("model_family", str) or DEFAULT_FAMILY).strip().lower()
    if family not in _BACKENDS:
        raise ConfigError(f"{ledger.path}: model_family {family!r} is none of {', '.join(_BACKENDS)}", field="model_family")
    models_dir = folder / Path(top.get("models_dir", str) or DEFAULT_MODELS_DIR).expanduser()
    setup, params = top.table("setup_params"), top.table("model_params")
    repo = setup.get("repo_id", str) if setup is not None else None
    filename = setup.get("filename", str) if setup is not None else None
    name = around.name or _name(repo, filename)
    draft = Draft(name, ledger, "", [f"Imported by llmgallery from llm-api's {ledger.path}."])
    draft.set("name", name)
    draft.set("backend", _BACKENDS[family], top, "model_family")
    _weights(draft, setup, repo, filename, models_dir / _folder_name(family, filename or repo or ""), around)
    if setup is not None:
        _setup(draft, setup, family)
    if params is not None:
        _params(draft, params, family)
    found = finish([draft], [ledger], around, settings=_settings(top, models_dir), default=name)
    return replace(found, warnings=tuple(_of_variable(warning, variables) for warning in found.warnings))


def _name(repo: str | None, filename: str | None) -> str:
    """llm-api's model has no name: the repo's is taken, without its owner."""
    if repo:
        return repo.rstrip("/").rpartition("/")[2]
    return Path(filename).stem if filename else "llm-api"


# --- variables ---------------------------------------------------------------------------------------------------------------


def _variables(env: Mapping[str, str]) -> dict[str, str]:
    """Field -> the variable that sets it. Capitals do not count."""
    return {name.upper().removeprefix(PREFIX).lower(): name for name in env if name.upper().startswith(PREFIX)}


def _of_variable(warning: Problem, variables: Mapping[str, str]) -> Problem:
    """What stands in no line of the file, a variable says."""
    variable = variables.get(warning.key.partition(".")[0])
    return replace(warning, path=variable) if variable is not None and not warning.line else warning


def _under_variables(root: Node, env: Mapping[str, str], fields: Mapping[str, str]) -> Node:
    """The file's mapping with what LLM_API_ variables say in place of it: JSON for the two mappings, which are merged key by
    key."""
    pairs = list(root.value) if isinstance(root, MappingNode) else []
    if not isinstance(root, MappingNode):
        return root
    for field in _FIELDS:
        if field not in fields:
            continue
        node = _value(field, env[fields[field]], fields[field])
        below = next((value for key, value in pairs if key.value == field), None)
        if field in _MAPS and isinstance(below, MappingNode):
            node = _merged(below, node)
        pairs = [(key, value) for key, value in pairs if key.value != field] + [(ScalarNode(PLAIN, field, *_marks(root)), node)]
    return MappingNode(root.tag, pairs, root.start_mark, root.end_mark)


def _marks(root: Node) -> tuple[Any, Any]:
    return root.start_mark, root.end_mark


def _value(field: str, text: str, variable: str) -> Node:
    try:
        text.encode()
        if field not in _MAPS:
            return ScalarNode(PLAIN, text)
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        node = _node(value)
    except UnicodeEncodeError as error:
        raise ConfigError(f"{variable}: holds what is no text") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f'{variable}: expected JSON such as {{"n_ctx": 512}}: {error}') from error
    if not isinstance(value, dict):
        raise ConfigError(f'{variable}: expected a JSON object such as {{"n_ctx": 512}}, found {text[:40]}')
    return node


def _node(value: Any) -> Node:
    if isinstance(value, dict):
        return MappingNode("tag:yaml.org,2002:map", [(_node(str(key)), _node(inner)) for key, inner in value.items()])
    if isinstance(value, list):
        return SequenceNode("tag:yaml.org,2002:seq", [_node(inner) for inner in value])
    return ScalarNode("tag:yaml.org,2002:str", value) if isinstance(value, str) else ScalarNode(PLAIN, json.dumps(value))


def _merged(below: MappingNode, above: Node) -> Node:
    """Maps recurse, all else replaces."""
    if not isinstance(above, MappingNode):
        return above
    pairs = list(below.value)
    for key, value in above.value:
        under = next((old for name, old in pairs if name.value == key.value), None)
        new = _merged(under, value) if isinstance(under, MappingNode) else value
        place = next((at for at, (name, _) in enumerate(pairs) if name.value == key.value), None)
        if place is None:
            pairs.append((key, new))
        else:
            pairs[place] = (pairs[place][0], new)
    return MappingNode(below.tag, pairs, below.start_mark, below.end_mark)


# --- the model ---------------------------------------------------------------------------------------------------------------


def _folder_name(family: str, name: str) -> str:
    """Where llm-api keeps a model below models_dir: 12 digits of the name's MD5, as a decimal number."""
    digest = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
    return f"{family}_{str(int(digest, 16))[:12]}"


def _weights(draft: Draft, setup: Table | None, repo: str | None, filename: str | None, here: Path, around: Around) -> None:
    """The file that llm-api has fetched, if it lies there, else the Hub's."""
    kept = [here / filename, here.parent / filename] if filename else []
    found = next((path for path in kept if _is_file(path)), None)
    if found is not None:
        draft.set("parameters.model", str(found), setup, "filename")
    elif repo:
        draft.set("parameters.model", f"{repo}/{filename}" if filename else repo, setup, "repo_id")
    elif around.weights:
        draft.set("parameters.model", around.weights)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _setup(draft: Draft, setup: Table, family: str) -> None:
    if (tokenizer := setup.get("tokenizer_repo_id", str)) is not None:
        draft.set("parameters.tokenizer", tokenizer, setup, "tokenizer_repo_id")
    if (trusted := setup.get("trust_remote_code", bool)) is not None:
        draft.set("trust_remote_code", trusted, setup, "trust_remote_code")
    for name in ("convert", "migrate"):
        if setup.get(name, bool):
            setup.leave(name, "weights are not converted: take a GGUF file of the model")
    for name in setup:
        if name not in ("repo_id", "filename", "tokenizer_repo_id", "trust_remote_code", "convert", "migrate"):
            _option(draft, setup, name, family)


def _params(draft: Draft, params: Table, family: str) -> None:
    rows = LLAMA if family == "llama" else TORCH
    draft.fill(params, rows)
    known = {name for row in rows for name in row.names}
    for name in params:
        if family == "llama" and name == "tensor_split":
            _tensor_split(draft, params)
        elif family == "llama" and name == "n_parts":
            if params.get(name, int) not in (None, -1):
                params.leave(name, "parts of a model are found by their names: not needed")
        elif family == "llama" and name == "verbose":
            if params.get(name, bool):
                params.leave(name, "llama.cpp's own log is part of the server's: see log_level")
        elif name not in known:
            _option(draft, params, name, family)


def _option(draft: Draft, table: Table, name: str, family: str) -> None:
    """What goes to the library as it is. llama-cpp's options are checked, so that nothing is put there."""
    if family == "llama":
        return
    value = table.plain(name)
    if value is not None:
        draft.config.setdefault("options", {})[name] = value  # a name may hold dots
        draft.origins[f"options.{name}"] = Origin(table.ledger.path, table.place(name), table.path(name))


def _tensor_split(draft: Draft, params: Table) -> None:
    shares = params.plain("tensor_split")
    if isinstance(shares, str) or (isinstance(shares, list) and all(isinstance(share, (int, float)) for share in shares)):
        draft.set("tensor_split", shares, params, "tensor_split")
    elif shares is not None:
        params.leave("tensor_split", "expected shares such as [0.5, 0.5]: not imported")


# --- settings ----------------------------------------------------------------------------------------------------------------


def _settings(top: Table, models_dir: Path) -> dict[str, Any]:
    """As llm-api has them, defaults included, but for the folder: an empty one of its name would hide ours."""
    port = top.get("port", int) or DEFAULT_PORT
    if not 0 < port <= MAX_PORT:
        top.leave("port", f"expected 1 to {MAX_PORT}: not imported")
        port = DEFAULT_PORT
    settings: dict[str, Any] = {"host": top.get("host", str) or DEFAULT_HOST, "port": port}
    if "models_dir" in top:
        settings["models_dir"] = str(models_dir)
    if (level := top.get("log_level", str)) is not None:
        known = _LOG_LEVELS.get(level.strip().lower())
        if known is None:
            top.leave("log_level", f"expected one of {', '.join(_LOG_LEVELS)}: not imported")
        else:
            settings["log_level"] = known
    return settings
