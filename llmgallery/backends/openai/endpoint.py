"""Where a model file's requests go, and with which headers. Reads the environment and the key's file, and sends nothing."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_plus, urlsplit, urlunsplit

import msgspec

from llmgallery import __version__
from llmgallery.backends.openai.spec import SECRET_HEADERS, OpenAIOptions, url_fault
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import ConfigError

OPENAI = "https://api.openai.com/v1"
KEY = "OPENAI_API_KEY"
SHORTEST_SECRET = 6
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_KEY_NAME = re.compile(r"key|token|secret|sig|passw|auth|cookie", re.IGNORECASE)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]+")
_OF_THE_CONNECTION = frozenset({"content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"})
_UNFIT = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True)
class Endpoint:
    """`url`: up to /v1, perhaps with a query. `model`: as the endpoint calls it. `secrets`: texts that no message may hold."""

    url: str
    model: str
    headers: Mapping[str, str]
    secrets: tuple[str, ...]
    options: OpenAIOptions

    def address(self, path: str) -> str:
        """Of a route such as chat/completions."""
        parts = urlsplit(self.url)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{path}"))

    def shown(self, path: str = "") -> str:
        """The same for messages: without a user's name, password or query."""
        parts = urlsplit(self.address(path) if path else self.url)
        return self.without_secrets(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")))

    @property
    def is_openai(self) -> bool:
        return urlsplit(self.url).hostname == "api.openai.com"

    def without_secrets(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, "[secret]")
        return text


def endpoint(config: ModelConfig, environment: Mapping[str, str]) -> Endpoint:
    """Raises ConfigError that names the key at fault, and never holds a secret."""
    options = msgspec.convert(config.options or {}, OpenAIOptions)
    usual = environment.get("OPENAI_BASE_URL") or OPENAI
    url = _filled(options.base_url, "base_url", environment) if options.base_url else usual
    if fault := url_fault(url):
        where = "options.base_url" if options.base_url else "the environment variable OPENAI_BASE_URL"
        raise ConfigError(f"{where}: {fault}", field="options.base_url")
    model = options.upstream_model or config.weights or config.name
    if not model:
        message = "nobody says what the endpoint calls this model: set options.upstream_model"
        raise ConfigError(message, field="options.upstream_model")
    key = _key(options, environment, own=url.rstrip("/") in (OPENAI, usual.rstrip("/")))
    given = {name: _filled(value, f"headers.{name}", environment) for name, value in options.headers.items()}
    headers = {"user-agent": f"llmgallery/{__version__}", "accept-encoding": "gzip"}
    for name, value in (("organization", options.organization), ("project", options.project)):
        if value:
            headers[f"openai-{name}"] = _fit(_filled(value, name, environment), f"options.{name}")
    if key:
        headers["authorization"] = f"Bearer {key}"
    headers |= {_named(name): _fit(value, f"options.headers.{name}") for name, value in given.items()}
    hidden = [key, *_in_headers(given, options), *_in_address(url), *_in_variables(options, environment)]
    secrets = {secret for secret in hidden if len(secret) >= SHORTEST_SECRET}
    # The longest first: one may be a part of another.
    return Endpoint(url.rstrip("/"), model, headers, tuple(sorted(secrets, key=len, reverse=True)), options)


def _named(header: str) -> str:
    """With small letters. Raises ConfigError for what is no header, or not the file's to say."""
    name = header.lower()
    if not _HEADER.fullmatch(name):
        raise ConfigError(f"options.headers: {header!r} is no name of a header", field="options.headers")
    if name in _OF_THE_CONNECTION:
        message = f"options.headers.{header}: the connection says it by itself, and two answers to that would not agree"
        raise ConfigError(message, field=f"options.headers.{header}")
    return name


def _in_headers(given: Mapping[str, str], options: OpenAIOptions) -> Iterator[str]:
    """What came out of the environment, and what is a secret by its header's name. Of `Bearer KEY` the key, too."""
    for name, value in given.items():
        if value != options.headers[name] or name.lower() in SECRET_HEADERS or _KEY_NAME.search(name):
            yield value
            yield value.rpartition(" ")[2]


def _in_address(url: str) -> Iterator[str]:
    """A password, and what a query says that is named like a key: as they are written, and as they are meant."""
    parts = urlsplit(url)
    for pair in parts.query.split("&"):
        name, _, value = pair.partition("=")
        if _KEY_NAME.search(name):
            yield from (value, unquote_plus(value))
    if parts.password:
        yield from (parts.password, unquote(parts.password))
        login = f"{unquote(parts.username or '')}:{unquote(parts.password)}"
        yield base64.b64encode(login.encode()).decode()


def _in_variables(options: OpenAIOptions, environment: Mapping[str, str]) -> Iterator[str]:
    """Values of variables that are named like a secret, wherever the file puts them, such as in the address's path."""
    for text in (options.base_url, options.api_key, options.organization, options.project, *options.headers.values()):
        for name in _VARIABLE.findall(text or ""):
            if _KEY_NAME.search(name) or text is options.api_key:
                yield environment.get(name, "").strip()


def _key(options: OpenAIOptions, environment: Mapping[str, str], *, own: bool) -> str:
    """ "" = requests go without one. `own`: the endpoint is the one that OPENAI_API_KEY is meant for."""
    if options.api_key:
        return _fit(_filled(options.api_key, "api_key", environment), "options.api_key")
    if options.api_key_file:
        return _fit(_read(options.api_key_file), "options.api_key_file")
    name = options.api_key_env or (KEY if own else "")
    if not name:
        return ""
    if key := environment.get(name, "").strip():
        return _fit(key, name)
    if options.api_key_env or not any(header.lower() in ("authorization", "api-key") for header in options.headers):
        raise _no_key(name, options)
    return ""


def _no_key(name: str, options: OpenAIOptions) -> ConfigError:
    advice = "set it where the server is started"
    if not options.api_key_env:
        advice += ", or name another variable in options.api_key_env, or a file in options.api_key_file"
    return ConfigError(
        f"no key for the endpoint: the environment variable {name} is not set; {advice}", field="options.api_key_env"
    )


def _read(file: str) -> str:
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, RuntimeError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else type(exc).__name__
        raise ConfigError(f"options.api_key_file: {file} cannot be read: {why}", field="options.api_key_file") from exc
    if not text:
        raise ConfigError(f"options.api_key_file: {file} is empty", field="options.api_key_file")
    return text


def _filled(text: str, key: str, environment: Mapping[str, str]) -> str:
    """With the values of the environment's variables that it names."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in environment:
            raise ConfigError(f"options.{key}: the environment variable {found[1]} is not set", field=f"options.{key}")
        return environment[found[1]].strip()

    return _VARIABLE.sub(value, text)


def _fit(value: str, where: str) -> str:
    if _UNFIT.search(value):
        raise ConfigError(f"{where}: a header holds one line of ASCII characters only", field=where)
    return value
