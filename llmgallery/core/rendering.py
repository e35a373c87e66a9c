"""What a request becomes before the model sees it, for who wants to look."""

from __future__ import annotations

import msgspec


class Rendering(msgspec.Struct, frozen=True, omit_defaults=True):
    """The very prompt of a request. `tokens`: its token ids; None = nobody here knows the vocabulary. `stops`: all strings that
    end its answer. `origin`: where the format is from. `repairs`: what was done to the conversation so that the template takes
    it. `warnings`: what of the request is ignored or refused, and what may be another where the weights are."""

    prompt: str
    tokens: tuple[int, ...] | None = None
    stops: tuple[str, ...] = ()
    origin: str = ""
    repairs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def warned(self, *warnings: str) -> Rendering:
        """The same, with these warnings before its own."""
        return msgspec.structs.replace(self, warnings=(*warnings, *self.warnings))
