"""What a template's function is: its name, the types of its parameters, and the code behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from llmgallery.templates.gotmpl.budget import current
from llmgallery.templates.gotmpl.values import ANY_MAP, ArgumentError, type_name

ANY = "interface {}"
REFLECT = "reflect.Value"
CHARS_A_SLOW_STEP = 2
_SHORT = {"any": ANY, "value": REFLECT, "map": ANY_MAP, "time": "time.Time"}
_NILLABLE = {ANY, REFLECT, ANY_MAP}
Code = TypeVar("Code", bound=Callable[..., Any])


@dataclass(frozen=True)
class Function:
    """`params` are Go's names of the parameters' types; the last one may come any number of times when `variadic`.

    Called with values as values.py describes them, within `budget.guarding`: it charges one step and the length of its texts,
    with `slow` more for those, with `deep` the size of whole nested values. Raises ArgumentError (number, types), GoError, and
    TemplateError (budget).
    """

    name: str
    params: tuple[str, ...]
    variadic: bool
    code: Callable[..., Any]
    deep: bool = False
    slow: bool = False

    def parameter(self, index: int) -> str | None:
        """The type of the argument at `index`, None when there is no such parameter."""
        if index < len(self.params):
            return self.params[index]
        return self.params[-1] if self.variadic else None

    def check_count(self, count: int) -> None:
        fixed = len(self.params) - self.variadic
        if self.variadic and count < fixed:
            raise ArgumentError(f"wrong number of args for {self.name}: want at least {fixed} got {count}")
        if not self.variadic and count != fixed:
            raise ArgumentError(f"wrong number of args for {self.name}: want {fixed} got {count}")

    def __call__(self, *args: Any) -> Any:
        self.check_count(len(args))
        budget = current()
        budget.step()
        for index, value in enumerate(args):
            check_type(value, self.parameter(index) or ANY)
            if isinstance(value, str):
                budget.text(len(value))
                if self.slow:
                    budget.step(len(value) // CHARS_A_SLOW_STEP)
            elif self.deep:
                budget.weigh(value)
        return self.code(*args)


def check_type(value: Any, wanted: str) -> None:
    """Raises ArgumentError unless Go would pass `value` for a parameter of the type `wanted`."""
    if wanted in (ANY, REFLECT):
        return
    if value is None:
        if wanted not in _NILLABLE:
            raise ArgumentError(f"invalid value; expected {wanted}")
    elif (found := type_name(value)) != wanted:
        raise ArgumentError(f"wrong type for value; expected {wanted}; got {found}")


class Library(dict[str, Function]):
    """Functions by name."""

    def add(
        self, name: str, params: str = "", *, deep: bool = False, slow: bool = False, also: str = ""
    ) -> Callable[[Code], Code]:
        """Decorator. `params`: types with spaces between, as `int string any...`; `slow`: goes through texts character by
        character; `also`: further names.
        """

        def register(code: Code) -> Code:
            types = tuple(_SHORT.get(word, word) for word in params.replace("...", "").split())
            for each in (name, *also.split()):
                self[each] = Function(each, types, params.endswith("..."), code, deep, slow)
            return code

        return register
