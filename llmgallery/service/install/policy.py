"""What may be installed, and on whose word. Pure: settings and a plan in, a refusal that names the setting out.

A request over HTTP, whichever route it takes, installs what `auto_install` allows; where API keys are set the guard has
already seen a valid one, and all keys may do the same. What the operator says (the settings' `preload`, a command in this
process) needs no `auto_install`. The limits (owners, licences, size) hold for both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from llmgallery.catalog.install.plan import InstallPlan
from llmgallery.catalog.reference import parse_reference
from llmgallery.config.settings import Settings
from llmgallery.core.errors import GalleryError, NotAllowed

Source = Literal["gallery", "hub"]
Origin = Literal["request", "operator"]

_PICKLE = re.compile(r"(\.(pkl|pickle|pt|pth|ckpt)|(^|/)pytorch_model[^/]*\.bin)$", re.IGNORECASE)
_UNKNOWN = ("", "other", "unknown")
"""What the Hub's cards say of a licence when they say nothing."""


def check_asked(settings: Settings, name: str, source: Source, owner: str | None, origin: Origin) -> None:
    """Before anything is fetched. `owner`: of the Hub's repo. Raises NotAllowed."""
    if origin == "request":
        check_source(settings, name, source)
    if source == "hub" and owner is not None:
        _check_owner(settings, name, owner)


def check_plan(settings: Settings, plan: InstallPlan) -> None:
    """Once it is known what would be fetched, before the first byte of it. Raises NotAllowed."""
    for file in plan.files:
        _check_format(plan.name, file.name)
        if (owner := _owner(file.uri)) is not None:
            _check_owner(settings, plan.name, owner)
    _check_licence(settings, plan)
    _check_size(settings, plan)


def check_source(settings: Settings, name: str, source: Source, why: str = "") -> None:
    """Raises NotAllowed for what no request may install. `why`: what makes it an install of this source."""
    allowed = settings.installable()
    if allowed == "hub" or (allowed == "gallery" and source == "gallery"):
        return
    what = why or ("it is an entry of a gallery" if source == "gallery" else "it is of the Hub or an address, not a gallery's")
    because = "" if settings.auto_install else f", which holds while the server listens on {settings.host or 'all interfaces'}"
    message = f"requests may not install the model {name!r}: {what}, and the setting is auto_install: {allowed}{because}"
    raise _refusal(message, f"auto_install: {source}")


def _check_owner(settings: Settings, name: str, owner: str) -> None:
    if not settings.hub_owners or _matches(owner, settings.hub_owners):
        return
    raise _refusal(
        f"the model {name!r} may not be installed: it is {owner}'s, and the setting hub_owners allows "
        f"{', '.join(settings.hub_owners)}",
        f"hub_owners: [{', '.join([*settings.hub_owners, owner])}]",
    )


def _check_format(name: str, file: str) -> None:
    if _PICKLE.search(file):
        raise NotAllowed(
            f"the model {name!r} may not be installed: {file} is a pickle, which can run any code when it is loaded; take a "
            "version in safetensors or GGUF, or write a YAML of your own that names the file",
            field="model",
        )


def _check_licence(settings: Settings, plan: InstallPlan) -> None:
    if not settings.licences or _matches(plan.licence or "", settings.licences):
        return
    known = (plan.licence or "").lower() not in _UNKNOWN
    what = f"its licence is {plan.licence}" if known else "nobody says what its licence is"
    raise _refusal(
        f"the model {plan.name!r} may not be installed: {what}, and the setting licences allows {', '.join(settings.licences)}",
        f"licences: [{', '.join([*settings.licences, plan.licence or '']).removesuffix(', ')}]" if known else "licences: []",
    )


def _check_size(settings: Settings, plan: InstallPlan) -> None:
    limit = settings.install_size_limit
    if limit is None:
        return
    known = sum(file.size for file in plan.files if file.size is not None)
    if known > limit:
        what = f"its files are {_gib(known)}"
    elif plan.size is None:
        unknown = [file.name for file in plan.files if file.size is None]
        what = f"the size of {', '.join(unknown[:3])} is not known before it is here"
    else:
        return
    raise _refusal(
        f"the model {plan.name!r} may not be installed: {what}, and the setting install_size_limit is {_gib(limit)}",
        f"install_size_limit: {-(-known // 2**30)}GiB" if known > limit else "install_size_limit:",
    )


def _matches(word: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(word.lower(), pattern.lower()) for pattern in patterns)


def _owner(uri: str) -> str | None:
    """Whose repo of the Hub a file is in; None = it comes from elsewhere."""
    try:
        reference = parse_reference(uri)
    except GalleryError:
        return None
    return reference.repo.partition("/")[0] if reference is not None else None


def _refusal(message: str, setting: str) -> NotAllowed:
    return NotAllowed(f"{message}; `{setting}` would allow it", field="model", hints=(setting,))


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
