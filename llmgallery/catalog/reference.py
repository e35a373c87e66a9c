"""What a Hub reference says: a repo, perhaps a file or a quantisation in it, and a revision. Pure; knows no network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote, urlsplit

import msgspec

from llmgallery.core.errors import ConfigError, HubNotFound

FORMS = "owner/repo, owner/repo:QUANT or owner/repo/path/file.gguf, each with @revision if wanted"
PREFERRED_QUANT = "Q4_K_M"

_SCHEMES = ("hf://", "huggingface://")
_HOSTS = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})
_OWNER_OR_REPO = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
_QUANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}(?:/[A-Za-z0-9][A-Za-z0-9._+-]{0,199}){0,9}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_GIT_REF = re.compile(r"(refs/[^/]+/[^/]+)(?:/(.*))?", re.S)
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.I)
_WEIGHTS_SUFFIX = re.compile(r"\.(gguf|ggml|bin|safetensors|pt|pth|onnx|xml)$", re.I)
_NOT_A_MODEL = re.compile(r"(^|[-_./])(mmproj|imatrix)([-_.]|$)", re.I)


class Whole(msgspec.Struct, frozen=True):
    """The repo's own folder is meant. `pickles`: also weights that can run code when they are read; `code`: also program text;
    `subfolder`: the model lies there, and what belongs to its text around it."""

    pickles: bool = False
    code: bool = False
    subfolder: str = ""


class HubReference(msgspec.Struct, frozen=True):
    """Files of a Hub repo. `file` is a path inside it, `quant` part of a file's name; never both. An instance is safe to
    build URLs and cache paths from: malformed values raise ConfigError. `whole`: a folder of weights is meant, in which `file`
    then is the only weights file; None = a GGUF file where there is one, else a folder without pickles and program text.
    """

    repo: str
    file: str | None = None
    quant: str | None = None
    revision: str = "main"
    whole: Whole | None = None

    def __post_init__(self) -> None:
        _check_repo(self.repo)
        _check_revision(self.revision)
        if self.file is not None:
            check_file(self.file)
        if self.quant is not None and not _QUANT.fullmatch(self.quant):
            raise ConfigError(f"{self.quant!r} is no quantisation's name: write it like {self.repo}:{PREFERRED_QUANT}")
        if self.file is not None and self.quant is not None:
            raise ConfigError(f"{self.repo}: name a file or a quantisation, not both")

    @property
    def pinned(self) -> bool:
        """The revision is a full commit: what it names can never change."""
        return bool(_COMMIT.fullmatch(self.revision))

    def __str__(self) -> str:
        what = f"/{self.file}" if self.file else f":{self.quant}" if self.quant else ""
        return self.repo + what + ("" if self.revision == "main" else f"@{self.revision}")


def check_file(path: str) -> None:
    """Raise ConfigError unless `path` is a plain relative path inside a repo."""
    parts = path.split("/")
    odd = any(part in ("", ".", "..") or len(part.encode(errors="replace")) > 255 for part in parts)
    if odd or "\\" in path or not path.isprintable():
        raise ConfigError(f"{path!r} is no path inside a Hub repo: it must be relative, without empty parts, . or ..")


def parse_reference(text: str) -> HubReference | None:
    """The Hub reference that `text` is, or None when it is none (a local path, another scheme, a bare name).

    Forms: FORMS, with or without hf:// or huggingface://; LocalAI's huggingface://owner/repo@branch/path; the addresses of
    a repo or file on huggingface.co, also as Ollama takes them (hf.co/owner/repo:QUANT). `sub/dir/file.gguf` reads as a
    reference too: look into the models folder first.
    Raises ConfigError for what is meant as one but malformed.
    """
    text = text.strip()
    scheme = next((scheme for scheme in _SCHEMES if text.lower().startswith(scheme)), "")
    if scheme:
        return _parse_plain(text[len(scheme) :], text)
    if "://" in text:
        return _parse_url(text)
    host, _, body = text.partition("/")
    if host.lower() in _HOSTS:
        is_page = body.split("/")[2:3] in (["tree"], ["resolve"], ["blob"], ["raw"])
        return _parse_url(f"https://{text}") if is_page else _parse_plain(body, text)
    if _looks_local(text):
        return None
    return _parse_plain(text, text)


def _looks_local(text: str) -> bool:
    first, _, rest = text.partition("/")
    if not first or not rest or first.startswith((".", "~")) or "\\" in text or ":" in first:
        return True
    return "/" not in rest and "@" not in rest and bool(_WEIGHTS_SUFFIX.search(rest))


def _parse_plain(body: str, text: str) -> HubReference:
    owner, _, rest = body.partition("/")
    name, slash, path = rest.partition("/")
    if not owner or not name:
        raise ConfigError(f"{text!r} is no Hub reference: write {FORMS}")
    name, at, revision = name.partition("@")
    file: str | None = None
    if at:
        revision, file = _branch_and_path(f"{revision}{slash}{path}")
    elif slash:
        file, at, revision = path.rpartition("@") if "@" in path else (path, "", "")
    if at and not revision:
        raise ConfigError(f"{text!r}: nothing follows the @; write a branch, tag or commit there, or leave it out")
    name, colon, quant = name.partition(":")
    if colon and not quant:
        raise ConfigError(f"{text!r}: nothing follows the colon; write a quantisation such as {PREFERRED_QUANT}, or leave it out")
    if slash and not at and not file:
        raise ConfigError(f"{text!r} ends with a slash: write {FORMS}")
    return HubReference(f"{owner}/{name}", file or None, quant or None, revision or "main")


def _branch_and_path(text: str) -> tuple[str, str | None]:
    """What follows `owner/repo@`: a branch, then perhaps a path (LocalAI's form). Only refs/… branches hold slashes here."""
    if match := _GIT_REF.fullmatch(text):
        return match[1], match[2]
    branch, _, path = text.partition("/")
    return branch, path or None


def _parse_url(text: str) -> HubReference | None:
    try:
        url = urlsplit(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no address: {error}") from error
    if url.scheme.lower() not in ("http", "https") or (url.hostname or "") not in _HOSTS:
        return None
    parts = [unquote(part) for part in url.path.strip("/").split("/")]
    if parts[0] in ("datasets", "spaces", "models") or len(parts) < 2:
        raise ConfigError(f"{text!r} is no address of a model repo on the Hub: https://huggingface.co/owner/repo")
    repo, rest = f"{parts[0]}/{parts[1]}", parts[2:]
    if not rest:
        return _parse_plain(repo, text)
    if rest[0] == "tree" and len(rest) == 2:
        return HubReference(repo, revision=rest[1])
    if rest[0] not in ("resolve", "blob", "raw") or len(rest) < 3:
        raise ConfigError(f"{text!r} names no file: https://huggingface.co/{repo}/resolve/main/FILE")
    revision, file = _branch_and_path("/".join(rest[1:]))
    return HubReference(repo, file, revision=revision)


def _check_repo(repo: str) -> None:
    parts = repo.split("/")
    good = len(parts) == 2 and all(_OWNER_OR_REPO.fullmatch(part) for part in parts) and len(repo) <= 96
    if not good or ".." in repo or "--" in repo or repo.endswith(".git"):
        raise ConfigError(f"{repo!r} is no Hub repo: write owner/repo (letters, digits, '-', '_', '.'; no '--' or '..')")


def _check_revision(revision: str) -> None:
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ConfigError(f"{revision!r} is no revision: write a branch, a tag or a full commit")


def split_parts(file: str) -> list[str]:
    """All parts of a split GGUF (`…-00001-of-00003.gguf`, any part may be named), first part first; else the file alone."""
    match = _SPLIT.search(file)
    count = int(match[2]) if match else 1
    if match is None or not 0 < int(match[1]) <= count:
        return [file]
    return [f"{file[: match.start()]}-{number:05d}-of-{count:05d}{file[-5:]}" for number in range(1, count + 1)]


def choose_file(files: Sequence[str], quant: str | None) -> str:
    """The GGUF that `quant` means among a repo's files; None means the only one, else PREFERRED_QUANT.

    Projectors (mmproj) and importance matrices do not count; of a split model the first part does. Raises HubNotFound with
    the choices as hints.
    """
    models = [file for file in files if file.lower().endswith(".gguf") and not _NOT_A_MODEL.search(file)]
    choices = [file for file in models if split_parts(file)[0] == file]
    if not choices:
        raise HubNotFound("this repo has no GGUF file; name a file of it: owner/repo/FILE", hints=tuple(sorted(files)[:20]))
    if quant is None and len(choices) == 1:
        return choices[0]
    if found := _matching(choices, quant or PREFERRED_QUANT):
        return found
    what = f"no GGUF file of this repo is {quant}" if quant else "this repo has several GGUF files"
    raise HubNotFound(f"{what}; name one as owner/repo:QUANT or owner/repo/FILE", hints=tuple(sorted(choices)))


def choose_surely(files: Sequence[str], quant: str | None) -> str | None:
    """As choose_file, when `files` are only some of the repo's: None unless one fits by a whole part of its name."""
    models = [file for file in files if file.lower().endswith(".gguf") and not _NOT_A_MODEL.search(file)]
    return _matching(models, quant or PREFERRED_QUANT, exact=True)


def _matching(files: Sequence[str], quant: str, exact: bool = False) -> str | None:
    """Whole name parts first (`-Q4_K_M.`), then beginnings (`q8` for Q8_0); the shortest name of several."""
    word = re.escape(quant)
    patterns = [rf"(?:^|[-_./]){word}(?=[-./]|$)", rf"(?:^|[-_./]){word}(?=_)"]
    for pattern in patterns[: 1 if exact else 2]:
        if found := [file for file in files if re.search(pattern, file, re.I)]:
            return min(found, key=lambda file: (len(file), file))
    return None
