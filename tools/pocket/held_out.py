"""Write the reference for tests of a whole stack: held-out cases with the answer that these weights give greedily.

    python held_out.py hf pocket-f16.gguf held_out.json

Needs what check_gguf.py needs. A server that handles template, tokens, stops and sampling right gives exactly `answer`, also where
the model itself is wrong (`answer` is not `expected`). Cases to which transformers and llama.cpp answer differently are left out:
there rounding decides, and a stack that batches differently may rightly give either.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from llama_cpp import Llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from check_gguf import llama_answer
from chats import Case, held_out_chats
from train import CONTEXT_SIZE, answer_all


def reference_cases(cases: list[Case], transformers_answers: list[str], llama_answers: list[str]) -> Iterator[dict[str, str]]:
    for (task, prompt, expected), other, answer in zip(cases, transformers_answers, llama_answers):
        if answer == other:
            yield {"task": task, "prompt": prompt, "expected": expected, "answer": answer}


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the model in Hugging Face format")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--chats", type=int, default=86, help="chats a task; the default keeps the file below a megabyte")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32).eval()
    llama = Llama(str(options.gguf), n_ctx=CONTEXT_SIZE, n_threads=options.threads, verbose=False)
    cases = held_out_chats(options.chats)
    prompts = [prompt for _, prompt, _ in cases]
    kept = list(reference_cases(cases, answer_all(model, tokenizer, prompts), [llama_answer(llama, prompt) for prompt in prompts]))
    options.target.write_text(json.dumps(kept, ensure_ascii=False, indent=0) + "\n")
    right = sum(case["answer"] == case["expected"] for case in kept)
    print(f"{len(kept)} of {len(cases)} cases kept, {len(cases) - len(kept)} answered differently; {right} of the kept are right")


if __name__ == "__main__":
    main()
