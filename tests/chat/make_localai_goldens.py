"""Makes cases/localai.json: the prompts of every model of cases/localai_models.yaml for every chat below, by Go itself.

    python tests/chat/make_localai_goldens.py REFEREE "sprig 3.2.3"

REFEREE is localai_referee.go, built with `go build` where github.com/Masterminds/sprig/v3 is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import yaml

CASES = Path(__file__).parent / "cases"
MODELS = yaml.safe_load((CASES / "localai_models.yaml").read_text(encoding="utf-8"))

CITY = {"type": "object", "properties": {"city": {"type": "string", "minLength": 1}, "n<": {"const": 1e21}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Tells <it> & more.", "parameters": CITY}}
NOW = {"type": "function", "function": {"name": "now", "strict": True}}
CLOCK = {"type": "function", "function": {"name": "clock", "parameters": {}}}
USER = {"role": "user", "content": "How is it in Zürich? 1 < 2 & 'so'"}
SYSTEM = {"role": "system", "content": "You are brief."}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Zürich <&>"}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "call_1", "content": '{"t": 21.5}\n'}
TOOLS = [WEATHER, CLOCK]

CHATS: dict[str, dict[str, Any]] = {
    "one": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "turns": {
        "messages": [SYSTEM, USER, {"role": "assistant", "content": "Fine.\n"}, {"role": "user", "content": " And  now?\t"}]
    },
    "empty": {
        "messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}, {"role": "user", "content": "x"}]
    },
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
    "tools": {"messages": [SYSTEM, USER], "tools": TOOLS},
    "called": {"messages": [USER, CALLS, RESULT], "tools": TOOLS},
    "called twice": {
        "messages": [
            USER,
            {**CALLS, "content": "Let me see.", "tool_calls": [CALL, {**CALL, "id": "call_2", "index": 1}]},
            RESULT,
            {"role": "assistant", "content": "It is 21.5."},
            USER,
        ]
    },
    "older call": {
        "messages": [USER, {"role": "assistant", "content": None, "function_call": {"name": "now", "arguments": "{}"}}, USER]
    },
    "none": {"messages": [USER], "tools": TOOLS, "tool_choice": "none"},
    "required": {"messages": [USER], "tools": TOOLS, "tool_choice": "required"},
    "forced": {"messages": [USER], "tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "clock"}}},
    "strict": {"messages": [USER], "tools": [NOW]},
    "asides": {"messages": [USER], "tools": TOOLS, "reasoning_effort": "high", "metadata": {"b": "2", "a": "<1>"}},
}


def main(referee: str, library: str) -> None:
    pairs = list(product(MODELS, CHATS))
    lines = "".join(json.dumps({"model": MODELS[model], "request": CHATS[chat]}) + "\n" for model, chat in pairs)
    told = subprocess.run([referee], input=lines, capture_output=True, text=True, check=True).stdout
    answers = [json.loads(line) for line in told.split("\n") if line]
    assert len(answers) == len(pairs)
    prompts = {f"{model}: {chat}": answer["prompt"] for (model, chat), answer in zip(pairs, answers, strict=True)}
    made_by = f"localai_referee.go with {answers[0]['go']} text/template, {library}"
    body = {"made by": made_by, "models": MODELS, "chats": CHATS, "prompts": prompts}
    (CASES / "localai.json").write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{len(prompts)} prompts, {made_by}")


if __name__ == "__main__":
    main(*sys.argv[1:])
