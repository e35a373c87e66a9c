"""What every backend must show, or declare that it cannot: the list of checks, and the marks that tests carry.

A test carries `@check(name)`, and runs for every case whose backend declares what the check needs; its twin carries
`@lack(name)`, and runs for all others: it asserts that the backend really refuses. There are no skips.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from llmgallery.backends.base import BackendSpec

Kind = Literal["engine", "remote"]
"""engine: levels tokens and text, in the process of the test; remote: level chat, with a server of its own behind it."""

Test = TypeVar("Test", bound=Callable[..., object])

WEIGHTS = "weights"
"""That it loads files, which may be bad: what `needs_weights` declares."""


@dataclass(frozen=True)
class Check:
    """`needs`: the capability without which it is declared, not passed. `words`: what is checked, for people; `otherwise`: what
    holds of a backend that declares that it lacks it."""

    needs: str
    words: str
    otherwise: str = "no"


CHECKS: Mapping[str, Check] = {
    "load": Check("generate", "loads, and tells what it has loaded"),
    "greedy": Check("generate", "greedy answers are the library's own, token for token"),
    "streaming": Check("generate", "the pieces of an answer are the answer"),
    "stop": Check("generate", "stop strings end answers, and are not in them"),
    "max_tokens": Check("generate", "answers end at max_tokens"),
    "seed": Check("seed", "the same seed, the same answer"),
    "logprobs": Check("logprobs", "log probabilities are the library's own"),
    "prompt_logprobs": Check("prompt_logprobs", "those of the prompt, too"),
    "cancel": Check("generate", "a cancelled answer ends at once, and its place goes to who waits"),
    "concurrent": Check("generate", "answers made together are those made alone"),
    "context_overflow": Check("generate", "what is too long is refused, and a full context ends an answer"),
    "unicode": Check("generate", "characters are never split, and every text comes back"),
    "constraints": Check("constraints", "a choice and a JSON schema hold"),
    "embed": Check("embed", "embeddings are the library's own"),
    "rerank": Check("rerank", "scores are the library's own"),
    "images": Check("images", "answers to images are the library's own"),
    "lora": Check("lora", "with an adapter, answers are the library's own"),
    "suffix": Check("suffix", "prefix and suffix reach the model between its marks"),
    "tools": Check("tools", "its own calls of functions come as calls", "read from its text"),
    "bad_files": Check(WEIGHTS, "bad files give errors that name them", "needs none"),
    "unload": Check("generate", "memory is free again, and the process gone"),
}

VARYING = frozenset(CHECKS) - {"bad_files", "embed", "images", "lora", "rerank", "suffix", "tools"}
"""What must hold for all variants of a backend."""


@dataclass(frozen=True)
class Asked:
    """What a test shows."""

    name: str
    kind: Kind
    lacking: bool

    def wanted_of(self, spec: BackendSpec) -> bool:
        """It runs for this backend."""
        return self.kind == kind_of(spec) and self.lacking != has(spec, CHECKS[self.name].needs)

    @property
    def varies(self) -> bool:
        """It runs for all variants of a backend."""
        return not self.lacking and self.name in VARYING


def check(name: str, kind: Kind = "engine") -> Callable[[Test], Test]:
    """The test shows that a backend that declares the capability really has it."""
    return _marked(Asked(name, kind, lacking=False))


def lack(name: str, kind: Kind = "engine") -> Callable[[Test], Test]:
    """The test shows that a backend that does not declare the capability refuses what needs it."""
    return _marked(Asked(name, kind, lacking=True))


def _marked(asked: Asked) -> Callable[[Test], Test]:
    assert asked.name in CHECKS, asked.name

    def mark(test: Test) -> Test:
        test.asked = asked  # type: ignore[attr-defined]
        return test

    return mark


def kind_of(spec: BackendSpec) -> Kind:
    return "remote" if spec.level == "chat" else "engine"


def has(spec: BackendSpec, capability: str) -> bool:
    return spec.needs_weights if capability == WEIGHTS else capability in spec.capabilities
