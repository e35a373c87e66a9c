"""Which tasks pocket has, how its chats read as text, and chats that it was not trained on. Needs nothing but Python.

    python chats.py --count 10          # held-out chats as JSON lines
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator

import data
import tools
from data import Chat, Draw

# How often a task is drawn, in the first half of the training and in the second: copying, which most tasks need, is learnt
# first; then come the tables. Tool chats are long, so their share of the tokens is about three times as large.
TASKS: dict[str, tuple[Callable[[Draw], Chat], float, float]] = {
    "faq": (data.single(data.faq), 14, 10),
    "small_talk": (data.single(data.small_talk), 2, 2),
    "capital": (data.single(data.capital), 4, 3),
    "country": (data.single(data.country), 4, 3),
    "arithmetic": (data.single(data.arithmetic), 10, 40),
    "repeat": (data.single(data.repeat), 9, 9),
    "unknown": (data.single(data.unknown), 2, 2),
    "several_turns": (data.several_turns, 5, 5),
    "persona": (data.persona, 4, 4),
    "persona_other": (data.persona_other, 3, 3),
    "upper_case": (data.upper_case, 6, 12),
    "one_word": (data.one_word, 5, 10),
    "memory": (data.memory, 5, 4),
    "my_name": (data.my_name, 3, 2),
    "json": (data.json_reply, 6, 6),
    "think": (data.think, 5, 5),
    "completion": (data.completion, 1, 1.5),
    "one_call": (tools.one_call, 8, 7),
    "two_calls": (tools.two_calls, 4, 5),
    "no_call": (tools.no_call, 2.5, 3),
    "tool_answer": (tools.tool_answer, 5, 4),
    "long_chat": (data.long_chat, 0.6, 0.5),
}


def chat_stream(draw: Draw, half: int = 0) -> Iterator[Chat]:
    functions, *weights = zip(*TASKS.values())
    while True:
        yield draw.rng.choices(functions, weights[half])[0](draw)


# --- prompt format -----------------------------------------------------------------------------------------------------------

def tool_block(tool_schemas: list[dict]) -> str:
    lines = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tool_schemas)
    return ("# Tools\nYou may call these functions:\n<tools>\n" + lines + "</tools>\nTo call one, answer with "
            '<tool_call>{"name": NAME, "arguments": {...}}</tool_call>')


def reply_text(message: dict) -> str:
    calls = [f'<tool_call>{{"name": {json.dumps(call["function"]["name"])}, "arguments": '
             f'{json.dumps(call["function"]["arguments"], ensure_ascii=False)}}}</tool_call>' for call in message.get("tool_calls", [])]
    return "\n".join(filter(None, [message["content"], *calls]))


def segments(chat: Chat) -> list[tuple[str, bool]]:
    """The chat as the template renders it, in pieces: (text, is it a training target)."""
    if chat.text:
        return [(chat.text[0], False), (chat.text[1] + "<|endoftext|>", True)]
    messages = chat.messages
    first = messages[0]["content"] if messages[0]["role"] == "system" else ""
    head = "\n\n".join(filter(None, [first, tool_block(chat.tools) if chat.tools else ""]))
    pieces = [(f"<|im_start|>system\n{head}<|im_end|>\n", False)] if head else []
    for message in messages[1 if first else 0:]:
        content = message["content"]
        if message["role"] == "assistant":
            pieces += [("<|im_start|>assistant\n", False), (reply_text(message) + "<|im_end|>", True), ("\n", False)]
        elif message["role"] == "tool":
            pieces.append((f"<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n", False))
        else:
            pieces.append((f"<|im_start|>{message['role']}\n{content}<|im_end|>\n", False))
    return pieces[:-1]


def prompt_and_answer(chat: Chat) -> tuple[str, str]:
    """What the model is given and what it should say last, without the end token."""
    *before, (answer, _) = segments(chat)
    return "".join(text for text, _ in before), answer.removesuffix("<|im_end|>").removesuffix("<|endoftext|>")


# --- held out ------------------------------------------------------------------------------------------------------------------

Case = tuple[str, str, str]  # task, prompt, answer


def draw_held_out(count: int, seed: int = 99) -> Iterator[tuple[str, Chat]]:
    """Up to `count` chats with different prompts for each task, nothing of which is drawn for training."""
    for task, (function, *_) in TASKS.items():
        draw = Draw(random.Random(f"{seed} {task}"), held_out=True)
        different: dict[tuple[str, str], Chat] = {}
        for _ in range(4 * count):
            chat = function(draw)
            different.setdefault(prompt_and_answer(chat), chat)
        yield from ((task, chat) for chat in list(different.values())[:count])


def held_out_chats(count: int, seed: int = 99) -> list[Case]:
    """The same, rendered."""
    return [(task, *prompt_and_answer(chat)) for task, chat in draw_held_out(count, seed)]


def main() -> None:
    """One JSON object a line, for who wants to send the chats to a server: {task, messages, tools, prompt, expected}."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--count", type=int, default=10, help="chats a task")
    parser.add_argument("--seed", type=int, default=99)
    options = parser.parse_args()
    for task, chat in draw_held_out(options.count, options.seed):
        prompt, expected = prompt_and_answer(chat)
        row = {"task": task, "messages": chat.messages[:-1], "tools": chat.tools, "prompt": prompt, "expected": expected}
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
