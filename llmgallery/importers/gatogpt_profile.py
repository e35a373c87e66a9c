"""GatoGPT's model profiles: what a preset and an override say, as keys of a model file."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmgallery.config.model import LOAD_PARAMETERS
from llmgallery.core.errors import ConfigError
from llmgallery.importers.draft import Draft, Row
from llmgallery.importers.ledger import Table
from llmgallery.templates import presets

TEMPLATES = {
    "InstructTemplate": "completion",
    "ChatTemplate": "chat",
    "ChatMessageTemplate": "chat_message",
    "ChatMessageGenerationTemplate": "generation",
}
"""GatoGPT's templates -> keys below `template`."""

VARIABLES = ("InputPrefix", "InputSuffix", "PrePromptPrefix", "PrePromptSuffix")
"""Texts that stand for themselves in them. PrePrompt is the system prompt."""

REPEAT_PENALTY = 1.1
"""What a profile that does not say has; other defaults of GatoGPT are ours."""


def _samplers(names: Sequence[str]) -> list[str] | None:
    """The same order. Penalties act first in GatoGPT's llama.cpp, whatever is listed; tail-free sampling is gone."""
    kept = [name for name in names if name.lower() not in ("tfs", "tfs_z", "tfz")]
    return ["penalties", *kept] if kept else None


def _whole(value: float) -> int:
    if not value.is_integer():
        raise ValueError("expected a whole number: not imported")
    return int(value)


LOAD = (
    Row(("NCtx",), "context_size", int, (0,)),
    Row(("NBatch",), "parameters.batch", int, (0,)),
    Row(("RopeFreqBase",), "parameters.rope_freq_base", float, (0,)),
    Row(("RopeFreqScale",), "parameters.rope_freq_scale", float, (0,)),
    Row(("NGpuLayers",), "gpu_layers", int),
    Row(("UseMlock",), "mmlock", bool),
    Row(("MainGpu",), "main_gpu", int),
    Row(("Seed",), "parameters.seed", int, (-1,)),
    Row(("F16KV",), "f16", bool),
    Row(("UseMMap",), "mmap", bool),
    Row(("KVOffload",), "no_kv_offloading", bool, (), lambda offloads: not offloads),
    Row(("MMProjPath",), "mmproj", str, ("",)),
)

INFERENCE = (
    Row(("NThreads",), "threads", int, (0,)),
    Row(("KeepTokens",), "parameters.n_keep", int, (0,)),
    Row(("NPredict",), "parameters.max_tokens", int, (-1,)),
    Row(("TopK",), "parameters.top_k", int),
    Row(("MinP",), "parameters.min_p", float),
    Row(("TopP",), "parameters.top_p", float),
    Row(("Temp",), "parameters.temperature", float),
    Row(("RepeatPenalty",), "parameters.repeat_penalty", float),
    Row(("FrequencyPenalty",), "parameters.frequency_penalty", float),
    Row(("PresencePenalty",), "parameters.presence_penalty", float),
    Row(("Tfs",), "parameters.tfz", float, (1,)),
    Row(("Typical",), "parameters.typical_p", float),
    Row(("Mirostat",), "parameters.mirostat", float, (), _whole),
    Row(("MirostatLearningRate",), "parameters.mirostat_eta", float),
    Row(("MirostatEntropy",), "parameters.mirostat_tau", float),
    Row(("Samplers",), "parameters.samplers", list, (), _samplers),
    Row(("RepeatLastN",), "parameters.repeat_last_n", int),
    Row(("NegativeCfgPrompt",), "parameters.negative_prompt", str, ("",)),
    Row(("CfgScale",), "parameters.negative_prompt_scale", float, (1,)),
    Row(("PromptCacheId",), "prompt_cache_path", str, ("",)),
)

_NEUTRAL = {
    "ImagePath": ("",),
    "ImageModelId": ("", "image"),
    "GrammarResourceId": ("",),
    "TemplateType": ("instruct", "chat", ""),
}
_LEFT = {
    "ImagePath": "pictures come with requests: not imported",
    "ImageModelId": "no other model describes pictures for this one: not imported",
    "GrammarResourceId": "a grammar comes with the request, or as grammar: in the YAML: not imported",
    "TemplateType": "the endpoint decides: chats take the chat templates, completions InstructTemplate: not imported",
}


@dataclass(frozen=True)
class Profile:
    """`preset`: its name here, "" = it is written out. `load`, `inference`: where one of the user's own is written; `own`: such a
    one is, but for what is loaded, in the preset file of this draft."""

    preset: str = ""
    load: Table | None = None
    inference: Table | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    table: Table | None = None
    own: Draft | None = None

    @classmethod
    def shipped(cls, name: str) -> Profile | None:
        """One of GatoGPT's own, with what it says beyond the prompt."""
        try:
            preset = presets.get(f"gatogpt/{name}", "gatogpt")
        except ConfigError:
            return None
        return cls(preset.name, values={**preset.data.get("LoadParams", {}), **preset.data.get("InferenceParams", {})})

    @classmethod
    def of(cls, table: Table) -> Profile:
        """One that is written in JSON: a user's profile, or an override."""
        table.node_of("Name")
        return cls("", table.table("LoadParams"), table.table("InferenceParams"), table=table)

    def skip(self) -> None:
        """Nothing of it is used: its keys are not told one by one."""
        for table in (self.load, self.inference):
            for name in table or ():
                assert table is not None
                table.node_of(name)


def preset_of(path: str, globs: Mapping[str, str]) -> str | None:
    """The profile that the path chooses: the user's globs first, then GatoGPT's, the first that fits. Only * is special, and
    stands for anything; case matters."""
    for glob, name in globs.items():
        if re.fullmatch(".*".join(map(re.escape, glob.split("*"))), path, re.DOTALL):
            return name
    return presets.gatogpt_profile_for(path)


def write_preset(draft: Draft, profile: Profile) -> None:
    """A profile of the user's own as a preset file, but for what is loaded."""
    if profile.table is not None and (title := profile.table.get("Name", str)):
        draft.set("description", title, profile.table, "Name")
    for table, rows in ((profile.load, LOAD), (profile.inference, INFERENCE)):
        if table is not None:
            draft.fill(table, [row for row in rows if _is_sampling(row)])
    if draft.get("parameters.repeat_penalty") is None:
        draft.set("parameters.repeat_penalty", REPEAT_PENALTY)
    _write_template(draft, Profile(), [profile.inference] if profile.inference is not None else [])


def _is_sampling(row: Row) -> bool:
    """A preset file may say it."""
    top, _, name = row.key.partition(".")
    return top == "parameters" and name not in LOAD_PARAMETERS


def write_profile(draft: Draft, profile: Profile, override: Profile | None, located: Callable[[str], str]) -> None:
    """`override` over `profile`, as keys of the draft. `located`: a path as GatoGPT writes it -> on this machine."""
    above = [part for part in (override, profile) if part is not None]
    said: set[str] = set()
    for part in above:
        for table, rows in ((part.load, LOAD), (part.inference, INFERENCE)):
            if table is not None:
                mine = [row for row in rows if part is not profile or profile.own is None or not _is_sampling(row)]
                draft.fill(table, [row for row in mine if row.names[0].lower() not in said])
                if part is not profile and profile.own is not None:
                    _write_neutral(draft, table, rows, profile.own)
                for row in rows:
                    table.node_of(row.names[0])
                said |= {name.lower().replace("_", "") for name in table}
    for row in (*LOAD, *INFERENCE):
        value = profile.values.get(row.names[0])
        if value is not None and row.names[0].lower() not in said and value not in row.neutral:
            draft.set(row.key, row.convert(value) if row.convert else value)
    if profile.own is None and draft.get("parameters.repeat_penalty") is None:
        draft.set("parameters.repeat_penalty", REPEAT_PENALTY)
    if (mmproj := draft.get("mmproj")) is not None:
        draft.config["mmproj"] = located(mmproj)
    written = [part for part in above if part is not profile or profile.own is None]
    _write_template(draft, profile, [part.inference for part in written if part.inference is not None])


def _write_neutral(draft: Draft, table: Table, rows: Sequence[Row], preset: Draft) -> None:
    """What an override says by a neutral value, where the preset file says otherwise."""
    for row in rows:
        name = row.names[0]
        if (
            _is_sampling(row)
            and name in table
            and (value := table.plain(name)) in row.neutral
            and preset.get(row.key) is not None
        ):
            draft.set(row.key, value, table, name)


def _write_template(draft: Draft, profile: Profile, tables: Sequence[Table]) -> None:
    """The prompt format: the preset's name, and what is written otherwise than there."""
    texts = {name: (table, text) for table in reversed(tables) for name, text in _texts(table)}
    if profile.preset:
        draft.set("template.preset", profile.preset)
    if profile.own is not None:
        draft.set("template.preset", profile.own.name)
    elif texts or not profile.preset:
        draft.set("template.engine", "gatogpt")
    for name, (table, text) in texts.items():
        if name in TEMPLATES:
            draft.set(f"template.{TEMPLATES[name]}", text, table, name)
        elif name == "PrePrompt" and (text or profile.own is not None):
            draft.set("system_prompt", text, table, name)
        else:
            draft.set(f"template.variables.{name}", text, table, name)
    stops = [stop for table in tables for stop in table.get("Antiprompts", list) or () if stop]
    if stops:
        draft.set("stopwords", list(dict.fromkeys(stops)), tables[0], "Antiprompts")
    for table in tables:
        for name, neutral in _NEUTRAL.items():
            if (value := table.get(name, str)) is not None and value not in neutral:
                table.leave(name, _LEFT[name])


def _texts(table: Table) -> Iterator[tuple[str, str]]:
    for name in (*TEMPLATES, *VARIABLES, "PrePrompt"):
        if (text := table.get(name, str)) is not None:
            yield name, text
