"""What a request asks beyond plain text, and what a model's `on_unsupported` says to do when it cannot be had."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from llmgallery.backends.base import BackendSpec
from llmgallery.config.model import Demand, Function, ModelConfig, OnUnsupported
from llmgallery.core.errors import InvalidField, UnsupportedField

TOOLS = "tools"
GENERATION_CONFIG = "generation_config"
"""An object, or its JSON, with parameters of the backend's own, as `transformers serve` takes them."""
FORCED = "tool_choice"
"""That the answer makes a call. Nothing in this version can promise it."""
_CANNOT_FORCE = "this version cannot force a model to call a function"

IMAGES = "images"
PROMPT_LOGPROBS = "prompt_logprobs"
ELSEWHERE = "elsewhere"
"""What may mean something to a model that is elsewhere, and here to nobody."""

FEATURES = frozenset({"n", "logprobs", "best_of", "suffix", TOOLS, IMAGES, PROMPT_LOGPROBS})
"""What this version can do with one backend or another. The others come with their issues."""

OF_BACKENDS = frozenset({"logprobs", "suffix", IMAGES, PROMPT_LOGPROBS})
"""Those that a backend must be able to do, and says so in its capabilities; a suffix needs tokens of the model besides, and
images a model that sees."""

_WORDS = {PROMPT_LOGPROBS: "log probabilities of the prompt"}


class Wish(msgspec.Struct, frozen=True):
    """A request's `field` asks for `feature`. A demand changes what the answer means; a hint does not. `fault`: what is wrong
    with the field for a model that lacks the feature; then no model file has it passed over."""

    feature: str
    field: str
    hint: bool = False
    fault: str = ""


class _Everything(frozenset[str]):
    """All features that there are or will be."""

    def __contains__(self, feature: object) -> bool:
        return True


EVERYTHING: frozenset[str] = _Everything()
"""What a model that is elsewhere can do, as far as we know: its endpoint decides."""


def is_elsewhere(spec: BackendSpec | None) -> bool:
    """Its models are other servers', which take whole conversations."""
    return spec is not None and spec.level == "chat"


def features_of(spec: BackendSpec | None, config: ModelConfig) -> frozenset[str]:
    """What a model of this backend can do. None = nobody knows the backend before the weights are here: all may be asked for."""
    features = FEATURES if reads_calls(config) else FEATURES - {TOOLS}
    if spec is None:
        return features
    if is_elsewhere(spec):
        return EVERYTHING
    own = spec.parameters | ({GENERATION_CONFIG} if spec.parameters else set())
    lacking = OF_BACKENDS - spec.capabilities
    return (features - lacking - ({"best_of"} if "logprobs" in lacking else set())) | own


def reads_calls(config: ModelConfig) -> bool:
    """The model file says how the model is told of functions, or how it calls them."""
    return bool(config.template.function) or config.function != Function()


def settle(wishes: Sequence[Wish], policy: OnUnsupported, model: str, features: Collection[str] = FEATURES) -> tuple[str, ...]:
    """The warnings that the client is owed. Raises UnsupportedField for the first wish that must not be passed over."""
    warnings = []
    for wish in wishes:
        if wish.feature in features or (wish.feature == FORCED and TOOLS not in features):
            continue  # without tools there is no choice among them, which is told already
        if wish.fault:
            raise InvalidField(wish.fault, field=wish.field)
        rule: Demand = policy.hints if wish.hint else policy.demands
        if rule == "error":
            raise UnsupportedField(_refusal(wish, model), field=wish.field)
        if rule == "warn":
            warnings.append(_warning(wish, model))
    return tuple(warnings)


def _warning(wish: Wish, model: str) -> str:
    if wish.feature == FORCED:
        return f"{wish.field}: {_CANNOT_FORCE}: the functions are offered, and an answer without a call is possible"
    return f"{wish.field} was ignored: model {model} does not support {_it(wish)}"


def _it(wish: Wish) -> str:
    return "it" if wish.feature == wish.field else _WORDS.get(wish.feature, wish.feature)


def _refusal(wish: Wish, model: str) -> str:
    key = "hints" if wish.hint else "demands"
    if wish.feature == FORCED:
        setting = f"`on_unsupported: {{{key}: warn}}` in the YAML of model {model}"
        return f'{wish.field}: {_CANNOT_FORCE}; send "auto", or set {setting} to have the functions offered all the same'
    if wish.feature == wish.field:
        refused = f"{wish.field} is not supported by model {model}"
    else:
        refused = f"{wish.field}: model {model} does not support {_it(wish)}"
    return f"{refused}; leave it out, or set `on_unsupported: {{{key}: warn}}` in the model's YAML to have it ignored"
