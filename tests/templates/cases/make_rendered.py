"""Makes rendered.json, with transformers as the referee: `python make_rendered.py` where transformers is installed."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

CASES = Path(__file__).parent
PRESETS = CASES.parents[2] / "llmgallery" / "templates" / "presets.toml"

SYSTEM = {"role": "system", "content": "You are brief. "}
USER = {"role": "user", "content": " What is 2+2? é "}
ANSWER = {"role": "assistant", "content": "4\n"}
MORE = {"role": "user", "content": 'And "3+3"?'}
THOUGHT = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSix"}
FUNCTION = {"name": "add", "arguments": {"a": 3, "b": [1, "<x>"]}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "abcdefghi", "type": "function", "function": FUNCTION}]}
RESULT = {"role": "tool", "content": "6", "name": "add", "tool_call_id": "abcdefghi"}
CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, MORE],
    "thinking": [USER, THOUGHT, MORE],
    "users": [USER, MORE],
    "tools": [SYSTEM, USER, CALL, RESULT, {"role": "assistant", "content": "6"}, MORE],
    "pending tool": [USER, CALL, RESULT],
}
ITEMS = {"type": "object", "properties": {"z": {"enum": ["p", "q"]}}}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "number"}, "b": {"type": "array", "items": ITEMS}},
    "required": ["a"],
}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds & 'sums'", "parameters": SCHEMA}}]


def render(source: str, conversation: str) -> dict[str, str]:
    messages = CONVERSATIONS[conversation]
    try:
        texts, _ = render_jinja_template(
            conversations=[messages],
            chat_template=source,
            tools=TOOLS if "tool" in conversation else None,
            add_generation_prompt=messages[-1]["role"] != "assistant",
            bos_token="<s>",
            eos_token="</s>",
            date_string="21 Nov 2026",
        )
    except jinja2.TemplateError as error:
        return {"refusal": str(error)}
    return {"text": texts[0]}


def main() -> None:
    templates = {path.name: path.read_text() for path in sorted(CASES.glob("*.jinja"))}
    cases: list[dict[str, Any]] = [
        {"template": template, "conversation": conversation, **render(source, conversation)}
        for template, source in templates.items()
        for conversation in CONVERSATIONS
    ]
    for name, preset in tomllib.loads(PRESETS.read_text()).items():
        # Presets know no tools.
        for conversation in (name for name in CONVERSATIONS if "tool" not in name):
            text = render(preset["chat_template"], conversation)
            cases.append({"template": f"preset:{name}", "conversation": conversation, **text})
    found = {"conversations": CONVERSATIONS, "tools": TOOLS, "cases": cases}
    (CASES / "rendered.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
