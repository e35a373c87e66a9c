"""Prove that the GGUF is the same model as the Hugging Face folder, and write the held-out scores of both.

    python check_gguf.py hf pocket-f16.gguf eval.json

Needs llama-cpp-python besides what train.py needs. Checks that 500 strings tokenise alike, and compares the greedy answers to
every held-out chat.
"""

import json
import random
import sys
from pathlib import Path

import torch
from llama_cpp import Llama
from transformers import AutoModelForCausalLM, AutoTokenizer

import data
from chats import held_out_chats
from train import CONTROL_TOKENS, MARKUP_TOKENS, answer_all, exact_match, table

FRAGMENTS = [
    "def f(x):\n    return x ** 2\n", "for (int i = 0; i < 10; ++i) {\n\ta[i] += 3;\n}", "SELECT * FROM t WHERE a='b';", "  ", "\n\n", "\t",
    " \n ", "\r\n", "don't we'll I'M it's", "1234567890", "3.14159", "1,000,000", "0x1F", "²³½", "١٢٣", "๑๒", "naïve café", "Ångström", "ß",
    "привет мир", "你好，世界", "こんにちは", "안녕하세요", "नमस्ते", "שלום", "مرحبا", "😀", "👩‍👩‍👧", "🇩🇪", "❤️", "é", "\u00a0", "\u200b", "\u3000", "—", "…", "“q”",
    '{"a": [1, 2, {"b": null}]}', "<tool_response>", "https://example.org/a?b=c&d=1#e", "C:\\dir\\file", "$%^&*()", "_under_score", "camelCase",
    "!!!", "???", "...", "#42", "@home", "the capital of France is", "llmgallery", "Hello", " Hello", "\x00", "\x7f", "𝔘𝔫𝔦", "ﬁ", "Ǆ",
]


def tokenizer_strings(count: int = 500) -> list[str]:
    rng = random.Random(7)
    draw = data.Draw(rng, held_out=False)
    pieces = [*FRAGMENTS, *CONTROL_TOKENS, *MARKUP_TOKENS]
    mixed = [rng.choice(["", " ", "\n"]).join(rng.choice(pieces) for _ in range(rng.randint(2, 8))) for _ in range(count // 2)]
    unicode_noise = ["".join(chr(rng.choice([rng.randint(1, 0x7F), rng.randint(0x80, 0xD7FF), rng.randint(0xE000, 0x1FFFF)]))
                             for _ in range(rng.randint(1, 30))) for _ in range(count // 4)]
    words = [data.repeat(draw)[0] for _ in range(count)]
    return [*pieces, *mixed, *unicode_noise, *words][:count]


def count_equal_tokenisations(tokenizer, llama: Llama, strings: list[str]) -> int:
    equal = 0
    for text in strings:
        expected = tokenizer.encode(text, add_special_tokens=False)
        given = llama.tokenize(text.encode(), add_bos=False, special=True)
        equal += given == expected
        if given != expected:
            print(f"tokenised differently: {text!r}\n  {expected}\n  {given}")
    return equal


def llama_answer(llama: Llama, prompt: str, limit: int = 120) -> str:
    """Greedy, up to an end token."""
    tokens: list[int] = []
    ends = {llama.token_eos(), *llama.tokenize(b"<|endoftext|>", add_bos=False, special=True)}
    for token in llama.generate(llama.tokenize(prompt.encode(), add_bos=False, special=True), temp=0.0, repeat_penalty=1.0):
        if token in ends or len(tokens) == limit:
            break
        tokens.append(token)
    return llama.detokenize(tokens).decode(errors="replace")


def main(folder: Path, gguf_path: Path, report_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    llama = Llama(str(gguf_path), n_ctx=1024, n_threads=2, verbose=False)
    strings = tokenizer_strings()
    equal = count_equal_tokenisations(tokenizer, llama, strings)
    print(f"tokenisation equal: {equal} of {len(strings)}")

    cases = held_out_chats(count=100)
    prompts = [prompt for _, prompt, _ in cases]
    reference = answer_all(model, tokenizer, prompts)
    given = [llama_answer(llama, prompt) for prompt in prompts]
    same = [left == right for left, right in zip(reference, given)]
    scores = {"transformers": exact_match(cases, reference), "llama.cpp": exact_match(cases, given)}
    counts = {task: sum(case[0] == task for case in cases) for task in scores["llama.cpp"]}
    print(f"greedy answers equal: {sum(same)} of {len(same)}")
    print("\n".join(f"{name}: {table(values)}" for name, values in scores.items()))
    report = {
        "metric": "greedy exact match on held-out chats",
        "tokenisation": {"strings": len(strings), "equal": equal},
        "greedy_answers": {"chats": len(same), "equal_in_both": sum(same)},
        "tasks": {task: {"chats": counts[task], **{name: values[task] for name, values in scores.items()}} for task in counts},
    }
    report_path.write_text(json.dumps(report, indent=1) + "\n")
    misses = [(task, prompt, expected, answer) for (task, prompt, expected), answer in zip(cases, given) if answer != expected]
    print(json.dumps(misses, ensure_ascii=False, indent=1), file=sys.stderr)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
