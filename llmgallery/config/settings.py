"""The server's settings: a YAML file, LLMGALLERY_* variables and flags, read as strictly as a model file."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmgallery.config.backend_settings import BackendNames, BackendSetting, Places, parted, settled
from llmgallery.config.nodes import PLAIN, Unreadable, compose, kind, place
from llmgallery.config.problems import Problem, as_error
from llmgallery.config.readers import FAILED, LeafReader, ListReader, MapReader, Reader, Reading, struct_reader
from llmgallery.config.suggest import adviser, levels_of, nearest
from llmgallery.config.units import Bytes, Seconds

PREFIX = "LLMGALLERY_"
OTHER_NAMES = {"api_key": "api_keys", "apikey": "api_keys"}
OTHER_VARIABLES = ("LLMGALLERY_CONFIG", "LLMGALLERY_DATA_DIR", "LLMGALLERY_MODEL", "LLMGALLERY_URL")
"""Variables that are read elsewhere."""

FLAGS = {
    "api_keys": "--api-key",
    "backends": "--backend-python",
    "allowed_hosts": "--allowed-host",
    "allowed_origins": "--allowed-origin",
    "galleries": "--gallery",
    "hub_owners": "--hub-owner",
    "licences": "--licence",
    "media_hosts": "--media-host",
    "preload": "--preload",
}
"""Flags that may be repeated; all others are the setting's name."""

OWN_GALLERY = "llmgallery"
"""The name of the gallery that ships with us."""

_TEXT = "tag:yaml.org,2002:str"

AutoInstall = Literal["off", "gallery", "hub"]


class GallerySetting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A configured gallery: a name for messages and `name@entry`, and where its index lies."""

    name: str
    url: str


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Server settings, checked. Durations in seconds (math.inf = never), sizes in bytes.

    `models_dir` None = paths.default_models_dir(). `api_keys` holds the keys of `api_key_file` too; empty = no key needed.
    `backends`: by the backend's own name.
    """

    host: Annotated[str, Meta(description="address to listen on; 0.0.0.0 or :: = every interface")] = "127.0.0.1"
    port: Annotated[Annotated[int, Meta(ge=0, le=65535)], Meta(description="port to listen on; 0 = a free one")] = 8080
    models_dir: Annotated[Path | None, Meta(description="the folder of model files; else ./models, or the data folder's")] = None
    api_keys: Annotated[list[str], Meta(description="keys that clients must send; none = no key is asked for")] = []
    api_key_file: Annotated[Path | None, Meta(description="a file with more keys, one a line")] = None
    default_model: Annotated[str | None, Meta(description="the model of requests that name none")] = None
    unknown_model: Annotated[
        Literal["error", "default"], Meta(description="what a name that no model has gets: a 404, or the default model")
    ] = "error"
    stream_hold: Annotated[
        Seconds, Meta(description="how long a stream's headers wait for a model that is being fetched or loaded")
    ] = Seconds(2.0)
    load_wait: Annotated[Seconds, Meta(description="how long a request that is not streamed waits for its model to load")] = (
        Seconds(540.0)
    )
    max_queue_wait: Annotated[
        Seconds, Meta(description="how long a request waits for memory to be free; then 503 with Retry-After")
    ] = Seconds(300.0)
    keep_alive: Annotated[
        Seconds, Meta(description="unload a model after this idle time, where its file does not say; -1 = never")
    ] = Seconds(900.0)
    memory_budget: Annotated[
        Bytes | None, Meta(description="memory that all loaded models may take together; else what is free")
    ] = None
    drain: Annotated[Seconds, Meta(description="how long running answers may go on after SIGTERM")] = Seconds(30.0)
    allowed_hosts: Annotated[
        list[str], Meta(description="Host headers that are answered when no key is set, beside loopback names and `host`")
    ] = []
    allowed_origins: Annotated[
        list[str], Meta(description="web pages that may call the server, such as https://chat.example.org; * = any")
    ] = []
    watch: Annotated[
        Literal["auto", "poll", "off"], Meta(description="how changes of the models folder are seen; poll for network mounts")
    ] = "auto"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Meta(description="what is logged")] = "info"
    hub_token: Annotated[str | None, Meta(description="Hugging Face token; else HF_TOKEN, or the one of `hf auth login`")] = None
    auto_install: Annotated[
        AutoInstall | None,
        Meta(description="what a request may install: off, gallery or hub; else hub on loopback, and gallery elsewhere"),
    ] = None
    galleries: Annotated[
        list[str | GallerySetting],
        Meta(description="indexes of models, beside our own: name=URL, folder, github:owner/repo/path@ref or hf://owner/repo"),
    ] = []
    hub_owners: Annotated[
        list[str], Meta(description="whose models of the Hub may be installed, such as Qwen or bartow*; none = anybody's")
    ] = []
    install_size_limit: Annotated[Bytes | None, Meta(description="the largest install: all files of a model together")] = None
    licences: Annotated[
        list[str], Meta(description="licences that installs may have, such as apache-2.0 or llama*; none = any")
    ] = []
    preload: Annotated[list[str], Meta(description="models that are installed at the start, in the background")] = []
    media_hosts: Annotated[
        list[str], Meta(description="hosts inside this network that images of requests may be fetched from; else only outside")
    ] = []
    backends: Annotated[
        dict[str, BackendSetting],
        Meta(description="interpreters of backends' workers: NAME=PYTHON, in a file NAME: {python: PATH}; else as installed"),
    ] = {}

    def hosts(self) -> frozenset[str]:
        """Host names, without ports and in lower case, that a request without a key may be sent to."""
        own = set() if self.host in ("0.0.0.0", "::", "") else {self.host.strip("[]").lower()}
        return frozenset({"localhost", "127.0.0.1", "::1"} | own | {name.strip("[]").lower() for name in self.allowed_hosts})

    def installable(self) -> AutoInstall:
        """`auto_install`, or what holds when nobody set it."""
        return self.auto_install or ("hub" if is_loopback(self.host) else "gallery")

    def gallery_settings(self) -> tuple[GallerySetting, ...]:
        """`galleries` in one form."""
        return tuple(_gallery(item) if isinstance(item, str) else item for item in self.galleries)


class SettingRow(NamedTuple):
    """One setting under all its names, for the docs."""

    name: str
    flag: str
    variable: str
    default: str
    description: str


def load_settings(
    flags: Mapping[str, Any] | None = None,
    env: Mapping[str, str] | None = None,
    file: Path | None = None,
    below: Mapping[str, Any] | None = None,
    backends: BackendNames | None = None,
) -> Settings:
    """Defaults < below < file < LLMGALLERY_* variables < flags. A flag that is None or () was not given. `below`: values of
    another program's configuration, of the right types. `backends`: what the names of `backends` are checked by; each of them
    is settled by itself.

    Raises ConfigError with all problems, each with its place.
    """
    problems: list[Problem] = []
    values = dict(below or {})
    layers = [
        _from_file(file, problems, backends) if file is not None else {},
        _from_env(env or {}, problems, backends),
        _from_flags(flags or {}, problems, backends),
    ]
    for layer in layers:
        values |= {**layer, "backends": {**values.get("backends", {}), **layer["backends"]}} if "backends" in layer else layer
    if (key_file := values.get("api_key_file")) is not None:
        values["api_keys"] = [*values.get("api_keys", []), *_read_keys(key_file, problems)]
    _check(values, problems)
    if problems:
        raise as_error(problems, "settings")
    return Settings(**values)


def is_loopback(host: str) -> bool:
    """The address can only be reached from this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def setting_rows() -> list[SettingRow]:
    """Every setting with its flag, variable, default and meaning, in the order of the struct."""
    rows = []
    for field in msgspec.structs.fields(Settings):
        meta = field.type.__metadata__[-1]
        default = getattr(DEFAULTS, field.name)
        shown = "" if default in (None, [], {}) else f"{float(default):g}s" if isinstance(default, Seconds) else str(default)
        rows.append(SettingRow(field.name, flag_of(field.name), variable_of(field.name), shown, meta.description))
    return rows


def flag_of(name: str) -> str:
    """The flag of a setting."""
    return FLAGS.get(name, "--" + name.replace("_", "-"))


def variable_of(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def _from_file(path: Path, problems: list[Problem], backends: BackendNames | None) -> dict[str, Any]:
    try:
        root = compose(path.read_bytes(), path)
    except OSError as error:
        problems.append(Problem(path, 0, 0, "", f"cannot be read: {error.strerror or error}"))
        return {}
    except Unreadable as error:
        problems.append(error.problem)
        return {}
    if root is None:
        return {}
    if not isinstance(root, MappingNode):
        problems.append(Problem(path, *place(root), "", f"expected settings such as `port: 8080`, found {kind(root)}"))
        return {}
    reading = Reading(path, adviser(levels_of(Settings), OTHER_NAMES, "`llmgallery serve --help` names all settings"))
    values: dict[str, Any] = struct_reader(Settings).values(root, "", reading)
    if found := values.get("backends"):
        values["backends"] = settled(found, Places.of(reading, path), backends, reading.problems, path.parent)
    problems += reading.problems
    for name in ("models_dir", "api_key_file"):
        if name in values:  # a file's paths start where the file lies, not where the server was started
            values[name] = path.parent / values[name]
    if "galleries" in values:
        values["galleries"] = [_located(item, path.parent) for item in values["galleries"]]
    return values


def _from_env(env: Mapping[str, str], problems: list[Problem], backends: BackendNames | None) -> dict[str, Any]:
    fields = struct_reader(Settings).fields
    known = {variable_of(name): name for name in fields} | {"LLMGALLERY_API_KEY": "api_keys"}
    values: dict[str, Any] = {}
    for variable, text in env.items():
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES or _of_kubernetes(variable, text):
            continue
        if variable not in known:
            if found := nearest(variable, [*known, *OTHER_VARIABLES], 0.85):
                problems.append(Problem(variable, 0, 0, "", "no setting has this name", f"did you mean {found}?"))
        elif text:
            name = known[variable]
            _put(values, name, _read(fields[name][1], text.split(",") if _is_list(fields[name][1]) else text, variable, problems))
            if name == "backends" and name in values:
                values[name] = settled(values[name], Places(variable, {}), backends, problems)
    return values


def _gallery(text: str) -> GallerySetting:
    """name=url; what has no name is found wanting by _check."""
    name, _, url = text.partition("=")
    return GallerySetting(name.strip(), url.strip())


def _located(item: str | GallerySetting, folder: Path) -> GallerySetting:
    """A gallery of a settings file: a path starts where the file lies."""
    found = _gallery(item) if isinstance(item, str) else item
    is_path = not re.match(r"[a-z][a-z0-9+.-]*:", found.url, re.IGNORECASE) and found.url
    return GallerySetting(found.name, str(folder / Path(found.url).expanduser())) if is_path else found


def _of_kubernetes(variable: str, text: str) -> bool:
    """A service called llmgallery makes Kubernetes set LLMGALLERY_PORT=tcp://10.0.0.1:8080 and the like in every pod."""
    return text.startswith(("tcp://", "udp://")) or bool(re.match(r"LLMGALLERY_(SERVICE_|PORT_\d)", variable))


def _from_flags(flags: Mapping[str, Any], problems: list[Problem], backends: BackendNames | None) -> dict[str, Any]:
    fields = struct_reader(Settings).fields
    values: dict[str, Any] = {}
    for name, value in flags.items():
        if value is not None and value != ():
            texts = [str(item) for item in value] if isinstance(value, (list, tuple)) else str(value)
            _put(values, name, _read(fields[name][1], texts, flag_of(name), problems))
            if name == "backends" and name in values:
                values[name] = settled(values[name], Places(flag_of(name), {}), backends, problems)
    return values


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    if value is not FAILED:
        values[name] = [*values[name], *value] if isinstance(value, list) and name in values else value


def _read(reader: Reader, text: str | list[str], source: str, problems: list[Problem]) -> Any:
    reading = Reading(source, lambda key, parent: "")
    node: Node
    if isinstance(reader, ListReader):
        items = [text] if isinstance(text, str) else [item.strip() for item in text]
        node = SequenceNode("seq", [ScalarNode(_TEXT, item) for item in items if item])
    elif isinstance(reader, MapReader):
        items = [text] if isinstance(text, str) else [item.strip() for item in text]
        return parted([item for item in items if item], source, problems)
    else:
        assert isinstance(reader, LeafReader)
        node = ScalarNode(_TEXT if reader.takes_text else PLAIN, text)
    value = reader.read(node, "", reading)
    problems += reading.problems
    return value


def _is_list(reader: Reader) -> bool:
    return isinstance(reader, ListReader | MapReader)


def _read_keys(path: Path, problems: list[Problem]) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(path, 0, 0, "api_key_file", f"cannot be read: {error}"))
        return []
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        problems.append(Problem(path, 0, 0, "api_key_file", "the file holds no key", "write one key a line"))
    return keys


def _check(values: Mapping[str, Any], problems: list[Problem]) -> None:
    for name in ("host", "default_model"):
        if values.get(name) == "":
            problems.append(Problem(name, 0, 0, "", "must not be empty"))
    if any(not key.strip() or not key.isascii() or not key.isprintable() for key in values.get("api_keys", [])):
        problems.append(Problem("api_keys", 0, 0, "", "a key must be printable ASCII text, as it travels in a header"))
    if values.get("unknown_model") == "default" and not values.get("default_model"):
        problems.append(Problem("unknown_model", 0, 0, "", "default needs default_model to be set"))
    for origin in values.get("allowed_origins", []):
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin, re.IGNORECASE):
            problems.append(Problem("allowed_origins", 0, 0, "", f"{origin!r} is no origin", "write it like https://example.org"))
    _check_galleries([_gallery(item) if isinstance(item, str) else item for item in values.get("galleries", [])], problems)


def _check_galleries(galleries: Sequence[GallerySetting], problems: list[Problem]) -> None:
    seen = {OWN_GALLERY}
    for gallery in galleries:
        if not re.fullmatch(r"[\w.-]+", gallery.name) or not gallery.url:
            said = f"{gallery.name}={gallery.url}" if gallery.url else gallery.name
            problems.append(
                Problem("galleries", 0, 0, "", f"{said!r} is no gallery", "write it like name=https://example.org/index.yaml")
            )
        elif gallery.name in seen:
            problems.append(
                Problem("galleries", 0, 0, "", f"there are two galleries {gallery.name}", "give one of them another name")
            )
        seen.add(gallery.name)


DEFAULTS = Settings()
