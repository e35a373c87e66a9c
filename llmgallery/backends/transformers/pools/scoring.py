"""How well documents answer a query: classifiers that see both texts, and causal models that are asked for yes or no."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from llmgallery.backends.transformers.pools.batches import Batch, Tensor, marked
from llmgallery.backends.transformers.pools.pooling import known_inputs
from llmgallery.backends.transformers.pools.pooling_files import Declared, activation_name, chosen_prompt
from llmgallery.backends.transformers.pools.texts import check_length, encode, readable
from llmgallery.core.errors import LoadError

POSITIVE = frozenset({"relevant", "positive", "yes", "true", "entailment", "1", "label_1"})
"""Names of the label of two that says that the document answers the query; else the second."""

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
QWEN3 = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""As Qwen3-Reranker's model card writes it, with its instruction for web search."""


class Scorer(Protocol):
    """Pairs to tokens, and batches of them to one number each, (batch, 1). `gives_probabilities`: from 0 to 1, not logits."""

    gives_probabilities: bool

    def pairs(self, query: str, documents: Sequence[str], *, truncate: bool) -> list[list[int]]:
        """Raises ContextExceeded; what is cut is cut from the document."""

    def __call__(self, batch: Batch) -> Tensor: ...


def make_scorer(
    model: Any, tokenizer: Any, declared: Declared, context_size: int, template: str | None, prompt_name: str | None
) -> Scorer:
    """`template`, `prompt_name`: of PoolSettings. Raises LoadError."""
    prompt = chosen_prompt(declared, prompt_name)
    if declared.classifies:
        return Classifier(model, tokenizer, declared, context_size, prompt)
    return YesOrNo(model, tokenizer, declared, context_size, template, prompt)


def _activation(declared: Declared) -> tuple[nn.Module, bool]:
    """What a single logit goes through, and whether a probability comes out. sentence-transformers' default is Sigmoid."""
    name = activation_name(declared.activation, declared.folder) if declared.activation else "Sigmoid"
    return getattr(nn, name)(), name == "Sigmoid"


class Classifier:
    """AutoModelForSequenceClassification. One label: its logit through the model's activation. Two: the probability of the
    positive one."""

    def __init__(self, model: Any, tokenizer: Any, declared: Declared, context_size: int, prompt: str = "") -> None:
        """Raises LoadError for more labels."""
        self._model = model
        self._tokenizer = tokenizer
        self._context_size = context_size
        self._prompt = prompt
        self._labels = model.config.num_labels
        if self._labels > 2:
            raise LoadError(f"reranking: a classifier of {self._labels} labels gives no score; one or two are needed")
        self._positive = _positive(model.config.id2label) if self._labels == 2 else 0
        self._activation, probable = _activation(declared)
        self._has_types = "token_type_ids" in tokenizer.model_input_names
        self.gives_probabilities = probable or self._labels == 2

    def pairs(self, query: str, documents: Sequence[str], *, truncate: bool) -> list[list[int]]:
        query = readable(self._prompt + query)
        around = self._tokenizer.num_special_tokens_to_add(pair=True)
        head = len(encode(self._tokenizer, query, special=False)) + around
        check_length(head, self._context_size, "query")
        if not documents:
            return []
        cut: dict[str, Any] = {}
        if truncate and head == self._context_size:
            documents = [""] * len(documents)  # the tokenizer refuses to cut a text to nothing
        elif truncate:
            cut = {"truncation": "only_second", "max_length": self._context_size}
        made = self._tokenizer(
            [query] * len(documents),
            list(map(readable, documents)),
            **cut,
            verbose=False,
            return_token_type_ids=True,
            padding=False,
        )
        pairs = [
            marked(tokens, types if self._has_types else None)
            for tokens, types in zip(made["input_ids"], made["token_type_ids"], strict=True)
        ]
        for index, pair in enumerate(pairs):
            check_length(len(pair), self._context_size, f"documents[{index}]")
        return pairs

    def __call__(self, batch: Batch) -> Tensor:
        given = known_inputs(self._model, batch, types=self._has_types)
        logits = self._model(**given, return_dict=True).logits.float()
        if self._labels == 2:
            return logits.softmax(dim=-1)[:, self._positive : self._positive + 1]
        scores: Tensor = self._activation(logits)
        return scores


def _positive(names: dict[int, str]) -> int:
    return next((index for index, name in names.items() if str(name).lower() in POSITIVE), 1)


class YesOrNo:
    """A causal model: how much likelier "yes" comes than "no" behind a text that holds both."""

    def __init__(
        self, model: Any, tokenizer: Any, declared: Declared, context_size: int, template: str | None, prompt: str = ""
    ) -> None:
        """`template`: the YAML's, with {query} and {document}. Raises LoadError when nothing says how the model is asked."""
        self._model = model
        self._tokenizer = tokenizer
        self._context_size = context_size
        self._prompt = prompt
        self._settings = dict(declared.template_settings)
        self._template = template or ("" if _takes_pairs(tokenizer) else _known_template(declared))
        if template and not all(name in template for name in ("{query}", "{document}")):
            raise LoadError("rerank_template: {query} and {document} must both be in it", field="options.rerank_template")
        scoring = declared.scoring
        self._yes = scoring.positive if scoring else _token(tokenizer, "yes")
        self._no = scoring.negative if scoring else _token(tokenizer, "no")
        self._activation, self.gives_probabilities = _activation(declared)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def pairs(self, query: str, documents: Sequence[str], *, truncate: bool) -> list[list[int]]:
        check_length(len(self._asked(query, "")), self._context_size, "query")
        pairs = []
        for index, document in enumerate(documents):
            tokens = self._asked(query, document)
            if truncate:
                tokens = self._cut(query, document, tokens)
            check_length(len(tokens), self._context_size, f"documents[{index}]")
            pairs.append(tokens)
        return pairs

    def _cut(self, query: str, document: str, tokens: list[int]) -> list[int]:
        """With as much of the document as fits: where texts meet, their tokens change."""
        own = encode(self._tokenizer, document, special=False) if len(tokens) > self._context_size else []
        while own and len(tokens) > self._context_size:
            own = own[: max(0, len(own) - (len(tokens) - self._context_size))]
            tokens = self._asked(query, self._tokenizer.decode(own).rstrip("\ufffd") if own else "")
        return tokens

    def _asked(self, query: str, document: str) -> list[int]:
        if self._template:
            texts = {"{query}": query, "{document}": document, "{instruction}": self._prompt or INSTRUCTION}
            text = re.sub("|".join(map(re.escape, texts)), lambda found: texts[found[0]], self._template)
        else:
            system = [{"role": "system", "content": self._prompt}] if self._prompt else []
            said = [{"role": "query", "content": query}, {"role": "document", "content": document}]
            text = self._tokenizer.apply_chat_template([*system, *said], tokenize=False, **self._settings)
        return encode(self._tokenizer, text, special=False)

    def __call__(self, batch: Batch) -> Tensor:
        given: dict[str, Any] = known_inputs(self._model, batch, types=False)
        places, which = torch.unique(batch.last, return_inverse=True)
        kept = {"logits_to_keep": places.cpu()} if self._keeps else {}  # an index for layers of any device
        logits = self._model(**given, **kept, use_cache=False, return_dict=True).logits
        which = (which if self._keeps else batch.last).to(logits.device)
        rows = logits[torch.arange(len(logits), device=logits.device), which].float()
        scores = rows[:, self._yes] if self._no is None else rows[:, self._yes] - rows[:, self._no]
        made: Tensor = self._activation(scores.unsqueeze(1))
        return made


def _takes_pairs(tokenizer: Any) -> bool:
    """Its chat template knows the roles `query` and `document`, which sentence-transformers gives to both."""
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else ""
    return all(re.search(rf"""["']{role}["']""", text) for role in ("query", "document"))


def _known_template(declared: Declared) -> str:
    if declared.model_type.startswith("qwen3"):
        return QWEN3
    raise LoadError(
        f"reranking: nothing says how {declared.architecture} is asked whether a document answers a query: set "
        "options.rerank_template to a text with {query} and {document} that is to be answered with yes or no",
        field="options.rerank_template",
    )


def _token(tokenizer: Any, word: str) -> int:
    found = tokenizer.convert_tokens_to_ids(word)
    if found is None or found == tokenizer.unk_token_id:
        raise LoadError(f"reranking: {word} is no token of this model's vocabulary", field="reranking")
    return int(found)
