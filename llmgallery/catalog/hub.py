"""Files of the Hub: from the cache, else downloaded once, however many ask. One Hub per event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from llmgallery.catalog.download import MEND_CACHE, Download, FreeBytes, Tell, check_space, disk_error, free_bytes
from llmgallery.catalog.hub_cache import RepoCache, find_cached
from llmgallery.catalog.hub_client import FileMeta, HubClient, Sleep
from llmgallery.catalog.hub_read import read_part
from llmgallery.catalog.hub_repo import Repo, RepoFile
from llmgallery.catalog.hub_settings import HubSettings
from llmgallery.catalog.partial import Expected, Place, partial_size
from llmgallery.catalog.reference import HubReference, choose_file, split_parts
from llmgallery.catalog.remote import FileRemote, HubRemote, Remote, WebRemote
from llmgallery.catalog.repo_folder import as_folder, chosen, names_weights, stands_for_folder
from llmgallery.catalog.together import together
from llmgallery.core.errors import Cancelled, HubGated, HubNotFound, HubOffline, HubUnavailable

log = logging.getLogger(__name__)
OnProgress = Callable[[int, int], None]
"""Called with (bytes here, bytes in all); in the caller's own task."""


AT_ONCE = 8
"""Files that the Hub is asked about at the same time."""


class _Folder(NamedTuple):
    """A folder of a repo, and its files."""

    repo: Repo
    files: tuple[RepoFile, ...]


class _Wanted(NamedTuple):
    """What a reference means now: single files, or a folder."""

    metas: list[FileMeta] = []  # noqa: RUF012 - never changed
    folder: _Folder | None = None


class _Flight:
    """A shared task and how far it is. Waiters may leave; only Hub.aclose cancels it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[list[Path]] | None = None
        self.done = self.total = 0
        self._changed = asyncio.Event()

    def start(self, work: Coroutine[Any, Any, list[Path]], name: str) -> None:
        self.task = asyncio.create_task(work, name=name)
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def tell(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self._changed.set()
        self._changed = asyncio.Event()

    async def wait(self, on_progress: OnProgress | None) -> list[Path]:
        assert self.task is not None
        told = (0, 0)
        while not self.task.done():
            changed = asyncio.ensure_future(self._changed.wait())
            try:
                told = self._report(on_progress, told)
                await asyncio.wait({self.task, changed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
        if self.task.cancelled():
            raise Cancelled("the download was stopped, because the server is; what has come is kept for the next time")
        self._report(on_progress, told)
        return self.task.result()

    def _report(self, on_progress: OnProgress | None, told: tuple[int, int]) -> tuple[int, int]:
        now = (self.done, self.total)
        if on_progress is not None and now != told:
            on_progress(*now)
        return now


class Hub:
    """`ensure` brings the files of a reference into the Hugging Face cache, which huggingface_hub shares.

    `free_bytes(folder)` says what may be written there; `sleep` waits between attempts.
    """

    def __init__(
        self, settings: HubSettings | None = None, *, free_bytes: FreeBytes = free_bytes, sleep: Sleep = asyncio.sleep
    ) -> None:
        self.settings = settings or HubSettings.from_env()
        self._free = free_bytes
        self._client = HubClient(self.settings, sleep)
        self._flights: dict[HubReference, _Flight] = {}

    async def aclose(self) -> None:
        """Stop all downloads; what has come stays for the next time."""
        tasks = [flight.task for flight in self._flights.values() if flight.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def cached(self, ref: HubReference) -> list[Path] | None:
        """The files of `ref` as they lie in the cache, or None when any is missing. No request; a branch is what it was
        when it was last asked for.
        """
        return find_cached(self.settings.cache_dir, ref)

    async def ensure(self, ref: HubReference, on_progress: OnProgress | None = None) -> list[Path]:
        """The files of `ref`, downloaded where they are not cached: one, or all parts of a split GGUF, first part first, or the
        folder of a snapshot in which everything is that a model is loaded from.

        All callers of one reference share one download; a caller that is cancelled leaves it running. A full commit that is
        cached needs no request; another revision needs one, and is served from the cache when the Hub does not answer.
        Raises HubError, and BadWeights for weights that may run code.
        """
        flight = self._flights.get(ref)
        if flight is None:
            flight = self._flights[ref] = _Flight()
            flight.start(self._bring(ref, flight), f"hub {ref}")
        return await flight.wait(on_progress)

    async def list_files(self, repo: str, revision: str = "main") -> tuple[str, list[str]]:
        """The commit that `revision` is, and the paths of all its files. Raises HubError."""
        ref = HubReference(repo, revision=revision)
        self._refuse_offline(ref)
        return await self._client.list_files(ref.repo, ref.revision)

    async def describe(self, repo: str, revision: str = "main") -> Repo:
        """What a repo is at a revision: its commit, licence, and files with size and sha256. Raises HubError."""
        ref = HubReference(repo, revision=revision)
        self._refuse_offline(ref)
        return await self._client.describe(ref.repo, ref.revision)

    async def metadata(self, repo: str, revision: str, file: str) -> FileMeta:
        """What a file is at a revision. Raises HubError; HubNotFound with near names."""
        ref = HubReference(repo, file, revision=revision)
        self._refuse_offline(ref)
        return await self._client.metadata(ref.repo, ref.revision, file)

    async def read(self, meta: FileMeta, start: int, count: int) -> bytes:
        """`count` bytes of a file from `start`, fewer only at its end. Nothing is cached. Raises HubError."""
        return await read_part(self._client, meta, start, count)

    async def size_of(self, address: str, inside: bool = False) -> int | None:
        """How many bytes lie at an http(s) address outside the Hub; None = its host does not say. `inside`: as of Expected.
        Raises HubError, ConfigError."""
        if self.settings.offline:
            raise HubOffline(f"HF_HUB_OFFLINE forbids to ask {address}: unset it")
        return await self._client.size_of(address, inside)

    def free_bytes(self, folder: Path) -> int:
        """What may be written there. Blocks."""
        return self._free(folder)

    def remote(self, source: FileMeta | Expected) -> Remote:
        """Where the bytes of a file of the Hub, or of an https:// or file:// address, come from. Raises HubOffline."""
        if isinstance(source, FileMeta):
            return HubRemote(self._client, source)
        if source.source.startswith("file://"):
            return FileRemote(Path(unquote(urlsplit(source.source).path)), source)
        if self.settings.offline:
            raise HubOffline(f"{source.source} is not here, and HF_HUB_OFFLINE forbids to fetch it: unset it")
        return WebRemote(self._client, source)

    def download(self, remote: Remote, place: Place, tell: Tell) -> Download:
        """One file's download, with this Hub's patience. It is not shared: the place's lock makes others wait."""
        return Download(remote, place, self._free, tell, self.settings.attempts, self._client.pause)

    async def _bring(self, ref: HubReference, flight: _Flight) -> list[Path]:
        try:
            if ref.pinned and (paths := find_cached(self.settings.cache_dir, ref, surely=True)):
                return paths
            cached = self.cached(ref)
            if cached and self.settings.offline:
                return cached
            self._refuse_offline(ref)
            try:
                wanted = await self._resolve(ref, attempts=1 if cached else None)
            except (HubUnavailable, HubGated) as error:
                if not cached:
                    raise
                log.warning("%s is served as it is cached: %s", ref, error.message)
                return cached
            if wanted.folder is None:
                return await self._fetch(ref, wanted.metas, flight)
            return await self._fetch_folder(ref, wanted.folder, flight)
        except OSError as exc:
            raise disk_error(exc, self.settings.cache_dir) from exc
        finally:
            del self._flights[ref]

    def _refuse_offline(self, ref: HubReference) -> None:
        if self.settings.offline:
            raise HubOffline(
                f"{ref} is not in {self.settings.cache_dir}, and HF_HUB_OFFLINE forbids to fetch it: unset it, or copy it there"
            )

    async def _resolve(self, ref: HubReference, attempts: int | None) -> _Wanted:
        """What the files are, all at the commit that the first answer names."""
        file, revision = ref.file, ref.revision
        if ref.whole is not None or file is None or stands_for_folder(file):
            revision, files = await self._client.list_files(ref.repo, revision, attempts)
            if (folder := as_folder(ref, files)) is not None:
                repo = await self._client.describe(ref.repo, revision)
                return _Wanted(folder=_Folder(repo, chosen(folder, repo.files)))
        if file is None:
            try:
                file = choose_file(files, ref.quant)
            except HubNotFound as error:
                raise HubNotFound(f"{ref}: {error.message}: {', '.join(error.hints)}", field="file", hints=error.hints) from error
        first, *others = split_parts(file)
        meta = await self._client.metadata(ref.repo, revision, first, attempts)
        return _Wanted([meta, *[await self._client.metadata(ref.repo, meta.commit, part, attempts) for part in others]])

    async def _fetch_folder(self, ref: HubReference, folder: _Folder, flight: _Flight) -> list[Path]:
        """Its files, those first that say what the others are. The listing comes before all of them: from then on a snapshot that
        is not whole is known as such."""
        cache, commit = RepoCache(self.settings.cache_dir, ref.repo), folder.repo.commit
        files = sorted(folder.files, key=lambda file: (names_weights(file.path), file.path))
        absent = [file for file in files if not await asyncio.to_thread(_is_here, cache, commit, file)]
        slots = asyncio.Semaphore(AT_ONCE)
        metas = await together([self._meta(slots, ref.repo, commit, file) for file in absent])
        if absent or cache.listing(commit) is None:
            with suppress(*(() if absent else (OSError,))):
                await asyncio.to_thread(cache.write_listing, commit, folder.repo.files, full=True)
        await self._fetch(ref, metas, flight, commit, sum(file.size or 0 for file in files if file not in absent))
        return [cache.snapshot(commit)]

    async def _meta(self, slots: asyncio.Semaphore, repo: str, commit: str, file: RepoFile) -> FileMeta:
        async with slots:
            return await self._client.metadata(repo, commit, file.path)

    async def _fetch(
        self, ref: HubReference, metas: list[FileMeta], flight: _Flight, commit: str | None = None, here: int = 0
    ) -> list[Path]:
        """`commit`: None = that of the first file. `here`: bytes of further files, that need not be fetched."""
        cache, commit = RepoCache(self.settings.cache_dir, ref.repo), commit or metas[0].commit
        total = here + sum(meta.size for meta in metas)
        absent = [meta for meta in metas if not cache.pointer(meta.commit, meta.file).is_file()]
        fresh = [meta for meta in absent if not cache.blob(meta.etag).is_file()]
        missing = sum(
            meta.size - partial_size(blob_place(cache, meta.etag), HubRemote(self._client, meta).expected) for meta in fresh
        )
        check_space(cache.folder, missing, await asyncio.to_thread(self._free, cache.folder))
        before = total - sum(meta.size for meta in absent)
        for meta in absent:
            log.info("downloading %s/%s (%s bytes)", meta.repo, meta.file, f"{meta.size:,}")
            download = self.download(HubRemote(self._client, meta), blob_place(cache, meta.etag), _teller(flight, before, total))
            await asyncio.to_thread(cache.link, meta.commit, meta.file, await download.run())
            before += meta.size
        flight.tell(total, total)
        with suppress(*(() if absent else (OSError,))):  # a cache that is read-only and complete is good enough
            await asyncio.to_thread(cache.write_ref, ref.revision, commit)
        return [cache.pointer(meta.commit, meta.file) for meta in metas]


def blob_place(cache: RepoCache, etag: str) -> Place:
    """Where a blob of the Hub is put together."""
    paths = (cache.blob(etag), cache.partial(etag), cache.journal(etag), cache.lock(etag))
    return Place(*paths, folder=cache.folder, mend=MEND_CACHE, shared=True)


def _teller(flight: _Flight, before: int, total: int) -> Tell:
    return lambda done, _: flight.tell(min(before + done, total), total)


def _is_here(cache: RepoCache, commit: str, file: RepoFile) -> bool:
    """It lies in the snapshot. What has another size than it should, is none of it, and goes. Blocks."""
    path = cache.pointer(commit, file.path)
    try:
        if file.size is None or path.stat().st_size == file.size:
            return path.is_file()
        log.warning("%s is cut, and fetched again", path)
        blob = path.resolve()
        path.unlink()
        if blob.parent == (cache.folder / "blobs").resolve():
            blob.unlink(missing_ok=True)
    except FileNotFoundError:
        pass
    return False
