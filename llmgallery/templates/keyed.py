"""GatoGPT's templates: `{{ Key }}`, with one space on each side, becomes the key's text; all else stays as it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from llmgallery.core.errors import TemplateError

MAX_CHARS = 8_000_000

_Piece = tuple[str, str]
"""A text, and the key that it stands for; "" = the template's own, in which the keys to come are looked for."""


def fill(template: str, values: Mapping[str, str], said: Collection[str] = (), *, limit: int = MAX_CHARS) -> str:
    """The template with the texts of `values` in place of their keys.

    The keys are replaced one after the other, in this order, so that a text may hold keys that come later, as GatoGPT's
    configurations may; not so the texts of the keys in `said`, which are not the configuration's but a client's.
    Raises TemplateError before the text is longer than `limit`.
    """
    return "".join(text for text, _ in _pieces(template, values, said, limit))


def fill_to(last: str, template: str, values: Mapping[str, str], said: Collection[str], *, limit: int = MAX_CHARS) -> str | None:
    """As `fill`, up to the end of the last text of the key `last`, which is one of `said`; None = the template has none."""
    pieces = _pieces(template, values, said, limit)
    end = max((at for at, (_, key) in enumerate(pieces) if key == last), default=None)
    return None if end is None else "".join(text for text, _ in pieces[: end + 1])


def _pieces(template: str, values: Mapping[str, str], said: Collection[str], limit: int) -> list[_Piece]:
    pieces = [(template, "")]
    length = len(template)
    for key, value in values.items():
        mark = "{{ " + key + " }}"
        places = sum(text.count(mark) for text, of in pieces if not of)
        length += places * (len(value) - len(mark))
        if length > limit:
            raise TemplateError(f"the template makes a text that is too long (limit: {limit} characters)")
        if places:
            pieces = list(_replaced(pieces, mark, value, key if key in said else ""))
    return pieces


def _replaced(pieces: list[_Piece], mark: str, value: str, of: str) -> Iterator[_Piece]:
    for text, key in pieces:
        if key:
            yield text, key
        elif not of:
            yield text.replace(mark, value), ""
        else:
            first, *others = text.split(mark)
            yield first, ""
            for other in others:
                yield value, of
                yield other, ""
