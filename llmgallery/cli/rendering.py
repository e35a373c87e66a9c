"""The command that shows a prompt: render."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from llmgallery.cli.group import models_dir_option, settings_of

if TYPE_CHECKING:
    from llmgallery.config.settings import Settings


@click.command()
@click.argument("name")
@click.option("--request", "source", type=click.File("rb"), required=True, help="the body of an OpenAI request, JSON; - = stdin")
@click.option("--json", "as_json", is_flag=True, help="print JSON: the prompt, its tokens, stop strings, the template's origin")
@models_dir_option
def render(name: str, source: BinaryIO, as_json: bool, config: Path | None, models_dir: str | None) -> None:
    """Print the very prompt that a request to a model would become.

    The request is what a client would send to /v1/chat/completions or /v1/completions; NAME, a model or a file as of run, counts
    in place of its model. Nothing is generated, loaded or installed; without the weights the prompt is shown where the model's
    YAML holds the template. The server at LLMGALLERY_URL tells when there is one; with --models-dir always this process.
    """
    body = rendered(settings_of(config, models_dir=models_dir), name, source, here=models_dir is not None)
    for warning in body.get("warnings", ()):
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(json.dumps(body, ensure_ascii=False))
    elif sys.stdout.isatty():
        from llmgallery.cli.talk import printable

        click.echo(printable(body["prompt"]))
    else:
        click.echo(body["prompt"].encode(errors="replace"), nl=False)


def rendered(settings: Settings, name: str, source: BinaryIO, *, here: bool) -> dict[str, Any]:
    """The answer of POST /apply-template, from a server or made here. Raises GalleryError."""
    import msgspec

    from llmgallery.api.dialects.openai.rendering import read_ask, rendering_body
    from llmgallery.cli.commands import entered, server
    from llmgallery.cli.given import path_of
    from llmgallery.cli.local import Local
    from llmgallery.cli.portal import Portal
    from llmgallery.core.errors import GalleryError

    data, path = source.read(), path_of(name)
    try:
        ask = read_ask(data)
    except GalleryError as exc:
        raise type(exc)(f"{getattr(source, 'name', '<stdin>')}: {exc.message}", field=exc.field, hints=exc.hints) from exc
    remote = None if here or path is not None else server(settings)
    with Portal() as portal:
        if remote is not None:
            with entered(portal, remote):
                if portal.run(remote.answers()):
                    body = {**msgspec.json.decode(data), "model": name}
                    told: dict[str, Any] = portal.run(remote.post("/apply-template", body))
                    return told
            click.echo(f"no server answers at {remote.url} (LLMGALLERY_URL): this process renders itself", err=True)
        with entered(portal, portal.run(Local.build(settings, path))) as local:
            asked = msgspec.structs.replace(ask, model=local.default or name)
            return rendering_body(*portal.run(local.render(asked)))
