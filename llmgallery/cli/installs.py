"""`llmgallery search`, `install`, `remove` and `jobs`. What they need is imported when they run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmgallery.cli.group import Failure, models_dir_option, settings_of
from llmgallery.core.errors import GalleryError, from_info

if TYPE_CHECKING:
    from llmgallery.cli.library import Door
    from llmgallery.cli.portal import Portal
    from llmgallery.core.installs import Install

INTERRUPTED = 130
"""The exit status after a Ctrl-C: as shells tell it."""
SHORT_ID = 8
"""Letters of a job's id that lists show; any beginning that only one job has means it."""

OneJob = Callable[["Install"], None]


@click.command()
@click.argument("term", nargs=-1)
@click.option("--tag", help="only entries with this tag, such as chat, embeddings or vision")
@models_dir_option
def search(term: tuple[str, ...], tag: str | None, config: Path | None, models_dir: str | None) -> None:
    """Find models to install.

    By words of their name, tags or description, the best first; without words all. Looks into all configured galleries.
    Models of the Hugging Face Hub need no entry: `llmgallery install owner/repo`. The server at LLMGALLERY_URL answers when
    there is one, else this process. Exit code 1 when nothing is found.
    """
    from llmgallery.cli.display import size
    from llmgallery.cli.library import opened
    from llmgallery.cli.portal import Portal
    from llmgallery.cli.tables import print_rows

    settings, text = settings_of(config, models_dir=models_dir), " ".join(term)
    with Portal() as portal, opened(portal, settings, here=models_dir is not None) as door:
        found, faults = portal.run(door.search(text, tag))
    for fault in faults:
        click.echo(fault, err=True)
    if not found:
        raise GalleryError(f"no gallery has an entry for {text!r}" + (f" with the tag {tag!r}" if tag else ""))
    rows = [
        (
            entry.name if entry.gallery == "llmgallery" else f"{entry.gallery}@{entry.name}",
            size(entry.size) if entry.size is not None else "",
            entry.licence,
            "installed" if entry.is_installed else "",
            _first_line(entry.description),
        )
        for entry in found
    ]
    print_rows(("NAME", "SIZE", "LICENCE", "STATE", "DESCRIPTION"), rows)


@click.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--variant", help="the entry's variant to take, or the quantisation, such as Q8_0; else what fits the memory")
@click.option("--name", help="what the model shall be called")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="a key of an entry's model file, such as context_size=8192"
)
@click.option("--update", is_flag=True, help="bring what is installed already as it is offered now")
@models_dir_option
def install(
    names: tuple[str, ...],
    variant: str | None,
    name: str | None,
    assignments: tuple[str, ...],
    update: bool,
    config: Path | None,
    models_dir: str | None,
) -> None:
    """Install models of galleries or of the Hugging Face Hub.

    NAMES are those that `llmgallery search` finds, gallery@entry, owner/repo, owner/repo:QUANT or owner/repo/file.gguf. The
    server at LLMGALLERY_URL installs them when there is one that answers, else this process does; --models-dir names a folder
    of this machine. What a Ctrl-C stops can be gone on with. A model that is installed as it is asked for stays as it is, with
    what you changed in its YAML, unless you say --update. Exit code 1 when one of them fails, 130 after Ctrl-C.
    """
    from llmgallery.cli.library import opened
    from llmgallery.cli.portal import Portal
    from llmgallery.service.install.brought import unread_keys
    from llmgallery.service.install.jobs import Wanted

    if name is not None and len(names) > 1:
        raise click.UsageError("--name is for one model")
    overrides = assigned(assignments)
    if wrong := unread_keys(overrides):
        raise click.UsageError(f"--set {wrong[0]}")
    wanted = [Wanted(reference=reference, name=name, variant=variant, overrides=overrides, update=update) for reference in names]
    settings = settings_of(config, models_dir=models_dir)
    with Portal() as portal, opened(portal, settings, here=models_dir is not None) as door:
        errors: list[GalleryError] = []
        begun = [job for one in wanted if (job := _tried(portal, door.apply(one), errors)) is not None]
        ended = followed(portal, door, begun)
    for job in ended:
        if job.phase == "done":
            click.echo(f"installed {job.name or job.asked}" + (f" from {job.source}" if job.source else ""))
    _end(errors + [error for job in ended if (error := fault(job)) is not None])


@click.command()
@click.argument("names", nargs=-1, required=True)
@models_dir_option
def remove(names: tuple[str, ...], config: Path | None, models_dir: str | None) -> None:
    """Remove installed models.

    Their YAML goes, and the files that no other model needs. NAMES may be files of the models folder, such as mine.yaml:
    what you wrote yourself. The server at LLMGALLERY_URL does it when there is one that answers, else this process.
    """
    from llmgallery.cli.library import opened
    from llmgallery.cli.portal import Portal

    settings = settings_of(config, models_dir=models_dir)
    with Portal() as portal, opened(portal, settings, here=models_dir is not None) as door:
        errors: list[GalleryError] = []
        begun = [job for name in names if (job := _tried(portal, door.remove(name), errors)) is not None]
        ended = followed(portal, door, begun)
    for job in ended:
        if job.phase == "done":
            click.echo(f"removed {job.name or job.asked}")
    _end(errors + [error for job in ended if (error := fault(job)) is not None])


@click.command()
@click.argument("id", required=False)
@click.option("-f", "--follow", is_flag=True, help="show how the job gets on, until it is over")
@click.option("--cancel", is_flag=True, help="end the job, and delete what it has fetched")
@models_dir_option
def jobs(id: str | None, follow: bool, cancel: bool, config: Path | None, models_dir: str | None) -> None:
    """List installs and removals, or tell of one.

    How far they are, and why they failed. Of the server at LLMGALLERY_URL when there is one that answers; else those that
    are noted on this machine.
    """
    from llmgallery.cli.library import opened
    from llmgallery.cli.portal import Portal
    from llmgallery.cli.tables import print_rows

    if id is None and (follow or cancel):
        raise click.UsageError("name the job: llmgallery jobs ID")
    settings = settings_of(config, models_dir=models_dir)
    with Portal() as portal, opened(portal, settings, here=models_dir is not None) as door:
        known = sorted(portal.run(door.jobs()), key=lambda job: job.created)
        if id is None:
            rows = [(job.id[:SHORT_ID], job.name or job.asked, state_of(job), _extent(job), _more(job)) for job in known]
            print_rows(("ID", "MODEL", "STATE", "FILES", ""), rows)
            return
        job = meant(id, known)
        if cancel:
            job = portal.run(door.cancel(job.id))
        if follow:
            [job] = followed(portal, door, [job])
    print_rows(("", ""), told_rows(job))
    if follow:
        _end([error for error in [fault(job)] if error is not None])


# --- following ---------------------------------------------------------------------------------------------------------------


def followed(portal: Portal, door: Door, begun: Sequence[Install]) -> list[Install]:
    """The jobs as they ended, shown on the way. Exits when Ctrl-C ends the watching, which ends no job."""
    from llmgallery.cli.bars import InstallBars
    from llmgallery.cli.following import merged

    last = {job.id: job for job in begun}
    try:
        with InstallBars() as bars, contextlib.closing(portal.each(merged(door, list(last)))) as states:
            for state in states:
                last[state.id] = state
                bars.show(state)
    except KeyboardInterrupt:
        click.echo(f"\n{door.left([job for job in last.values() if not job.is_over])}", err=True)
        sys.exit(INTERRUPTED)
    return list(last.values())


def _tried(portal: Portal, work: Any, errors: list[GalleryError]) -> Install | None:
    """What was begun; what cannot be is noted, so that one wrong name does not stop the others."""
    try:
        job: Install = portal.run(work)
    except GalleryError as error:
        errors.append(error)
        return None
    return job


def fault(job: Install) -> GalleryError | None:
    """Why a job did not do what it was to do."""
    if job.phase == "failed":
        return from_info(job.error) if job.error is not None else GalleryError(f"the job for {job.asked} failed")
    if job.phase == "cancelled":
        return GalleryError(f"the job for {job.name or job.asked} was cancelled")
    return None


def _end(errors: Sequence[GalleryError]) -> None:
    """Exits with 1 when there are errors, after telling all of them."""
    for error in errors[:-1]:
        Failure(error).show()
    if errors:
        raise errors[-1]


# --- words -------------------------------------------------------------------------------------------------------------------


def assigned(assignments: Sequence[str]) -> dict[str, Any]:
    """`a.b=1` -> {a: {b: 1}}; values as YAML has them. Raises UsageError."""
    from llmgallery.cli.assign import AssignmentError, assign

    found: dict[str, Any] = {}
    for text in assignments:
        try:
            assign(found, text)
        except AssignmentError as exc:
            raise click.UsageError(f"--set {text}: {exc}") from exc
    return found


def meant(id: str, known: Sequence[Install]) -> Install:
    """The job of which `id` is the beginning. Raises GalleryError."""
    fits = [job for job in known if job.id.startswith(id)]
    if len(fits) != 1:
        what = f"{len(fits)} jobs begin with {id}: write more of it" if fits else f"there is no job {id}"
        raise GalleryError(f"{what}; `llmgallery jobs` lists them")
    return fits[0]


def state_of(job: Install) -> str:
    """`installing 34%`, `removing`, `installed`, `failed`."""
    match job.phase:
        case "done":
            return "removed" if job.deletion else "installed"
        case "failed" | "cancelled" | "queued" | "planning" as phase:
            return phase
        case _ if job.deletion:
            return "removing"
    return "installing" if job.fraction is None else f"installing {job.fraction:.0%}"


def told_rows(job: Install) -> list[tuple[str, str]]:
    """All about one job, key and value."""
    from llmgallery.cli.display import size

    rows = [("id", job.id), ("model", job.name or job.asked), ("state", state_of(job))]
    rows += [("from", job.source)] if job.source else []
    for file in job.files:
        total = f" of {size(file.total)}" if file.total is not None else ""
        rows.append(("file", f"{file.name} ({size(file.done)}{total})"))
    if job.error is not None:
        rows.append(("error", job.error.message))
        rows += [("", hint) for hint in job.error.hints if hint not in job.error.message]
    return rows


def _extent(job: Install) -> str:
    from llmgallery.cli.display import size

    if job.total_bytes is None:
        return ""
    return size(job.total_bytes) if job.phase == "done" else f"{size(job.done_bytes)} of {size(job.total_bytes)}"


def _more(job: Install) -> str:
    return _first_line(job.error.message) if job.error is not None else job.source or ""


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
