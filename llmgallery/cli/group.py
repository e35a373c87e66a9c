"""What all commands share: how a GalleryError becomes a message, and the options that choose settings and folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import click

from llmgallery.config.settings import FLAGS, SettingRow, Settings, load_settings, setting_rows
from llmgallery.core.errors import ConfigError, GalleryError

F = TypeVar("F", bound=Callable[..., Any])
HINTS = get_type_hints(Settings)


class Failure(click.ClickException):
    """A GalleryError on its way to stderr: its message, then those hints that the message does not hold already."""

    def __init__(self, error: GalleryError) -> None:
        hints = [f"  {hint}" for hint in error.hints if hint not in error.message]
        super().__init__("\n".join([told(error), *hints]))


def told(error: GalleryError) -> str:
    """The message for the terminal: where it speaks of an endpoint, the command that does the same."""
    return error.message.replace("GET /v1/models lists the models", "`llmgallery list` lists the models")


class Group(click.Group):
    """Commands may raise GalleryError: it ends the program with exit code 1, and without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GalleryError as exc:
            raise Failure(exc) from exc

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they were added, not by name."""
        return list(self.commands)


def config_option(command: F) -> F:
    """--config FILE."""
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        envvar="LLMGALLERY_CONFIG",
        show_envvar=True,
        help="settings file (YAML); llm-api's config.yaml too",
    )(command)


def setting_option(row: SettingRow) -> Callable[[F], F]:
    """The flag of a setting. Its value is read where the file's and the environment's are, and as strictly."""
    default = f"; default {row.default}" if row.default else ""
    words = _words(row.name)
    kind = click.Choice(words) if words else None
    metavar = None if words else "TEXT"
    return click.option(
        row.flag, row.name, type=kind, multiple=row.name in FLAGS, metavar=metavar, help=row.description + default
    )


def _words(name: str) -> tuple[str, ...]:
    """What a setting may be, where it is one of a few words."""
    hint = HINTS[name]
    return get_args(hint) if get_origin(hint) is Literal else ()


def models_dir_option(command: F) -> F:
    """--config and --models-dir, for every command that reads the folder."""
    row = next(row for row in setting_rows() if row.name == "models_dir")
    return config_option(setting_option(row)(command))


def all_setting_options(command: F) -> F:
    """--config and a flag for each setting."""
    for row in reversed(setting_rows()):
        command = setting_option(row)(command)
    return config_option(command)


def settings_below(config: Path | None) -> dict[str, Any] | None:
    """What llm-api's configuration says; None = there is none."""
    if config is None and "LLM_API_SETUP_PARAMS" not in map(str.upper, os.environ):
        return None
    from llmgallery.cli.llmapi import settings

    return settings(config)


def _backend_names() -> dict[str, str]:
    from llmgallery.backends.loader import specs

    return {name.lower(): spec.name for spec in specs().values() for name in (*spec.aliases, spec.name)}


def settings_of(config: Path | None, **flags: object) -> Settings:
    """Settings from defaults, file, environment and those flags that were given. Raises ConfigError, or UsageError when
    only flags are wrong. A file of llm-api, or its variables, do as well."""
    below = settings_below(config)
    try:
        return load_settings(flags, os.environ, config if below is None else None, below, _backend_names)
    except ConfigError as exc:
        if exc.hints and all(hint.startswith("--") for hint in exc.hints):
            raise click.UsageError("\n".join(exc.hints)) from exc
        raise
