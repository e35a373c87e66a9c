"""LocalAI's models folder: YAML files, lists of models, gallery base files, .tmpl templates. Keys nobody reads are told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from llmgallery.catalog.formats import YAML_SUFFIXES
from llmgallery.catalog.gallery.compose import compose
from llmgallery.catalog.gallery.entry import EntryFile, GalleryEntry
from llmgallery.catalog.gallery.localai import KINDS, is_text, our_backend, plain_backend, use_cases, without_foreign_draft
from llmgallery.catalog.gallery.read import read_base
from llmgallery.config.problems import Problem
from llmgallery.config.readers import Reading, entries
from llmgallery.config.suggest import model_levels
from llmgallery.config.templates import NAMING_KEYS, SIDECAR_KEYS
from llmgallery.core.errors import ConfigError
from llmgallery.importers.base import Around, Imported, Importer
from llmgallery.importers.draft import Draft, Origin, finish
from llmgallery.importers.ledger import Ledger, read_yaml
from llmgallery.importers.local_files import reference_to
from llmgallery.importers.localai_source import INDEX, is_ours, keys_in, places_of, places_within, prompt_templates, yamls

_MAX_TEMPLATE = 1024 * 1024
_FILE_KEYS = ("parameters.model", "model", "mmproj", "draft_model", "lora_adapter", "lora_base")


@dataclass
class _Model:
    """One configuration, as it is written. `within`: the dotted key of its place in a list file. `text`: the file's, if the
    configuration is all of it. `templates`: named texts that came with it."""

    path: Path
    ledger: Ledger
    values: Mapping[str, Any]
    keys: Mapping[str, Node]
    name: str
    within: str = ""
    text: str | None = None
    files: tuple[EntryFile, ...] = ()
    head: tuple[str, ...] = ()
    templates: Mapping[str, str] = field(default_factory=dict)


def recognises(source: Path) -> bool:
    """A YAML file that is a model's, a list of such or a gallery's base file; a folder with one of them."""
    if source.is_dir():
        return any(is_ours(path) for path in yamls(source))
    return source.suffix.lower() in YAML_SUFFIXES and is_ours(source)


def read(source: Path, around: Around) -> Imported:
    """Each configuration becomes a file. One that is the same here keeps its text, comments and all."""
    return _Reading(source, around).read()


IMPORTER = Importer("localai", "LocalAI's models folder, its YAML files, and base files of galleries", recognises, read)


class _Reading:
    def __init__(self, source: Path, around: Around) -> None:
        self.source, self.around = source, around
        self.folder = source if source.is_dir() else source.parent
        self.moves = self.folder.resolve() != around.folder.resolve()
        self.ledgers: list[Ledger] = []
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.templates_used: set[Path] = set()

    def read(self) -> Imported:
        models: list[_Model] = []
        for path in yamls(self.source) if self.source.is_dir() else [self.source]:
            try:
                models += self.models(path)
            except ConfigError as error:
                if path == self.source:
                    raise
                told = error.hints or (str(error),)
                self.problems += [Problem(hint, 0, 0, "", "the file cannot be imported") for hint in told]
        redirects = [model for model in models if model.values.get("alias")]
        drafts = [draft for model in models if model not in redirects and (draft := self.draft(model)) is not None]
        for model in redirects:
            _redirect(model, drafts)
        self.tell_unused_templates()
        return finish(drafts, self.ledgers, self.around, notes=self.notes, problems=self.problems)

    # --- files to configurations -------------------------------------------------------------------------------------------

    def models(self, path: Path) -> list[_Model]:
        root, ledger = read_yaml(path), Ledger(path)
        self.ledgers.append(ledger)
        if isinstance(root, SequenceNode):
            return self.listed(root, path, ledger)
        if root is None:
            ledger.warn(None, "", "is empty: not imported")
            return []
        if not isinstance(root, MappingNode):
            raise ConfigError(f"{path}: expected a model's keys, or a list of models")
        found = keys_in(root)
        if "config_file" in found:
            return [self.based(root, path, ledger)]
        if not found & set(model_levels()[""]):
            ledger.warn(None, "", "is no model file: not imported")
            return []
        values = ledger.plain(root, "")
        name = str(values.get("name") or self.around.name or path.stem)
        text = None if ledger.warnings else path.read_text("utf-8-sig")
        return [_Model(path, ledger, values, places_of(root, path), name, text=text)]

    def listed(self, root: SequenceNode, path: Path, ledger: Ledger) -> list[_Model]:
        """A list file. A gallery's index is a list too, of what is not here yet."""
        items = [item for item in root.value if isinstance(item, MappingNode)]
        if items and all(keys_in(item) & INDEX and "parameters" not in keys_in(item) for item in items):
            raise ConfigError(
                f"{path} is a gallery's index, not models: `llmgallery serve --gallery NAME={path}` lets them be installed"
            )
        found = []
        for index, item in enumerate(root.value):
            if not isinstance(item, MappingNode):
                ledger.warn(item, f"[{index}]", "is no model: not imported")
                continue
            values = ledger.plain(item, f"[{index}]")
            name = str(values.get("name") or f"{path.stem}-{index + 1}")
            keys = {f"[{index}].{key}": node for key, node in places_of(item, path).items()}
            found.append(_Model(path, ledger, values, keys, name, f"[{index}]"))
        return found

    def based(self, root: MappingNode, path: Path, ledger: Ledger) -> _Model:
        """A gallery's base file: the model's keys are a text in it."""
        base = read_base(path.read_bytes(), str(path))
        wrapper = {name: value for name, _, value in entries(root, "", Reading(path, lambda key, parent: ""))}
        templates = prompt_templates(wrapper.get("prompt_templates"), ledger)
        ledger.warnings += [_warning(path, text) for text in base.warnings if "prompt_templates" not in text]
        own = wrapper.get("name")
        name = base.config.get("name") or (own.value if isinstance(own, ScalarNode) else None)
        head = [f"Licence: {base.licence}."] if base.licence else []
        head += [f"See {' '.join(base.urls[:3])}"] if base.urls else []
        values = dict(base.config)
        if base.description and "description" not in values:
            values["description"] = " ".join(base.description.split())[:200]
        text = wrapper["config_file"]
        keys = places_within(text, path)
        return _Model(
            path,
            ledger,
            values,
            keys,
            str(self.around.name or name or path.stem),
            files=base.files,
            head=tuple(head),
            templates=templates,
        )

    # --- configurations to drafts ------------------------------------------------------------------------------------------

    def draft(self, model: _Model) -> Draft | None:
        if not is_text(model.values):
            self.tell_no_text(model)
            return None
        entry = GalleryEntry(name=model.name, gallery="", config=model.values, files=model.files, source=str(model.path))
        composed = compose(entry, None)
        config: dict[str, Any] = {"name": model.name, **composed.config}
        left = self.tell(model, composed.dropped, composed.lifted, composed.warnings)
        self.backend(model, config)
        self.templates(model, config)
        self.references(model, config, composed.files)
        draft = Draft(model.name, model.ledger, model.within, config=config)
        draft.origins = {_without(key, model): Origin(model.path, node, key) for key, node in model.keys.items()}
        if self.around.weights is not None and not (_get(config, "parameters.model") or config.get("model")):
            draft.set("parameters.model", self.around.weights)  # for a base file, mostly
        same = _same({**_plain(model.values), "name": model.name}, config)
        draft.unchanged = model.text if same and not left else None
        draft.file_name = model.path.name if model.text is not None and model.path.suffix == ".yaml" else None
        draft.head = [
            f"Imported by llmgallery from LocalAI's {model.path}.",
            *model.head,
            *(f"{line}." for line in composed.lifted),
        ]
        draft.head += [f"File {file.filename}: {file.uri} {file.sha256 or ''}".rstrip() for file in composed.files]
        return draft

    def tell_no_text(self, model: _Model) -> None:
        """Speech, pictures and the like: nothing here will ever serve them."""
        kind = KINDS.get(plain_backend(str(model.values.get("backend") or "")))
        key, what = ("known_usecases", ", ".join(use_cases(model.values))) if kind is None else ("backend", kind)
        message = f"{model.name} is for {what}, which is not served here: not imported"
        model.ledger.warn(self.at(model, key), _within(model, key), message)

    def tell(self, model: _Model, dropped: Mapping[str, Any], lifted: tuple[str, ...], said: tuple[str, ...]) -> bool:
        """Note keys that nobody reads; True = there were some."""
        for key, value in dropped.items():
            message = next(
                (text.removeprefix(f"{key}: ") for text in said if text.startswith(f"{key}: ")), "unknown key, not used"
            )
            full = _within(model, key)
            model.ledger.left[full] = value
            model.ledger.warn(self.at(model, key), full, f"{message}: not imported")
        model.ledger.warnings += [
            _warning(model.path, text) for text in said if not any(text.startswith(f"{key}: ") for key in dropped)
        ]
        self.notes += [f"{model.path}: {line}" for line in lifted]
        return bool(dropped)

    def backend(self, model: _Model, config: dict[str, Any]) -> None:
        """Our name of the backend, where one of ours does its work; and no draft of a kind that it does not have."""
        named = config.get("backend")
        ours = our_backend(str(named), self.around.specs) if named else None
        if ours is None:
            return
        if str(named).lower() not in {ours, *self.around.specs[ours].aliases}:
            config["backend"] = ours
        kept, words = without_foreign_draft(config, self.around.specs[ours])
        if words:
            config.clear()
            config.update(kept)
            model.ledger.warn(
                self.at(model, "draft_model"),
                _within(model, "draft_model"),
                f"{words[0].removeprefix('draft_model: ')}: not imported",
            )

    def templates(self, model: _Model, config: dict[str, Any]) -> None:
        """Texts in place of the names of .tmpl files, as LocalAI takes them; and of the file beside the weights."""
        section = config.get("template")
        template = dict(section) if isinstance(section, Mapping) else {}
        jinja = template.get("chat_template_file")
        if isinstance(jinja, str) and (text := self.beside(jinja)) is not None:
            template.setdefault("chat_template", text)
            del template["chat_template_file"]
        for key in NAMING_KEYS:
            named = template.get(key)
            if isinstance(named, str) and (text := self.template_text(model, named)) is not None:
                template[key] = text
        weights = _get(config, "parameters.model") or config.get("model")
        if isinstance(weights, str) and not template.get("use_tokenizer_template"):
            beside = self.template_text(model, weights)
            if beside is not None:
                template.update({key: beside for key in SIDECAR_KEYS if not template.get(key)})
        if template:
            config["template"] = template
        unused = [name for name in model.templates if name not in {weights, *map(str, (section or {}).values())}]
        for name in unused:
            model.ledger.left[f"prompt_templates.{name}"] = model.templates[name]
            model.ledger.warn(None, f"prompt_templates.{name}", "no template key names it: not imported")

    def template_text(self, model: _Model, name: str) -> str | None:
        """What NAME.tmpl holds, where there is one."""
        if name in model.templates:
            return model.templates[name]
        if len(name) > 200 or "{{" in name or "\n" in name or "\0" in name or "://" in name:
            return None
        return self.beside(f"{name}.tmpl")

    def beside(self, name: str) -> str | None:
        """The text of a file in LocalAI's folder, which the model would miss in another one; None = there is none, or no need."""
        path = self.folder / name
        try:
            if not path.is_file() or not path.resolve().is_relative_to(self.folder.resolve()):
                return None
            text = path.read_bytes()[:_MAX_TEMPLATE].decode("utf-8-sig")
        except (OSError, ValueError):
            return None
        self.templates_used.add(path)
        return text if self.moves else None

    def references(self, model: _Model, config: dict[str, Any], files: tuple[EntryFile, ...]) -> None:
        """Files as they are named here: those of LocalAI's folder by their path, those to be fetched by where they come from."""
        addresses = {file.filename: file.uri for file in files}
        for key in _FILE_KEYS:
            named = _get(config, key)
            if isinstance(named, str) and named:
                _put(config, key, self.reference(model, key, named, addresses))
        adapters = config.get("lora_adapters")
        if isinstance(adapters, list):
            config["lora_adapters"] = [self.reference(model, "lora_adapters", str(one), addresses) for one in adapters]

    def reference(self, model: _Model, key: str, named: str, addresses: Mapping[str, str]) -> str:
        if not _exists(self.folder / named) and named in addresses:
            named = addresses[named]
        if not _exists(self.folder / named) and "://" not in named:
            return named
        try:
            return reference_to(named, self.folder, self.around.folder)
        except ValueError as error:
            model.ledger.warn(self.at(model, key), _within(model, key), str(error))
            return named.rpartition("/")[2] if "://" in named else named

    def at(self, model: _Model, key: str) -> Node | None:
        """Where a dotted key stands, or the nearest above it."""
        while key:
            if (node := model.keys.get(_within(model, key))) is not None:
                return node
            key = key.rpartition(".")[0]
        return None

    def tell_unused_templates(self) -> None:
        if not self.source.is_dir():
            return
        for path in sorted(self.source.glob("*.tmpl")):
            if path not in self.templates_used:
                self.ledgers.append(ledger := Ledger(path))
                ledger.warn(None, "", "no model names this template: not imported")


# --- small things ------------------------------------------------------------------------------------------------------------


def _redirect(model: _Model, drafts: list[Draft]) -> None:
    """LocalAI's `alias: other` is another name of that model."""
    target = next((draft for draft in drafts if draft.name == model.values["alias"]), None)
    node = model.keys.get(_within(model, "alias"))
    if target is None:
        model.ledger.left[_within(model, "alias")] = model.values["alias"]
        message = f"no model here is called {model.values['alias']!r}: {model.name} is not imported"
        model.ledger.warn(node, _within(model, "alias"), message, "write it under aliases: in that model's file")
        return
    target.config["aliases"] = [*target.config.get("aliases", []), model.name]
    target.unchanged = None
    for key in model.values:
        if key not in ("alias", "name"):
            model.ledger.warn(
                model.keys.get(_within(model, key)), _within(model, key), "a redirect has no keys of its own: not imported"
            )


def _warning(path: Path, text: str) -> Problem:
    """A sentence that may begin with its place already."""
    return Problem(path, 0, 0, "", text.removeprefix(f"{path}:"))


def _within(model: _Model, key: str) -> str:
    return f"{model.within}.{key}" if model.within else key


def _without(key: str, model: _Model) -> str:
    return key.removeprefix(f"{model.within}.") if model.within else key


def _plain(value: Any) -> Any:
    """Without what is not set."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    return value


def _same(written: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return dict(written) == dict(config)


def _get(config: Mapping[str, Any], key: str) -> Any:
    here: Any = config
    for step in key.split("."):
        here = here.get(step) if isinstance(here, Mapping) else None
    return here


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    here = config
    for step in path:
        here[step] = dict(here[step])
        here = here[step]
    here[last] = value


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
