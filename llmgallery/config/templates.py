"""The template keys of a model file: texts that stand in files beside it, what does not parse, what nobody will use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
from yaml.nodes import Node, ScalarNode

from llmgallery.config import checks, gatogpt, kobold
from llmgallery.config.model import ModelConfig, Template
from llmgallery.config.nodes import place
from llmgallery.config.outside import Outside, TemplateFault
from llmgallery.config.problems import Problem
from llmgallery.config.readers import Reading
from llmgallery.config.regular import open_regular
from llmgallery.config.unused import OF_LOCALAI, unused

MAX_TEMPLATE = 1024 * 1024
LONGEST_NAME = 200

GO_KEYS = ("chat", "chat_message", "completion", "edit", "function", "multimodal")
"""Go templates, unless `engine: gatogpt` makes them GatoGPT's."""

NAMING_KEYS = ("chat", "chat_message", "completion", "edit", "function")
"""Those that may hold the name of a file instead."""

SIDECAR_KEYS = ("chat", "completion", "edit")
"""What LocalAI writes by the template beside the weights, where the YAML has none of its own."""

PROMPT_KEYS = ("completion", "edit")
"""Those without which there is a prompt all the same: what came in the request."""

GATOGPT_KEYS = ("generation", "variables")
NOT_OLLAMA_KEYS = ("chat_message", "function", "multimodal", "join_chat_messages_by_character", "generation", "variables")
NOT_GATOGPT_KEYS = ("function", "multimodal", "join_chat_messages_by_character")

_GO_TEXT = re.compile(r"\{\{-?\s*(\.[A-Z]\w*|(range|if|with|else if)\s+(\.|eq\b|ne\b|not\b|and\b|or\b|\$)|end\b)")

Check = Callable[[str], TemplateFault | None] | None


class Templates:
    """The template keys of one file. `depends`: files that were looked for; `files`: those of them whose text was taken, each
    with its key; `warnings`: what will not be used."""

    def __init__(self, reading: Reading, folder: Path, outside: Outside, text: bytes, models: Path | None = None) -> None:
        """`text`: the YAML's. What another file lent is sought beside that. `models`: model files' folder; else `folder`."""
        self.models = models or folder
        self.reading, self.folder, self.outside, self.text = reading, folder, outside, text
        self.depends: list[Path] = []
        self.files: list[tuple[str, Path]] = []
        self.warnings: list[Problem] = []

    def read(self, config: ModelConfig) -> ModelConfig:
        """The config with the texts of all files in place of their names; notes every template that does not parse."""
        checks.preset(config, self.reading, self.outside.presets, self.models)
        self.warnings += kobold.check(config.template, self.reading, self.outside.adapter)
        for key, message, advice in unused(config.template):
            if key in self.reading.places:
                self._warn(key, message, advice)
        self._chat_template(config.template)
        template = self._with_file(config.template)
        if template.engine == "gatogpt":
            self._check_gatogpt(template)
            return msgspec.structs.replace(config, template=template)
        if template.engine == "ollama":
            self._check_ollama(template)
            return msgspec.structs.replace(config, template=template)
        if gatogpt.may_be_profile(template.preset, self.outside.presets):
            gatogpt.check_variables(template, self.reading)
        else:
            for key in GATOGPT_KEYS:
                if f"template.{key}" in self.reading.places:
                    self._warn(f"template.{key}", "not used: it belongs to GatoGPT's templates", "set template.engine: gatogpt")
        template = self._with_named_files(template)
        self._check_go(template, config)
        config = msgspec.structs.replace(config, template=template)
        if (path := sidecar_path(config, self.folder)) is not None:
            self.depends.append(path)
            config = with_sidecar(config, self._sidecar(path))
        return config

    # --- Jinja -------------------------------------------------------------------------------------------------------------

    def _chat_template(self, template: Template) -> None:
        key, source = "template.chat_template", template.chat_template
        if source is not None and template.chat_template_file is None and not self._is_misplaced(key, source):
            self._note(key, source, self.outside.template)

    def _with_file(self, template: Template) -> Template:
        """With the text of `chat_template_file`; as it is when the file cannot be read, which is noted."""
        key, name = "template.chat_template_file", template.chat_template_file
        if name is None:
            return template
        if template.chat_template is not None:
            self.reading.fail(self.reading.nodes[key], key, "template.chat_template is set too", "keep one of them")
            return template
        path = self._home(key)[0] / name
        self.depends.append(path)
        source = self._read(path, name, key)
        if source is None:
            return template
        self.files.append((key, path))
        if not self._is_misplaced(key, source):
            self._note(key, source, self.outside.template, path.absolute())
        return msgspec.structs.replace(template, chat_template=source)

    def _is_misplaced(self, key: str, source: str) -> bool:
        """An empty text, or a Go template, under a key for Jinja, which is noted."""
        if not source.strip():
            message, advice = "the template is empty, and so would every prompt be", "leave the key out, or write a template"
            self.reading.problems.append(self.reading.at(key, message, advice))
            return True
        if not _GO_TEXT.search(source):
            return False
        message = "a Go template, where a Jinja template belongs"
        advice = "write it under template.chat, with template.chat_message for each message"
        self.reading.problems.append(self.reading.at(key, message, advice))
        return True

    # --- Go ----------------------------------------------------------------------------------------------------------------

    def _with_named_files(self, template: Template) -> Template:
        """LocalAI's `chat: NAME` means the text of NAME.tmpl beside the YAML, where that is."""
        texts = {}
        for key in NAMING_KEYS:
            named = getattr(template, key)
            if not named or "{{" in named or not _is_name(named):
                continue
            path, noted = self._home(f"template.{key}")[0] / f"{named}.tmpl", len(self.reading.problems)
            self.depends.append(path)
            source = self._read(path, path.name, f"template.{key}", needed=False)
            if source is not None:
                texts[key] = source
                self.files.append((f"template.{key}", path))
                self._note(f"template.{key}", source, self.outside.go_template, path.absolute())
            elif self.outside.absent is not None and len(self.reading.problems) == noted:
                message = f"there is no file {path.name} beside this file, and the text itself holds no {{{{action}}}}"
                advice = "every prompt would be this very text: put the file there, or write the template here"
                self.reading.fail(self.reading.nodes[f"template.{key}"], f"template.{key}", message, advice)
        return msgspec.structs.replace(template, **texts) if texts else template

    def _check_go(self, template: Template, config: ModelConfig) -> None:
        written = {key: getattr(template, key) for key in GO_KEYS if getattr(template, key)}
        for key, source in written.items():
            if source == getattr(config.template, key):
                self._note(f"template.{key}", source, self.outside.go_template)
        around = [key for key in OF_LOCALAI if key in written]
        if around and config.system_prompt and not _mentions("SystemPrompt", written.values()):
            message = "not used: none of the Go templates has {{.SystemPrompt}}, where LocalAI puts it"
            self._warn("system_prompt", message, "write it into template.chat")

    def _check_gatogpt(self, template: Template) -> None:
        self.warnings += gatogpt.check(template, self.reading, self.outside.presets)
        if template.edit:
            self._note("template.edit", template.edit, self.outside.go_template)
        for key in NOT_GATOGPT_KEYS:
            if f"template.{key}" in self.reading.places:
                self._warn(f"template.{key}", "not used: GatoGPT's templates have nothing like it")

    def _check_ollama(self, template: Template) -> None:
        if not template.chat:
            advice = "write Ollama's TEMPLATE there"
            self.reading.fail(self.reading.nodes["template.engine"], "template.engine", "template.chat is missing", advice)
        for key in ("chat", *PROMPT_KEYS):
            if source := getattr(template, key):
                self._note(f"template.{key}", source, self.outside.ollama_template if key == "chat" else self.outside.go_template)
        for key in NOT_OLLAMA_KEYS:
            if f"template.{key}" in self.reading.places:
                self._warn(f"template.{key}", "not used: template.engine is ollama, whose templates have nothing like it")

    def _sidecar(self, path: Path) -> str | None:
        found = read_sidecar(path, self.outside.go_template)
        if isinstance(found, Problem):
            self.reading.problems.append(found)
            return None
        self.files += [("template.chat", path)] if found else []
        return found

    # --- places and files --------------------------------------------------------------------------------------------------

    def _home(self, key: str) -> tuple[Path, bytes]:
        """The folder and the text of the file in which a key stands."""
        source = self.reading.source(key)
        return (self.folder, self.text) if source is None else (source.path.parent, source.text)

    def _note(self, key: str, source: str, check: Check, file: Path | None = None) -> None:
        """Note why a template does not parse, with the line in the file that holds it."""
        fault = check(source) if check else None
        if fault is None:
            return
        path = self.reading.path_of(key)
        if file is None:
            line, column = place_in(self.reading.nodes[key], fault, self._home(key)[1])
        else:
            path, line, column = file, max(fault.line, 1), max(fault.column, 1)
        message = f"the template does not parse: {fault.message}"
        if key.removeprefix("template.") in PROMPT_KEYS:
            self.warnings.append(Problem(path, line, column, key, message, "prompts go to the model without it"))
        else:
            self.reading.problems.append(Problem(path, line, column, key, message))

    def _warn(self, key: str, message: str, advice: str = "") -> None:
        self.warnings.append(self.reading.at(key, message, advice))

    def _read(self, path: Path, name: str, key: str, *, needed: bool = True) -> str | None:
        """The text of a file beside the YAML; None when it cannot be read, which is noted, unless it need not be there."""
        node, advice = self.reading.nodes[key], "put the template beside the YAML"
        try:
            if not path.resolve().is_relative_to(self._home(key)[0].resolve()):
                self.reading.fail(node, key, f"{name} lies outside the folder of this file", advice)
                return None
            with open_regular(path) as file:
                data = file.read(MAX_TEMPLATE + 1)
            if len(data) > MAX_TEMPLATE:
                self.reading.fail(node, key, f"{name} is larger than {MAX_TEMPLATE:,} bytes")
                return None
            return data.decode("utf-8-sig")
        except FileNotFoundError as error:
            if needed:
                self.reading.fail(node, key, f"cannot read {name}: {error.strerror}", advice)
        except OSError as error:
            self.reading.fail(node, key, f"cannot read {name}: {error.strerror or error}", advice)
        except UnicodeDecodeError:
            self.reading.fail(node, key, f"{name} is not UTF-8", "save it as UTF-8")
        except (ValueError, RuntimeError) as error:  # a NUL in the name; links that go round in a circle
            self.reading.fail(node, key, f"cannot read {name!r}: {error}", advice)
        return None


def sidecar_path(config: ModelConfig, folder: Path) -> Path | None:
    """Where LocalAI looks for a template beside the weights; None = nothing would come of one."""
    template = config.template
    named = template.preset is not None or template.chat_template is not None or template.chat_template_file is not None
    if named or template.adapter or template.engine == "gatogpt" or not config.weights or "\0" in config.weights:
        return None
    path = folder / f"{config.weights.removeprefix('file://')}.tmpl"
    return None if all(getattr(template, key) for key in SIDECAR_KEYS) else path


def read_sidecar(path: Path, check: Check) -> str | Problem | None:
    """The template beside the weights, or what is wrong with it; None = there is none."""
    key = "template.chat"
    try:
        with open_regular(path) as file:
            data = file.read(MAX_TEMPLATE + 1)
        source = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Problem(path.absolute(), 0, 0, key, "the template is not UTF-8", "save it as UTF-8")
    except (OSError, ValueError):
        return None
    if len(data) > MAX_TEMPLATE:
        return Problem(path.absolute(), 0, 0, key, f"the template is larger than {MAX_TEMPLATE:,} bytes")
    fault = check(source) if source and check else None
    if fault is None:
        return source
    message = f"the template does not parse: {fault.message}"
    return Problem(path.absolute(), max(fault.line, 1), max(fault.column, 1), key, message)


def with_sidecar(config: ModelConfig, source: str | None) -> ModelConfig:
    """The config with the template beside the weights, in place of those that the YAML does not have."""
    if not source:
        return config
    texts = {key: source for key in SIDECAR_KEYS if not getattr(config.template, key)}
    return msgspec.structs.replace(config, template=msgspec.structs.replace(config.template, **texts))


def place_in(node: Node, fault: TemplateFault, text: bytes) -> tuple[int, int]:
    """(line, column) in the YAML, `text`, of what is wrong in a scalar's text, as near as YAML lets us know."""
    line, column = place(node)
    if not isinstance(node, ScalarNode):
        return line, column
    if node.style == "|":
        block = text.split(b"\n")[line : node.end_mark.line]
        return line + max(fault.line, 1), _indent(block) + max(fault.column, 1)
    if node.style == ">":
        return line + max(fault.line, 1), 1
    if node.start_mark.line == node.end_mark.line and fault.line == 1:
        return line, column + bool(node.style) + max(fault.column, 1) - 1
    return line, column


def _indent(block: list[bytes]) -> int:
    """Of a block scalar's first line that is not empty."""
    first = next((line for line in block if line.strip()), b"")
    return len(first) - len(first.lstrip(b" "))


def _is_name(text: str) -> bool:
    return len(text) <= LONGEST_NAME and "\n" not in text.strip("\n") and text == text.strip()


def _mentions(name: str, sources: Iterable[str]) -> bool:
    return any(f".{name}" in source for source in sources)
