"""What must hold in a model file beyond the types of its keys: backends, weights, options, durations, templates."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from yaml.nodes import Node, ScalarNode

from llmgallery.config.model import LOAD_KEYS, LOAD_PARAMETERS, ModelConfig
from llmgallery.config.nodes import PLAIN, place
from llmgallery.config.outside import Outside, Spec
from llmgallery.config.presets import own_presets
from llmgallery.config.problems import Problem
from llmgallery.config.readers import FAILED, Reading, struct_reader
from llmgallery.config.suggest import did_you_mean
from llmgallery.config.units import DURATION, parse_duration
from llmgallery.core.errors import InvalidField
from llmgallery.core.sampling import MOST_BREAKERS, sampler_order

FIELD_BACKENDS = frozenset({
    "anthropic", "cloud-proxy", "vllm", "sglang", "mlx", "openvino", "optimum", "optimum-intel", "rwkv", "llama-server",
    "llama-ggml", "llama-stable", "gpt4all", "gptneox", "ggml-gptneox", "falcon", "falcon-ggml", "bloomz", "stablelm",
    "dolly", "replit", "mpt", "starcoder", "diffusers", "whisper", "piper", "bark", "stablediffusion",
    "stablediffusion-ggml", "ctransformers", "vllm-cpp", "vllm-omni", "bonsai", "ds4", "mlx-vlm",
})  # fmt: skip
"""Engines that model files of this field name; those that are not among the specs are not here yet."""

GENERAL_KEYS = frozenset({"backend", "model", "model_base_name", "options"})
"""Load keys that every backend heeds."""

NOT_YET = frozenset({
    "grammar", "reasoning", "feature_flags",
    "concurrency_groups", "artifacts", "download_files", "prompt_cache_path",
    "prompt_cache_all", "prompt_cache_ro", "ngqa", "rms_norm_eps", "no_mulmatq", "cfg_scale", "step", "alias", "proxy",
    "grpc", "parameters.n_keep", "parameters.keep", "parameters.tfz",
    "parameters.negative_prompt", "parameters.negative_prompt_scale",
    "parameters.clip_skip", "parameters.encoding_format", "parameters.pooling_half_life_tokens",
    "parameters.translate", "parameters.language",
    "function.grammar.parallel_calls", "function.grammar.disable_parallel_new_lines", "function.grammar.mixed_mode",
    "function.grammar.no_mixed_free_string", "function.grammar.prefix", "function.grammar.expect_strings_after_json",
    "function.grammar.properties_order", "function.grammar.schema_type", "function.grammar.triggers",
})  # fmt: skip
"""Known keys that this version reads and does not use yet."""

_NOT_YET = "this version does not use this key yet"
_NO_SHIFT = "not used: an answer ends when the context is full, and nothing is ever cut out of it, so nothing need be kept"
_NEVER = {
    "parameters.tfz": "no engine uses this key any more: llama.cpp has removed tail-free sampling; min_p does its work",
    "parameters.n_keep": _NO_SHIFT,
    "parameters.keep": _NO_SHIFT,
}

OBSOLETE = {"lora_base": "obsolete: an adapter needs no base model beside the weights any more"}
STRETCHING = ("yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")


def backend(name: str, reading: Reading, specs: Mapping[str, Spec]) -> str | None:
    """The canonical name of the backend that `backend: name` means; notes one that is not here."""
    wanted = name.lower()
    known = {spec.name.lower(): spec.name for spec in specs.values()}
    for spec in specs.values():
        known |= {alias.lower(): spec.name for alias in spec.aliases if alias.lower() not in known}
    if wanted in known:
        return known[wanted]
    here = f"available: {', '.join(sorted(specs))}"
    if wanted in FIELD_BACKENDS:
        reading.fail(reading.nodes["backend"], "backend", f"{name} is not available yet in this version", here)
    else:
        reading.fail(reading.nodes["backend"], "backend", f"no backend is called {name!r}", did_you_mean(name, [*known]) or here)
    return None


def unheeded(reading: Reading, spec: Spec) -> list[Problem]:
    """Warnings for load keys that are written and that the backend does not use."""
    ignored = _ignored(spec.keys)
    unused = [key for key in reading.places if key in ignored]
    plain = f"backend {spec.name} does not use this key"
    return [Problem(reading.path, *reading.places[key], key, OBSOLETE.get(key, plain)) for key in unused]


@lru_cache(64)
def _ignored(used: frozenset[str]) -> frozenset[str]:
    """Load keys, as they are written, that a backend of these keys does not use."""
    keys = used | GENERAL_KEYS
    heeded = keys | {f"parameters.{key}" for key in keys & LOAD_PARAMETERS} | {"parameters.model"}
    return (LOAD_KEYS | {f"parameters.{key}" for key in LOAD_PARAMETERS}) - heeded


def not_yet(reading: Reading) -> list[Problem]:
    """Warnings for keys that this version does not use yet."""
    wrong = {problem.key for problem in reading.problems}
    written = [key for key in reading.places if key in NOT_YET and key not in wrong]
    return [reading.at(key, _NEVER.get(key, _NOT_YET)) for key in written]


def values(config: ModelConfig, reading: Reading, stem: str) -> None:
    """Names, durations and enumerations that are not types."""
    for key, name in [("name", config.name), *((f"aliases[{i}]", alias) for i, alias in enumerate(config.aliases))]:
        if name is not None and (fault := name_fault(name)):
            reading.fail(_node(reading, key), key, fault)
    if config.name is None and (fault := name_fault(stem)):
        reading.problems.append(Problem(reading.path, 1, 1, "", f"the file's name as a model's name: {fault}", "set name:"))
    if config.keep_alive is not None:
        try:
            parse_duration(config.keep_alive)
        except ValueError:
            reading.fail(reading.nodes["keep_alive"], "keep_alive", f"expected {DURATION}, found {config.keep_alive!r}")
    for key, known in (("cache_type_k", CACHE_TYPES), ("cache_type_v", CACHE_TYPES), ("rope_scaling", ROPE_SCALINGS)):
        value = getattr(config, key)
        if value is not None and value.lower() not in known:
            message = f"expected one of {', '.join(known)}, found {value!r}"
            reading.fail(reading.nodes[key], key, message, did_you_mean(value, list(known)))
    sampling(config, reading)


def sampling(config: ModelConfig, reading: Reading) -> None:
    """What is no type of the sampling defaults and the stop strings."""
    if config.parameters.max_tokens == 0:
        node = reading.nodes["parameters.max_tokens"]
        message = "0 is out of range: every answer would be empty; expected a whole number, at least 1"
        reading.fail(node, "parameters.max_tokens", message, "-1 = until the context is full")
    _samplers(config, reading)
    for token in config.parameters.logit_bias or ():
        key = f"parameters.logit_bias.{token}"
        if not re.fullmatch(r"\d{1,9}", token) and key not in reading.lent:
            reading.fail(reading.nodes["parameters.logit_bias"], key, "expected a token id: a whole number, 0 or more")
    for index, stop in enumerate(config.stopwords):
        if not stop:
            reading.fail(_node(reading, f"stopwords[{index}]"), f"stopwords[{index}]", "an empty text would end every answer")


def companions(config: ModelConfig, reading: Reading, folder: Path, outside: Outside) -> list[Problem]:
    """Notes references of LoRA adapters and of the draft model that can mean nothing, and scales without an adapter; warnings
    for references to what is not there now."""
    if config.lora_scales and len(config.lora_scales) != len(config.lora_adapters):
        counts = f"{len(config.lora_scales)} scales for {len(config.lora_adapters)} adapters"
        reading.fail(reading.nodes["lora_scales"], "lora_scales", counts, "write one for each of lora_adapters, or none")
    if config.lora_scale is not None and not config.lora_adapter:
        reading.fail(reading.nodes["lora_scale"], "lora_scale", "there is no lora_adapter", "lora_adapters have lora_scales")
    warnings = []
    named = [("draft_model", config.draft_model), ("lora_adapter", config.lora_adapter)]
    for key, reference in [*named, *((f"lora_adapters[{i}]", one) for i, one in enumerate(config.lora_adapters))]:
        if reference is None:
            continue
        node = _node(reading, key)
        if not Path(reference).is_absolute() and ".." in re.split(r"[/\\]", reference):
            reading.fail(node, key, f"{reference} leads out of the models folder", "write an absolute path")
        elif fault := outside.malformed(reference, folder) if outside.malformed else "":
            reading.fail(node, key, fault)
        elif not reference.strip():
            reading.fail(node, key, "the reference is empty")
        elif fault := outside.absent(reference, folder) if outside.absent else "":
            warnings.append(Problem(reading.path, *place(node), key, fault))
    return warnings


def _samplers(config: ModelConfig, reading: Reading) -> None:
    """The samplers' names, DRY's breakers, and LocalAI's top-level Mirostat beside that of the parameters."""
    if config.parameters.samplers is not None:
        try:
            sampler_order(config.parameters.samplers)
        except InvalidField as exc:
            reading.fail(reading.nodes["parameters.samplers"], "parameters.samplers", exc.message.removeprefix("samplers: "))
    breakers = config.parameters.dry_sequence_breakers or ()
    if len(breakers) > MOST_BREAKERS:
        key = "parameters.dry_sequence_breakers"
        reading.fail(reading.nodes[key], key, f"expected at most {MOST_BREAKERS} texts, found {len(breakers)}")
    for index, text in enumerate(breakers):
        if not text or "\0" in text:
            key = f"parameters.dry_sequence_breakers[{index}]"
            reading.fail(_node(reading, key), key, "expected a text that is not empty, without a null character")
    for name in ("mirostat", "mirostat_eta", "mirostat_tau"):
        top, below = getattr(config, name), getattr(config.parameters, name)
        if top is not None and below is not None and top != below:
            message = f"parameters.{name} (line {reading.places[f'parameters.{name}'][0]}) says otherwise: {below}"
            reading.fail(reading.nodes[name], name, message, "keep one of them")


def stretches(config: ModelConfig) -> bool:
    """RoPE is set to something else than what the weights say."""
    yarn = any(getattr(config, key) is not None for key in STRETCHING)
    scaling = config.rope_scaling not in (None, "none")
    return yarn or scaling or bool(config.parameters.rope_freq_base or config.parameters.rope_freq_scale)


def name_fault(name: str) -> str:
    """Why `name` cannot name a model; "" when it can."""
    if not name.strip() or name != name.strip():
        return "a name must not be empty, nor begin or end with a space"
    if len(name) > 200:
        return "a name has at most 200 characters"
    return "" if name.isprintable() else "a name must not hold control characters"


def _node(reading: Reading, key: str) -> Node:
    """The node of a key or of a list's item."""
    name, bracket, index = key.partition("[")
    node = reading.nodes[name]
    if bracket and 0 <= int(index[:-1]) < len(node.value):
        item: Node = node.value[int(index[:-1])]
        return item
    return node


def weights(config: ModelConfig, reading: Reading, spec: Spec | None) -> None:
    """Exactly one weights reference, where the backend needs one, and no way out of the folder."""
    top, below = config.model, config.parameters.model
    if top is not None and below is not None and top != below:
        message = f"parameters.model (line {reading.places['parameters.model'][0]}) names other weights: {below}"
        reading.fail(reading.nodes["model"], "model", message, "keep one of them")
    key = "parameters.model" if below is not None else "model"
    reference = config.weights
    if reference:
        if not Path(reference).is_absolute() and ".." in re.split(r"[/\\]", reference):
            reading.fail(reading.nodes[key], key, f"{reference} leads out of the models folder", "write an absolute path")
    elif config.alias is not None:
        node = reading.nodes["alias"]
        reading.fail(node, "alias", "redirects are not read yet", f"write this name under aliases: in the file of {config.alias}")
    elif (spec is None or spec.needs_weights) and not _failed(reading, "backend", "model", "parameters"):
        message = "no weights: parameters.model is missing"
        advice = "name a file of this folder, an absolute path, or a Hub reference such as owner/repo/file.gguf"
        reading.problems.append(Problem(reading.path, 1, 1, "", message, advice))


def _failed(reading: Reading, *keys: str) -> bool:
    """A problem has been noted at one of the keys or below, so that what is missing may just be misspelt."""
    return any(problem.key.split(".")[0] in keys or "parameters.model" in problem.suggestion for problem in reading.problems)


def listed_options(
    items: list[str], node: Node, spec: Spec, reading: Reading
) -> tuple[dict[str, Any], dict[str, Any], list[Problem]]:
    """LocalAI's ["key:value"] as typed values of the backend's options, and of load keys outside of them; and warnings for
    what the backend does not have."""
    fields = struct_reader(spec.options).fields
    outer = {key: found for key, found in struct_reader(ModelConfig).fields.items() if key in spec.listed.values()}
    found: dict[str, Any] = {}
    above: dict[str, Any] = {}
    warnings: list[Problem] = []
    for index, item in enumerate(items):
        name, colon, text = item.partition(":")
        name = name.strip().lstrip("-")
        key = f"options[{index}]"
        at = _node(reading, key)
        plain = name.replace("-", "_")
        target = plain if plain in fields else spec.listed.get(plain, "")
        known = fields.get(name) or fields.get(target) or outer.get(target)
        if known is None:
            advice = did_you_mean(name, list(fields))
            message = f"ignored, as LocalAI's lists hold keys for other builds too: backend {spec.name} has no option {name!r}"
            warnings.append(Problem(reading.path, *place(at), key, message, advice))
            continue
        word = text.strip() if colon else "true"
        if plain in spec.listed_words:
            words, said = spec.listed_words[plain], word
            word = words.get(said.replace("_", "-"), "")
            if not word:
                message = f"ignored: backend {spec.name} has no {name} {said!r}, only {', '.join(words)}"
                warnings.append(Problem(reading.path, *place(at), key, message))
                continue
        read = known[1].read(ScalarNode(PLAIN, word, at.start_mark, at.end_mark), key, reading)
        if read is not FAILED:
            (above if target in outer else found)[known[0]] = read
    return found, above, warnings


def preset(config: ModelConfig, reading: Reading, names: Collection[str] | None, folder: Path) -> None:
    """Note a preset that does not exist. `names`: the built-in ones; `folder`: where the user's may be."""
    name = config.template.preset
    if name is None or names is None or name in names:
        return
    own = [path.stem for path in own_presets(folder)]
    advice = did_you_mean(name, [*own, *names]) or f"known: {', '.join([*own, *sorted(names)])}"
    if name in own:
        advice = "a preset of your own may name built-in ones only"
    reading.fail(reading.nodes["template.preset"], "template.preset", f"no preset is called {name!r}", advice)
