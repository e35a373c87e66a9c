"""What a request asks beyond plain text, and what a model's `on_unsupported` says to do when it cannot be had."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from llmgallery.backends.base import BackendSpec
from llmgallery.config.model import Demand, Function, ModelConfig, OnUnsupported
from llmgallery.core.errors import UnsupportedField

TOOLS = "tools"
FORCED = "tool_choice"
"""That the answer makes a call. Nothing in this version can promise it."""
_CANNOT_FORCE = "this version cannot force a model to call a function"

FEATURES = frozenset({"n", "logprobs", "best_of", "suffix", TOOLS})
"""What this version can do with one backend or another. The others come with their issues."""

OF_BACKENDS = frozenset({"logprobs", "suffix"})
"""Those that a backend must be able to do, and says so in its capabilities; a suffix needs tokens of the model besides."""


class Wish(msgspec.Struct, frozen=True):
    """A request's `field` asks for `feature`. A demand changes what the answer means; a hint does not."""

    feature: str
    field: str
    hint: bool = False


def features_of(spec: BackendSpec | None, config: ModelConfig) -> frozenset[str]:
    """What a model of this backend can do. None = nobody knows the backend before the weights are here: all may be asked for."""
    features = FEATURES if reads_calls(config) else FEATURES - {TOOLS}
    if spec is None:
        return features
    lacking = OF_BACKENDS - spec.capabilities
    return features - lacking - ({"best_of"} if "logprobs" in lacking else set())


def reads_calls(config: ModelConfig) -> bool:
    """The model file says how the model is told of functions, or how it calls them."""
    return bool(config.template.function) or config.function != Function()


def settle(wishes: Sequence[Wish], policy: OnUnsupported, model: str, features: Collection[str] = FEATURES) -> tuple[str, ...]:
    """The warnings that the client is owed. Raises UnsupportedField for the first wish that must not be passed over."""
    warnings = []
    for wish in wishes:
        if wish.feature in features or (wish.feature == FORCED and TOOLS not in features):
            continue  # without tools there is no choice among them, which is told already
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
    return "it" if wish.feature == wish.field else wish.feature


def _refusal(wish: Wish, model: str) -> str:
    key = "hints" if wish.hint else "demands"
    if wish.feature == FORCED:
        setting = f"`on_unsupported: {{{key}: warn}}` in the YAML of model {model}"
        return f'{wish.field}: {_CANNOT_FORCE}; send "auto", or set {setting} to have the functions offered all the same'
    if wish.feature == wish.field:
        refused = f"{wish.field} is not supported by model {model}"
    else:
        refused = f"{wish.field}: model {model} does not support {wish.feature}"
    return f"{refused}; leave it out, or set `on_unsupported: {{{key}: warn}}` in the model's YAML to have it ignored"
