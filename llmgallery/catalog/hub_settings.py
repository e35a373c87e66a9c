"""Where the Hub is, where its cache lies, and who we are to it: Hugging Face's own environment variables, read when asked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from llmgallery.core.errors import ConfigError, HubGated

DEFAULT_ENDPOINT = "https://huggingface.co"
_TRUE = frozenset({"1", "on", "yes", "true"})


class HubSettings(msgspec.Struct, frozen=True):
    """`cache_dir` is the folder that holds models--owner--repo. Seconds: `stall` without a byte ends a connection,
    `connect` without an answer a request. `attempts` count per request, and in a download per stretch without progress.
    `backoff` is the first pause between them; each next one is twice as long.
    """

    endpoint: str
    cache_dir: Path
    token: str | None = None
    token_path: Path | None = None
    offline: bool = False
    stall: float = 30.0
    connect: float = 10.0
    attempts: int = 5
    backoff: float = 1.0

    @staticmethod
    def from_env(environ: Mapping[str, str] | None = None) -> HubSettings:
        """HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT,
        HF_HUB_ETAG_TIMEOUT, HF_HUB_DISABLE_IMPLICIT_TOKEN, with huggingface_hub's meaning and precedence, but as they are
        now, not as they were when it was imported. Raises ConfigError.
        """
        env = os.environ if environ is None else environ
        home = _folder(env.get("HF_HOME") or str(Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"))
        cache = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE")
        implicit = not _true(env.get("HF_HUB_DISABLE_IMPLICIT_TOKEN"))
        token = env.get("HF_TOKEN") or env.get("HUGGING_FACE_HUB_TOKEN") or ""
        return HubSettings(
            endpoint=_endpoint(env.get("HF_ENDPOINT") or DEFAULT_ENDPOINT),
            cache_dir=_folder(cache) if cache else home / "hub",
            token=(token.strip() or None) if implicit else None,
            token_path=_folder(env.get("HF_TOKEN_PATH") or str(home / "token")) if implicit else None,
            offline=_true(env.get("HF_HUB_OFFLINE") or env.get("TRANSFORMERS_OFFLINE")),
            stall=_seconds(env, "HF_HUB_DOWNLOAD_TIMEOUT", 30.0),
            connect=_seconds(env, "HF_HUB_ETAG_TIMEOUT", 10.0),
        )

    def current_token(self) -> str | None:
        """The token to send now. Blocks: it may read a file, or renew a browser login. `hf auth login` later counts too."""
        if self.token or self.token_path is None:
            return self.token
        from huggingface_hub import constants, get_token

        if self.token_path == Path(constants.HF_TOKEN_PATH):
            return get_token()
        try:
            return self.token_path.read_text().strip() or None
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise HubGated(
                f"the token in {self.token_path} cannot be read ({exc.strerror}): set HF_TOKEN, or mend the file"
            ) from exc


def _true(value: str | None) -> bool:
    return (value or "").lower() in _TRUE


def _folder(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()


def _endpoint(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ConfigError(f"HF_ENDPOINT is {text!r}: it must be a URL such as {DEFAULT_ENDPOINT}", field="HF_ENDPOINT")
    return text.rstrip("/")


def _seconds(env: Mapping[str, str], name: str, default: float) -> float:
    """Whole ones: huggingface_hub, which finds our token, cannot even be imported where a fraction is written."""
    try:
        seconds = int(env.get(name) or default)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 1_000_000:
        raise ConfigError(f"{name} is {env[name]!r}: it must be a whole number of seconds above 0", field=name)
    return float(seconds)
