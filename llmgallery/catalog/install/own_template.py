"""Go templates of a LocalAI entry, which this version does not render: what is rendered in their place. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from llmgallery.config.checks import GO_KEYS

_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("smolvlm", ("<end_of_utterance>",)),
    ("phi4", ("<|im_sep|>",)),
    ("llama3", ("<|start_header_id|>",)),
    ("llama4", ("<|header_start|>",)),
    ("gemma", ("<start_of_turn>",)),
    ("gemma4", ("<|turn>",)),
    ("granite", ("<|start_of_role|>",)),
    ("command-r", ("<|START_OF_TURN_TOKEN|>",)),
    ("deepseek-r1", ("<｜User｜>",)),
    ("exaone", ("[|endofturn|]",)),
    ("harmony", ("<|start|>", "<|message|>")),
    ("mistral-v7", ("[SYSTEM_PROMPT]",)),
    ("llama2", ("[INST]", "<<SYS>>")),
    ("mistral", ("[INST]",)),
    ("phi3", ("<|{{.RoleName}}|>", "<|end|>")),
    ("tulu", ("<|{{.RoleName}}|>",)),
    ("zephyr", ("<|user|>", "</s>")),
    ("vicuna", ("USER:", "ASSISTANT:")),
    ("alpaca", ("### Instruction:", "### Response:")),
    ("chatml", ("<|im_start|>",)),
)
"""Preset -> what all must stand in a Go template of the same format, without spaces at its braces; the first that fits."""


def with_own_template(config: Mapping[str, Any], presets: Collection[str] | None) -> tuple[dict[str, Any], list[str]]:
    """The config so that it is served, and what was changed, in sentences.

    Go templates stay in it as they are. What is rendered is the template that came with the weights; where they bring none,
    the preset of the same format, if the Go templates tell one.
    """
    template = config.get("template")
    if not isinstance(template, Mapping):
        return dict(config), []
    go = {key: template[key] for key in GO_KEYS if isinstance(template.get(key), str)}
    kept = {key: value for key, value in template.items() if go.get(key) != ""}
    go = {key: text for key, text in go.items() if text}
    if not go or template.get("use_tokenizer_template"):
        return {**config, "template": kept}, []
    added: dict[str, Any] = {"use_tokenizer_template": True}
    if "preset" not in template and (preset := _preset(go, presets)) is not None:
        added["preset"] = preset
    keys = ", ".join(f"template.{key}" for key in go)
    fallback = f", or the preset {added['preset']} where they bring none" if "preset" in added else ""
    message = f"{keys}: Go templates are not rendered yet: kept, and the template that came with the weights is used{fallback}"
    return {**config, "template": {**added, **kept}}, [message]


def _preset(go: Mapping[str, str], presets: Collection[str] | None) -> str | None:
    text = "\n".join(go.get(key, "") for key in ("chat_message", "chat", "completion"))
    text = text.replace("{{ ", "{{").replace(" }}", "}}")
    return next((name for name, marks in _MARKS if name in (presets or ()) and all(mark in text for mark in marks)), None)
