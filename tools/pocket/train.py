"""Make pocket from nothing: tokenizer, synthetic data, training, held-out evaluation.

    python train.py --out hf            # about 30 minutes on two CPU cores

Needs torch, transformers, tokenizers, numpy and jinja2. `export_gguf.py` makes the GGUF from what this writes.
"""

import argparse
import itertools
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from chats import Case, chat_stream, held_out_chats, segments
from data import Draw

VOCABULARY_SIZE = 2048
CONTEXT_SIZE = 1024
CONTROL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP_TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]  # kept in the text, for parsers to find
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text()


# --- tokenizer -----------------------------------------------------------------------------------------------------------------

def train_tokenizer(draw: Draw, chats: int = 40_000) -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's splitting. Digits never merge, since the training splits them off first."""
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    special = pre_tokenizers.Split(Regex("|".join(map(_escaped, CONTROL_TOKENS + MARKUP_TOKENS))), "removed")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([special, pre_tokenizers.Digits(individual_digits=True), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(MARKUP_TOKENS), special_tokens=CONTROL_TOKENS, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    stream = chat_stream(draw)
    tokenizer.train_from_iterator(("".join(text for text, _ in segments(next(stream))) for _ in range(chats)), trainer)
    tokenizer.pre_tokenizer = byte_level
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in MARKUP_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False, model_max_length=CONTEXT_SIZE, padding_side="left")


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """As transformers does, under the class name that versions 4 and 5 both know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"}, indent=2) + "\n")


def _escaped(token: str) -> str:
    return token.replace("|", r"\|")


def check_format(tokenizer: PreTrainedTokenizerFast, draw: Draw, count: int = 300) -> None:
    """The template renders what we train on, and pieces tokenise like the whole."""
    stream = chat_stream(draw)
    for chat in (next(stream) for _ in range(count)):
        text = "".join(piece for piece, _ in segments(chat))
        assert [token for piece, _ in segments(chat) for token in tokenizer.encode(piece)] == tokenizer.encode(text), text
        last_thought = bool(chat.messages) and "</think>" in chat.messages[-1]["content"]
        if not chat.text and not last_thought:
            rendered = tokenizer.apply_chat_template(chat.messages, tools=chat.tools or None, tokenize=False)
            assert rendered == text + "\n", f"{rendered!r}\n{text!r}"


# --- batches -------------------------------------------------------------------------------------------------------------------

Document = tuple[list[int], list[bool]]


def document_stream(tokenizer: PreTrainedTokenizerFast, draw: Draw, half: int, chunk: int = 256) -> Iterator[Document]:
    stream = chat_stream(draw, half)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # a copy: evaluation sets padding on the original
    backend.no_padding()
    while True:
        chats = [segments(next(stream)) for _ in range(chunk)]
        encodings = iter(backend.encode_batch_fast([text for chat in chats for text, _ in chat], add_special_tokens=False))
        for chat in chats:
            ids, targets = [], []
            for _, is_target in chat:
                piece = next(encodings).ids
                ids += piece
                targets += [is_target] * len(piece)
            yield ids, targets


def pack(documents: list[Document], row_length: int, rows: int) -> tuple[list[list[Document]], list[Document]]:
    """First fit: the older documents first (none waits for ever) and longest first, then newer ones into the gaps.

    Returns the filled rows and the documents left over.
    """
    ends = itertools.accumulate(len(ids) for ids, _ in documents)
    older = sum(end <= 0.95 * rows * row_length for end in ends)
    by_length = sorted(documents[:older], key=lambda document: -len(document[0]))
    filled, room, left = [[] for _ in range(rows)], [row_length] * rows, []
    for document in by_length + documents[older:]:
        row = next((index for index in range(rows) if room[index] >= len(document[0])), None)
        if row is None:
            left.append(document)
        else:
            filled[row].append(document)
            room[row] -= len(document[0])
    return filled, left


@dataclass(frozen=True)
class Batch:
    """Packed rows. `ids`, `document` (-1 is padding) and `target` are [rows, row_length]."""

    ids: torch.Tensor
    document: torch.Tensor
    target: torch.Tensor

    def attention_mask(self) -> torch.Tensor:
        """Causal, and never across documents; [rows, 1, length, length]."""
        length = self.ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        return ((self.document[:, :, None] == self.document[:, None, :]) & causal)[:, None]


def to_batch(rows: list[list[Document]], row_length: int) -> Batch:
    ids = torch.zeros(len(rows), row_length, dtype=torch.long)
    document = torch.full_like(ids, -1)
    target = torch.zeros_like(ids, dtype=torch.bool)
    for row, documents in enumerate(rows):
        start = 0
        for number, (tokens, targets) in enumerate(documents):
            end = start + len(tokens)
            ids[row, start:end] = torch.tensor(tokens)
            document[row, start:end] = number
            target[row, start:end] = torch.tensor(targets)
            start = end
    return Batch(ids, document, target)


def batch_stream(documents: Iterator[Document], tokens: int, row_lengths: tuple[int, ...] = (384, CONTEXT_SIZE)) -> Iterator[Batch]:
    """Short documents go to short rows, since attention costs row length squared."""
    waiting: dict[int, list[Document]] = {length: [] for length in row_lengths}
    for document in documents:
        length = next((length for length in row_lengths if len(document[0]) <= length), None)
        if length is None:
            continue
        waiting[length].append(document)
        if sum(len(ids) for ids, _ in waiting[length]) >= tokens * 1.5:
            rows, waiting[length] = pack(waiting[length], length, tokens // length)
            yield to_batch(rows, length)


# --- training ------------------------------------------------------------------------------------------------------------------

def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    end, stop = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=VOCABULARY_SIZE, hidden_size=192, intermediate_size=448, num_hidden_layers=5, num_attention_heads=3,
        num_key_value_heads=3, head_dim=64, max_position_embeddings=CONTEXT_SIZE, rms_norm_eps=1e-5, tie_word_embeddings=True,
        initializer_range=0.04, bos_token_id=None, eos_token_id=stop, pad_token_id=end, attn_implementation="sdpa"))
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=[stop, end], pad_token_id=end, max_new_tokens=256)
    return model


def loss_of(model: LlamaForCausalLM, batch: Batch, dtype: torch.dtype | None) -> torch.Tensor:
    """Cross entropy over assistant tokens; only their positions pass the output layer."""
    predicts = torch.zeros_like(batch.target)
    predicts[:, :-1] = batch.target[:, 1:]
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        hidden = model.model(input_ids=batch.ids, attention_mask=batch.attention_mask(), use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[predicts])
    return F.cross_entropy(logits.float(), batch.ids[batch.target])


def learning_rate(step: int, steps: int, peak: float, warmup: int = 200) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def optimizer_of(model: LlamaForCausalLM, weight_decay: float) -> torch.optim.AdamW:
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace) -> None:
    steps = options.tokens // options.batch_tokens
    halves = [batch_stream(document_stream(tokenizer, Draw(random.Random(options.seed + 1 + half), held_out=False), half),
                           options.batch_tokens) for half in (0, 1)]
    optimizer = optimizer_of(model, weight_decay=0.1)
    dtype = torch.bfloat16 if options.bf16 else None
    quick = held_out_chats(count=16)
    start, running, targets = time.time(), None, 0
    for step in range(options.first_step, steps):
        batch = next(halves[step >= steps // 2])
        for group in optimizer.param_groups:
            resumed = min(1, (step - options.first_step + 1) / 50)  # Adam needs some steps to know its scales again
            group["lr"] = resumed * learning_rate(step, steps, options.learning_rate)
        loss = loss_of(model, batch, dtype)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        targets += int(batch.target.sum())
        if (step + 1) % 50 == 0:
            seconds = time.time() - start
            speed = (step + 1 - options.first_step) * options.batch_tokens / seconds
            print(f"step {step + 1}/{steps} loss {running:.4f} {speed:.0f} tokens/s {targets} targets {seconds:.0f} s", flush=True)
        if (step + 1) % options.evaluate_every == 0:
            model.save_pretrained(options.out / "checkpoint")
            print(table(score(model, tokenizer, quick)), flush=True)


# --- evaluation ----------------------------------------------------------------------------------------------------------------

@torch.inference_mode()
def answer_all(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], batch_size: int = 32) -> list[str]:
    """Greedy answers, up to the end token."""
    answers: dict[int, str] = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), batch_size):
        indices = order[start:start + batch_size]
        inputs = tokenizer([prompts[index] for index in indices], return_tensors="pt", padding=True, add_special_tokens=False)
        output = model.generate(**inputs, max_new_tokens=120, do_sample=False)
        for index, ids in zip(indices, output[:, inputs.input_ids.shape[1]:]):
            answers[index] = tokenizer.decode(ids, skip_special_tokens=True)
    return [answers[index] for index in range(len(prompts))]


def score(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, cases: list[Case]) -> dict[str, float]:
    model.eval()
    answers = answer_all(model, tokenizer, [prompt for _, prompt, _ in cases])
    model.train()
    return exact_match(cases, answers)


def exact_match(cases: list[Case], answers: list[str]) -> dict[str, float]:
    """The share of right answers per task."""
    right: dict[str, list[bool]] = {}
    for (task, _, expected), given in zip(cases, answers):
        right.setdefault(task, []).append(given == expected)
    return {task: round(sum(values) / len(values), 4) for task, values in right.items()}


def table(scores: dict[str, float]) -> str:
    return " ".join(f"{task}={value:.0%}" for task, value in scores.items())


# --- the whole -----------------------------------------------------------------------------------------------------------------

def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("hf"), help="folder for the model in Hugging Face format")
    parser.add_argument("--tokens", type=int, default=20_000_000)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--evaluate-every", type=int, default=450, metavar="STEPS")
    parser.add_argument("--held-out", type=int, default=100, help="held-out chats a task in the last evaluation")
    parser.add_argument("--resume", type=Path, metavar="CHECKPOINT", help="go on from a checkpoint (optimizer state starts anew)")
    parser.add_argument("--first-step", type=int, default=0, help="the step to go on with")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    if options.resume:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.resume.parent)
        model = LlamaForCausalLM.from_pretrained(options.resume)
    else:
        tokenizer = train_tokenizer(Draw(random.Random(options.seed), held_out=False))
        model = new_model(tokenizer)
    check_format(tokenizer, Draw(random.Random(options.seed + 2), held_out=False))
    save_tokenizer(tokenizer, options.out)
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    train(model, tokenizer, options)
    model.half().float()  # what is scored is what is stored
    print(table(score(model, tokenizer, held_out_chats(options.held_out))))
    model.half().save_pretrained(options.out)
    shutil.rmtree(options.out / "checkpoint", ignore_errors=True)


if __name__ == "__main__":
    main()
