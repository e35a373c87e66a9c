"""GatoGPT's Config JSON: resources, definitions and profiles to one YAML a definition.

Source: https://github.com/elgatopanzon/gatogpt, classes/Config and TextGenerationModelManager.cs.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode

from llmgallery.catalog.install.write import file_name
from llmgallery.catalog.reference import parse_reference
from llmgallery.config.nodes import place
from llmgallery.config.presets import FOLDER, SUFFIX
from llmgallery.config.problems import Problem
from llmgallery.core.errors import ConfigError
from llmgallery.importers.base import SECRET, Around, Imported, Importer, WrittenFile
from llmgallery.importers.draft import Draft, finish
from llmgallery.importers.gatogpt_downloads import Downloads
from llmgallery.importers.gatogpt_profile import Profile, preset_of, write_preset, write_profile
from llmgallery.importers.jsontext import read_json
from llmgallery.importers.ledger import Ledger, Table
from llmgallery.importers.local_files import is_foreign, reference_to
from llmgallery.templates.presets import names as preset_names

USER_DATA = "~/.local/share/GatoGPT_Data"
KEY_FILE = "openai.key"
NO_KEY = ("", "no-key")

_GROUPS = {
    "resources", "textgeneration", "embedding", "defaultmodelprofiles", "filenamepresetmap", "openaiconfig", "urldownloads",
}  # fmt: skip
_PROFILE = {"loadparams", "inferenceparams"}
_DEFINITION = {"modelresourceid", "profilepreset", "modelprofileoverride"}
_BACKENDS = {
    "llamacpp": "llama-cpp",
    "builtinllama": "llama-cpp",
    "builtin": "llama-cpp",
    "llamacppserver": "llama-cpp",
    "openai": "openai",
}


@dataclass
class _Config:
    """All files together."""

    user_data: Path
    ledgers: list[Ledger] = field(default_factory=list)
    resources: dict[str, Table] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    chosen: set[str] = field(default_factory=set)
    definitions: list[tuple[str, Table, bool]] = field(default_factory=list)
    profiles: dict[str, Profile] = field(default_factory=dict)
    presets: dict[str, Draft] = field(default_factory=dict)
    globs: dict[str, str] = field(default_factory=dict)
    downloads: Downloads = field(default_factory=Downloads)
    downloaded: list[tuple[str, Table]] = field(default_factory=list)
    plain: list[Table] = field(default_factory=list)
    openai: Table | None = None
    problems: list[Problem] = field(default_factory=list)

    def path(self, text: str) -> str:
        """A path as GatoGPT writes it, on this machine."""
        return str(self.user_data / text.removeprefix("user://").lstrip("/")) if text.startswith("user://") else text


def recognises(source: Path) -> bool:
    """A JSON file with one of GatoGPT's groups, its Config folder, its data folder, or a folder of such files."""
    return any(_is_ours(path) for path in _files(source))


def read(source: Path, around: Around) -> Imported:
    """One YAML a definition, under the definition's id, and a preset file for each profile of the user's that these name."""
    files = [path for path in _files(source) if _is_ours(path)]
    config = _Config(_user_data(source, around))
    for path in files:
        _read_file(path, config)
    made = {id for id, _, _ in config.definitions}  # GatoGPT writes what it makes for downloads to a file of its own
    config.definitions += [(id, table, False) for id, table in config.downloaded if id not in made]
    if not config.definitions and not config.plain:
        where = ", ".join(map(str, files)) or str(source)
        raise ConfigError(f"{where}: there are no model definitions (TextGeneration, Embedding) in it")
    key = _key(config)
    drafts = [draft for id, table, embeds in config.definitions if (draft := _draft(id, table, embeds, config, key)) is not None]
    drafts += [draft for table in config.plain if (draft := _plain_draft(table, config, around)) is not None]
    _tell_unused(config)
    written = [WrittenFile(KEY_FILE, f"{key}\n", SECRET)] if key is not None else []
    notes = (
        [f"user:// is taken as {config.user_data}; --user-data names another folder"] if _mentions_user(drafts, config) else []
    )
    notes += [f"the OpenAI key is in {KEY_FILE}, which only you can read"] if key is not None else []
    presets = list(config.presets.values())
    return finish(drafts, config.ledgers, around, presets=presets, files=written, notes=notes, problems=config.problems)


IMPORTER = Importer("gatogpt", "GatoGPT's Config folder, or one of its JSON files", recognises, read)


# --- files -------------------------------------------------------------------------------------------------------------------


def _files(source: Path) -> list[Path]:
    """The JSON files that may be GatoGPT's; beside one of its Config folder all others of that."""
    if source.is_dir():
        below = source / "Config" if (source / "Config").is_dir() else source
        return sorted({*below.glob("*.json"), *below.glob("*/*.json")})
    if source.suffix.lower() != ".json":
        return []
    if re.match(r"(GatoGPT|GodotEGP)\.Config\.", source.absolute().parent.name):
        return sorted(source.absolute().parent.parent.glob("*/*.json"))
    return [source]


def _is_ours(path: Path) -> bool:
    try:
        ledger = Ledger(path)
        root = read_json(path, ledger)
    except ConfigError:
        return False
    keys = (
        {str(key.value).lower() for key, _ in root.value if isinstance(key, ScalarNode)}
        if isinstance(root, MappingNode)
        else set()
    )
    return bool(keys & (_GROUPS | _PROFILE))


def _user_data(source: Path, around: Around) -> Path:
    """What user:// means: as asked, else the data folder that the source lies in, else GatoGPT's usual one."""
    if around.user_data is not None:
        return around.user_data.absolute()
    here = source.absolute()
    above = next((folder for folder in (here, *here.parents) if folder.name == "GatoGPT_Data"), None)
    return above or Path(USER_DATA).expanduser()


def _read_file(path: Path, config: _Config) -> None:
    ledger = Ledger(path)
    config.ledgers.append(ledger)
    root = read_json(path, ledger)
    assert root is not None
    top = ledger.table(root, folded=True)
    if any(name.lower() in _PROFILE for name in top):
        config.plain.append(top)
        return
    if (resources := top.table("Resources", folded=False)) is not None:
        for group in list(resources):
            for id, table in _tables(resources, group):
                config.resources.setdefault(id, table)
    for group, embeds in (("TextGeneration", False), ("Embedding", True)):
        config.definitions += [(id, table, embeds) for id, table in _tables(top, group)]
    for id, table in _tables(top, "DefaultModelProfiles"):
        config.profiles[id] = Profile.of(table)
    if (globs := top.table("FilenamePresetMap", folded=False)) is not None:
        config.globs |= {glob: str(globs.get(glob, str)) for glob in list(globs)}
    config.openai = top.table("OpenAIConfig") or config.openai
    config.downloaded += config.downloads.read(top)
    for name in top.unread():
        node = top.node_of(name)
        if node is not None and _is_definition(node):
            top.warn(name, "stands beside TextGeneration: taken as one of its definitions", "a bracket above closes too early")
            config.definitions.append((name, ledger.table(node, name, folded=True), False))
        else:
            top.leave(name)


def _tables(parent: Table, group: str) -> Iterable[tuple[str, Table]]:
    """The mappings of a group by their names, in which capitals count other than in keys."""
    table = parent.table(group, folded=False)
    names = list(table) if table is not None else []
    return [(name, inner) for name in names if table and (inner := table.table(name, folded=True)) is not None]


def _is_definition(node: Node | None) -> bool:
    keys = {str(key.value).lower() for key, _ in node.value} if isinstance(node, MappingNode) else set()
    return bool(keys & _DEFINITION)


def _tell_unused(config: _Config) -> None:
    for id, table in config.resources.items():
        if id not in config.used:
            for name in table:
                table.node_of(name)
            table.ledger.warn(table.node, table.key, "no definition uses this resource: no model is made of it")
    for id, profile in config.profiles.items():
        if id not in config.chosen:
            profile.skip()
            where = profile.inference or profile.load
            if where is not None:
                where.ledger.warn(where.node, where.key, f"no definition uses the profile {id}: not imported")


# --- definitions -------------------------------------------------------------------------------------------------------------


def _draft(id: str, table: Table, embeds: bool, config: _Config, key: str | None) -> Draft | None:
    """None with a problem noted."""
    draft = Draft(
        id, table.ledger, table.key, [f"Imported by llmgallery from the GatoGPT definition {id} in {table.ledger.path}."]
    )
    draft.set("name", id)
    table.node_of("Id")
    backend = _backend(draft, table, embeds)
    if (owner := table.get("OwnedBy", str)) is not None:
        draft.set("owned_by", owner, table, "OwnedBy")
    resource = _weights(draft, table, config) if backend != "openai" else None
    if backend == "openai":
        _passthrough(draft, table, config, key)
    elif resource is None:
        return None
    if embeds:
        draft.set("embeddings", True)
    _switches(draft, table)
    override = table.table("ModelProfileOverride")
    preset = table.get("ProfilePreset", str) or None
    if embeds or backend == "openai":
        for name, value in (("ProfilePreset", preset), ("ModelProfileOverride", override)):
            if value:
                table.leave(name, "a prompt format and sampling are for local models that generate: not imported")
        return draft
    profile, automatic = _profile(preset, resource or "", table, config)
    write_profile(draft, profile, Profile.of(override) if override is not None else None, config.path)
    draft.head += [automatic] if automatic else []
    return draft


def _plain_draft(table: Table, config: _Config, around: Around) -> Draft | None:
    """A profile by itself, as `models` prints them: a model's, if somebody names the weights. None with a problem noted."""
    written = table.get("Name", str)
    path = Path(table.ledger.path)
    called = f", which is called {written}" if written else ""
    head = f"Imported by llmgallery from the GatoGPT profile {path}{called}."
    draft = Draft(around.name or path.stem, table.ledger, head=[head])
    draft.set("name", draft.name)
    profile = Profile.of(table)
    if around.weights is None:
        profile.skip()
        message = f"the profile {written or draft.name} stands alone, without a definition: --model REFERENCE names its weights"
        config.problems.append(Problem(path, 0, 0, "", message))
        return None
    draft.set("backend", "llama-cpp")
    draft.set("parameters.model", around.weights)
    write_profile(draft, profile, None, config.path)
    return draft


def _backend(draft: Draft, table: Table, embeds: bool) -> str:
    wanted = table.get("Backend", str) or "LlamaCpp"
    backend = _BACKENDS.get(wanted.lower(), wanted)
    if wanted.lower() == "llamacppserver":
        table.warn("Backend", "there is no server of llama.cpp beside this one: its library, backend llama-cpp, serves the model")
    if embeds and (wanted.lower() == "builtin" or "Backend" not in table):
        return "builtin"  # told by the files: GatoGPT takes GGUF files and sentence-transformers folders alike
    draft.set("backend", backend, table, "Backend")
    return backend


def _weights(draft: Draft, table: Table, config: _Config) -> str | None:
    """Sets parameters.model. The path that the profile is chosen by; None = there are no weights, which is noted."""
    id = table.get("ModelResourceId", str) or config.downloads.id_of(table)
    resource = config.resources.get(id) if id else None
    if resource is not None and id:
        config.used.add(id)
        path, kind = resource.get("Path", str), resource.get("Class", str) or ""
        if path and not path.startswith("res://"):
            located = config.path(path)
            if is_foreign(located):
                located = reference_to(located, config.user_data, config.user_data)
                resource.warn("Path", f"{path} is a path of another machine: {located} is looked for beside the model's YAML")
            draft.set("parameters.model", located, resource, "Path")
            if kind.rpartition(".")[2] not in ("LlamaModel", "EmbeddingModel", "SentenceTransformerModel", ""):
                resource.warn("Class", f"{kind} is no class of models: the file is taken as weights")
            return str(path)
        _fail(config, resource, "Path", f"{path or 'nothing'} is no weights file: {draft.name} cannot be imported")
        return None
    if id and (found := config.downloads.weights(id, config.path)) is not None:
        draft.set("parameters.model", found.reference, found.table, "Url")
        return found.path
    if id and (reference := _on_hub(id)) is not None:
        draft.set("parameters.model", reference, table, "ModelResourceId")
        table.warn("ModelResourceId", f"there is no resource of this id: taken as {reference} of the Hugging Face Hub")
        return f"/{id}.gguf"
    what = f"there is no resource {id}" if id else "there is no ModelResourceId"
    _fail(config, table, "ModelResourceId", f"{what}: {draft.name} cannot be imported")
    return None


def _on_hub(id: str) -> str | None:
    """owner/repo/QUANT, as GatoGPT's documentation calls resources, as a Hub reference."""
    owner, _, rest = id.partition("/")
    repo, _, quant = rest.partition("/")
    if not quant or "/" in quant:
        return None
    try:
        return str(parse_reference(f"{owner}/{repo}:{quant}"))
    except ConfigError:
        return None


def _fail(config: _Config, table: Table, name: str, message: str) -> None:
    node = table.place(name) or table.node
    config.problems.append(Problem(table.ledger.path, *place(node), table.path(name), message))


def _switches(draft: Draft, table: Table) -> None:
    if table.get("Persistent", float):
        draft.set("pinned", True, table, "Persistent")
    if table.get("PromptCache", bool):
        draft.set("prompt_cache_all", True, table, "PromptCache")
    if table.get("Vision", bool) is False:
        table.leave("Vision", "pictures are refused by models that cannot see: not needed")
    if table.plain("DynamicCtxConfigs"):
        advice = "set context_size and gpu_layers to what the machine holds"
        table.leave("DynamicCtxConfigs", "the context is not resized by request: not imported", advice)


def _profile(preset: str | None, path: str, table: Table, config: _Config) -> tuple[Profile, str]:
    """The profile, and a sentence where nobody named it. ProfilePreset counts if there is one of that name."""
    if preset is not None:
        if (found := _known(preset, config)) is not None:
            return found, ""
        table.warn("ProfilePreset", f"there is no profile {preset!r}: as in GatoGPT, the file's path chooses one")
    chosen = preset_of(path, config.globs)
    if chosen is not None and (found := _known(chosen, config)) is not None:
        return found, f"The prompt format {chosen} was chosen by the file's path, as GatoGPT does."
    return _known(
        "alpaca", config
    ) or Profile(), "No profile is known for the file's path, so the prompt format is alpaca, as in GatoGPT."


def _known(name: str, config: _Config) -> Profile | None:
    config.chosen.add(name)
    profile = config.profiles.get(name)
    if profile is None or profile.table is None:
        return Profile.shipped(name)
    if name not in config.presets:
        taken = {draft.name.casefold() for draft in config.presets.values()}
        called, source = _preset_name(name, taken), profile.table.ledger
        head = [f"Imported by llmgallery from the GatoGPT profile {name} in {source.path}."]
        draft = Draft(called, source, profile.table.key, head, file_name=f"{FOLDER}/{called}{SUFFIX}")
        write_preset(draft, profile)
        config.presets[name] = draft
    return replace(profile, own=config.presets[name])


def _preset_name(profile: str, taken: Collection[str]) -> str:
    """What a preset file is called: like the profile, unless built-in presets, or others of the files, are."""
    plain = file_name(profile).removesuffix(".yaml").strip(" .") or "profile"
    first = plain if plain not in preset_names() else f"gatogpt-{plain}"
    others = (f"{first}_{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([first], others) if name.casefold() not in taken)


# --- OpenAI ------------------------------------------------------------------------------------------------------------------


def _key(config: _Config) -> str | None:
    key = config.openai.get("APIKey", str) if config.openai is not None else None
    return None if key is None or key.strip() in NO_KEY else key.strip()


def _passthrough(draft: Draft, table: Table, config: _Config, key: str | None) -> None:
    draft.set("parameters.model", draft.name, table, "Backend")
    options: dict[str, Any] = {"base_url": _upstream(config.openai)} if config.openai is not None else {}
    if key is not None:
        options["api_key_file"] = KEY_FILE
    if options:
        draft.set("options", options, table, "Backend")
    if table.get("ModelResourceId", str):
        table.leave("ModelResourceId", "backend openai has no weights: not imported")


def _upstream(openai: Table | None) -> str:
    host = (openai.get("APIHostname", str) if openai else None) or "api.openai.com"
    secure = openai.get("APIUseSSL", bool) is not False if openai else True
    port = (openai.get("APIPort", int) if openai else None) or (443 if secure else 80)
    usual = port == (443 if secure else 80)
    return f"{'https' if secure else 'http'}://{host}{'' if usual else f':{port}'}/v1"


def _mentions_user(drafts: Iterable[Draft], config: _Config) -> bool:
    start = str(config.user_data)
    return any(str(draft.get(key) or "").startswith(start) for draft in drafts for key in ("parameters.model", "mmproj"))
