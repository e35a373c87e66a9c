"""The commands that answer: serve, run, and GatoGPT's names for them. What they need is imported when they run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmgallery.cli.group import all_setting_options, models_dir_option, settings_of

if TYPE_CHECKING:
    from llmgallery.cli.portal import Portal
    from llmgallery.cli.remote import Remote
    from llmgallery.cli.talk import Source
    from llmgallery.config.settings import Settings

MODEL_PATH = click.Path(path_type=Path)


@click.command()
@all_setting_options
@click.option(
    "--model",
    type=MODEL_PATH,
    envvar="LLMGALLERY_MODEL",
    show_envvar=True,
    help="a GGUF file, or a model's YAML, to serve beside the folder and as the default",
)
def serve(config: Path | None, model: Path | None, **flags: Any) -> None:
    """Start the server.

    Every flag is also a variable (--load-wait: LLMGALLERY_LOAD_WAIT) and a key of the settings file (load_wait). A flag wins over
    a variable, and a variable over the file. An llm-api config.yaml is taken as it is, with the LLM_API_ variables.
    """
    from llmgallery.cli.llmapi import served
    from llmgallery.cli.serve import serve as run_server

    with served(config) as imported:
        run_server(settings_of(config, **flags), model or imported)


@click.command(hidden=True)
@click.option("--host", default=None, metavar="TEXT", help="address to listen on")
@click.option("--port", default=None, metavar="TEXT", help="port to listen on")
@models_dir_option
def api(config: Path | None, **flags: Any) -> None:
    """GatoGPT's name for serve."""
    from llmgallery.cli.serve import serve as run_server

    run_server(settings_of(config, **flags), None)


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("-s", "--system", help="system message")
@click.option("-t", "--temperature", type=click.FloatRange(0, 100), help="0 = always the likeliest token")
@click.option("--max-tokens", type=click.IntRange(1), help="length limit of an answer")
@click.option("--seed", type=int, help="for answers that can be repeated")
@click.option("-v", "--verbose", is_flag=True, help="print time to first token, tokens and tokens/s to stderr")
@models_dir_option
def run(
    model: str, prompt: str | None, system: str | None, verbose: bool, config: Path | None, models_dir: str | None, **asked: Any
) -> None:
    """Ask MODEL one question, or chat with it.

    MODEL is a name, a GGUF file or a model's YAML. Without PROMPT it is read from stdin, and at a terminal a chat begins.
    The server at LLMGALLERY_URL answers when there is one (with LLMGALLERY_API_KEY), else this process does.
    """
    ask(model, prompt, system, verbose, settings_of(config, models_dir=models_dir), asked)


@click.command(hidden=True)
@click.option("--model", required=True, help="name of the model")
@click.option("--prompt", required=True, help="the question")
@models_dir_option
def generate(model: str, prompt: str, config: Path | None, models_dir: str | None) -> None:
    """GatoGPT's name for run."""
    ask(model, prompt, None, False, settings_of(config, models_dir=models_dir), {})


def ask(
    model: str, prompt: str | None, system: str | None, verbose: bool, settings: Settings, asked: dict[str, float | int | None]
) -> None:
    """One question, or a chat. Raises GalleryError."""
    from llmgallery.cli.given import neither
    from llmgallery.cli.portal import Portal
    from llmgallery.cli.talk import Talk, sampling
    from llmgallery.core.errors import ModelNotFound
    from llmgallery.core.messages import say

    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise click.UsageError("the prompt is empty")
    history = [say("system", system)] if system else []
    try:
        with Portal() as portal, answerer(portal, model, settings) as (source, name):
            talk = Talk(portal, source, name, sampling(**asked), verbose, history)
            if prompt is not None:
                talk.ask(prompt)
            else:
                with contextlib.suppress(ImportError):
                    import readline  # noqa: F401 - line editing for input()
                talk.chat()
    except ModelNotFound as exc:
        raise neither(model, exc) from exc


@contextlib.contextmanager
def answerer(portal: Portal, model: str, settings: Settings) -> Iterator[tuple[Source, str]]:
    """Who answers for `model`, and the name to ask for: the server at LLMGALLERY_URL, else the stack in this process.
    A path is always answered here: a server would not read it."""
    from llmgallery.cli.given import path_of

    path = path_of(model)
    remote = server(settings) if path is None else None
    if remote is not None:
        with entered(portal, remote):
            if portal.run(remote.answers()):
                yield remote, model
                return
        click.echo(f"no server answers at {remote.url} (LLMGALLERY_URL): this process answers itself", err=True)
    from llmgallery.cli.local import Local

    with entered(portal, portal.run(Local.build(settings, path))) as local:
        yield local, local.default or model


def server(settings: Settings) -> Remote | None:
    """The server at LLMGALLERY_URL; None when none is named. Raises UsageError."""
    from llmgallery.cli.given import server_url
    from llmgallery.cli.remote import Remote

    url = os.environ.get("LLMGALLERY_URL", "").strip()
    key = os.environ.get("LLMGALLERY_API_KEY") or next(iter(settings.api_keys), None)
    return Remote(server_url(url), key) if url else None


@contextlib.contextmanager
def entered(portal: Portal, thing: Any) -> Iterator[Any]:
    """`async with thing`, in the portal's loop."""
    yielded = portal.run(thing.__aenter__())
    try:
        yield yielded
    finally:
        portal.run(thing.__aexit__(None, None, None))
