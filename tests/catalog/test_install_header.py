"""The header of a GGUF file that is still on the Hub."""

from __future__ import annotations

from pathlib import Path

import gguf as writer
import gguf_headers
import pytest
from loopback_hub import LoopbackHub

from llmgallery.backends.base import Files
from llmgallery.catalog.hub import Hub
from llmgallery.catalog.install import header
from llmgallery.catalog.install.header import FIRST, Judged, judged, remote_header, sparse_files
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, HubNotFound, HubUnavailable, NoSpace
from llmgallery.runtime import memory

REPO = "someone/model-GGUF"
PAD = bytes(6 << 20)


def llama(path: Path, words: int = 0) -> bytes:
    """A model's file without its data; `words` of 20 bytes each in its vocabulary."""

    def add(file: writer.GGUFWriter) -> None:
        file.add_context_length(4096)
        file.add_block_count(2)
        file.add_embedding_length(64)
        file.add_head_count(4)
        if words:
            file.add_token_list([f"{number:020d}" for number in range(words)])

    return gguf_headers.write(path, "llama", add).read_bytes()


async def test_reads_the_first_mebibyte_of_a_small_header(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    data = llama(tmp_path / "m.gguf")
    hub.add(REPO, "m.gguf", data + PAD)
    read = await remote_header(ours, await ours.metadata(REPO, "main", "m.gguf"))
    assert (read.header.architecture, read.header.context_length, read.header.block_count) == ("llama", 4096, 2)
    assert len(read.data) == FIRST
    assert [seen.headers["range"] for seen in hub.seen("GET", "m.gguf", "storage")] == ["bytes=0-1048575"]


async def test_reads_on_for_a_large_vocabulary(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    data = llama(tmp_path / "m.gguf", words=100_000)
    assert 2 << 20 < len(data) < 4 << 20
    hub.add(REPO, "m.gguf", data + PAD)
    read = await remote_header(ours, await ours.metadata(REPO, "main", "m.gguf"))
    assert read.header.num_tokens == 100_000
    assert hub.sent("m.gguf") < len(data + PAD)
    ranges = [seen.headers["range"] for seen in hub.seen("GET", "m.gguf", "storage")]
    assert ranges == ["bytes=0-1048575", "bytes=1048576-4194303"]


async def test_broken_connections_expired_links_and_servers_without_range(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    data = llama(tmp_path / "m.gguf", words=100_000)
    hub.add(REPO, "m.gguf", data + PAD)
    meta = await ours.metadata(REPO, "main", "m.gguf")
    hub.expire_links()
    hub.cut("m.gguf", after=1000)
    hub.ignore_range("m.gguf", times=4)
    hub.fail(503, name="m.gguf", host="storage", after=1)
    read = await remote_header(ours, meta)
    assert read.header.num_tokens == 100_000
    assert read.data == (data + PAD)[: len(read.data)]


async def test_a_file_that_ends_early_and_one_that_is_none(hub: LoopbackHub, ours: Hub, tmp_path: Path):
    data = llama(tmp_path / "m.gguf", words=100_000)
    hub.add(REPO, "cut.gguf", data[: 2 << 20])
    hub.add(REPO, "page.gguf", b"<html>" + PAD)
    hub.add(REPO, "wrong.gguf", b"GGUF" + (9).to_bytes(4, "little") + PAD)
    hub.add(REPO, "empty.gguf", b"")
    for file, said in [
        ("cut", "truncated"),
        ("page", "does not begin with GGUF"),
        ("wrong", "GGUF version 9"),
        ("empty", "GGUF"),
    ]:
        with pytest.raises(BadWeights, match=rf"^{REPO}/{file}\.gguf: .*{said}"):
            await remote_header(ours, await ours.metadata(REPO, "main", f"{file}.gguf"))
    assert hub.sent("page.gguf") <= FIRST + (64 << 10)
    assert hub.sent("wrong.gguf") <= 4 * FIRST + (64 << 10)


async def test_a_header_without_end_is_given_up(hub: LoopbackHub, ours: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(header, "MOST", 4 << 20)
    data = llama(tmp_path / "m.gguf", words=300_000)
    hub.add(REPO, "m.gguf", data + PAD)
    with pytest.raises(BadWeights, match="no GGUF header within the first 4 MiB"):
        await remote_header(ours, await ours.metadata(REPO, "main", "m.gguf"))
    assert hub.sent("m.gguf") <= (4 << 20) + (64 << 10)


async def test_a_hub_that_never_answers_right(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, "m.gguf", PAD)
    meta = await ours.metadata(REPO, "main", "m.gguf")
    hub.fail(500, times=100, name="m.gguf", host="storage")
    with pytest.raises(HubUnavailable, match="answered 500"):
        await ours.read(meta, 0, 100)
    assert len(hub.seen("GET", "m.gguf", "storage")) == ours.settings.attempts
    with pytest.raises(HubNotFound):
        await ours.metadata(REPO, "main", "n.gguf")


async def test_reads_stay_within_the_file(hub: LoopbackHub, ours: Hub):
    hub.add(REPO, "config.json", b"0123456789", lfs=False)
    meta = await ours.metadata(REPO, "main", "config.json")
    assert [await ours.read(meta, *part) for part in [(0, 4), (4, 100), (10, 5), (99, 1)]] == [b"0123", b"456789", b"", b""]


async def test_memory_is_planned_as_if_the_whole_file_were_here(tmp_path: Path):
    data = llama(tmp_path / "m.gguf")
    large = tmp_path / "large.gguf"
    large.write_bytes(data + PAD)
    config, most = ModelConfig(parallel=2), 1 << 40

    def judge(config: ModelConfig, files: tuple[Path, ...]) -> Judged:
        takes = memory.plan(config, Files(files), most, most).bytes
        return Judged(takes, takes <= most)

    parts = [("sub/large.gguf", len(data + PAD), data)]
    assert await judged(judge, config, parts) == judge(config, (large,))
    huge = await judged(judge, config, [("a.gguf", 300 << 30, data), ("b.gguf", 700 << 30, b"")])
    assert huge.bytes > 1100 << 30
    assert not huge.fits


def test_sparse_files_take_no_room_and_go_away(tmp_path: Path):
    with sparse_files([("dir/a.gguf", 1 << 40, b"GGUF"), ("a.gguf", 3, b"longer")]) as (first, second):
        assert (first.name, first.stat().st_size, first.stat().st_blocks < 100) == ("a.gguf", 1 << 40, True)
        assert second.read_bytes() == b"lon"
    assert not first.exists()


def test_a_disk_that_cannot_hold_them(tmp_path: Path):
    with pytest.raises(NoSpace, match=r"memory cannot be planned .* set TMPDIR"), sparse_files([("a.gguf", 1 << 62, b"")]):
        pass
