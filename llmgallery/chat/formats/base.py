"""What every prompt format is: something that turns a request into text, and says where it is from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from llmgallery.config.model import ModelConfig
from llmgallery.core.clues import Clues
from llmgallery.core.requests import ChatRequest, CompletionRequest


class WithTemplates(Protocol):
    """What the weights bring for prompts; backends.base.Loaded is one."""

    @property
    def chat_template(self) -> str | None: ...
    @property
    def templates(self) -> dict[str, str]: ...
    @property
    def clues(self) -> Clues: ...
    @property
    def bos(self) -> str: ...
    @property
    def eos(self) -> str: ...


@dataclass(frozen=True)
class Said:
    """A prompt, and the strings that end an answer to it because of the format. `repairs`: what was done to the conversation
    so that the template takes it, for people. `warnings`: what of the format failed, or could not be honoured."""

    prompt: str
    stops: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Format(Protocol):
    """A way to write prompts. `origin`: where it is from, for people ("template.preset chatml", "template.chat")."""

    @property
    def origin(self) -> str: ...
    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer, whatever was asked."""

    @property
    def texts(self) -> Mapping[str, str]:
        """Its templates, by the keys of the YAML that would hold them; to be shown."""

    def chat(self, request: ChatRequest, config: ModelConfig, loaded: WithTemplates) -> Said:
        """Raises TemplateError (the template's refusal or failure), InvalidField (nothing to continue)."""

    def completion(self, request: CompletionRequest, config: ModelConfig) -> Said | None:
        """The prompt of a completion or an edit whose prompt is text; None = this format leaves it as it came.
        Raises TemplateError."""
