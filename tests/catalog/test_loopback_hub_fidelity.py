"""The loopback hub is a Hub to the real huggingface_hub: what is proven against it holds for the real one."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from loopback_hub import LoopbackHub

WEIGHTS = bytes(range(256)) * 1200
REPO = "someone/model-GGUF"


def fetch(hub: LoopbackHub, folder: Path, file: str = "model.Q4_K_M.gguf", **more: object) -> Path:
    return Path(hf_hub_download(more.pop("repo", REPO), file, endpoint=hub.url, cache_dir=folder, token=False, **more))  # type: ignore


@pytest.fixture(autouse=True)
def no_phoning_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)


def test_downloads_large_and_small_files(hub: LoopbackHub, tmp_path: Path):
    hub.add(REPO, "config.json", b'{"a": 1}', lfs=False)
    commit = hub.add(REPO, "model.Q4_K_M.gguf", WEIGHTS)
    assert fetch(hub, tmp_path).read_bytes() == WEIGHTS
    assert fetch(hub, tmp_path, "config.json").read_bytes() == b'{"a": 1}'
    assert fetch(hub, tmp_path, revision=commit).parent.name == commit
    assert hub.sent("model.Q4_K_M.gguf") == len(WEIGHTS)


def test_storage_links_speak_range_and_expire(hub: LoopbackHub):
    hub.add(REPO, "model.gguf", WEIGHTS)
    with httpx.Client() as client:
        head = client.head(f"{hub.url}/{REPO}/resolve/main/model.gguf")
        assert (head.status_code, head.headers["x-linked-size"]) == (302, str(len(WEIGHTS)))
        link = head.headers["location"]
        whole = client.get(link)
        validator = whole.headers["etag"]
        assert validator != head.headers["x-linked-etag"]
        rest = client.get(link, headers={"Range": "bytes=300000-", "If-Range": validator})
        assert (rest.status_code, rest.content) == (206, WEIGHTS[300000:])
        assert rest.headers["content-range"] == f"bytes 300000-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"
        assert client.get(link, headers={"Range": "bytes=5-", "If-Range": '"other"'}).content == WEIGHTS
        assert client.get(link, headers={"Range": f"bytes={len(WEIGHTS)}-"}).status_code == 416
        hub.cut("model.gguf", after=1000)
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(link)
        hub.expire_links()
        assert client.get(link).status_code == 403


def test_tells_what_a_repo_holds(hub: LoopbackHub):
    hub.add(REPO, "config.json", b"{}", lfs=False)
    commit = hub.add(REPO, "sub/model.gguf", WEIGHTS)
    api = HfApi(endpoint=hub.url, token=False)
    info = api.model_info(REPO)
    assert info.sha == commit
    assert [sibling.rfilename for sibling in info.siblings or []] == ["config.json", "sub/model.gguf"]
    assert api.model_info(REPO, revision=commit).sha == commit
    hub.describe(REPO, {"license": "mit", "base_model": "someone/model"}, "text-generation")
    info = api.model_info(REPO, files_metadata=True)
    assert (info.pipeline_tag, info.card_data.license, info.tags) == ("text-generation", "mit", ["license:mit"])
    small, large = info.siblings or []
    assert (small.size, small.lfs, len(small.blob_id)) == (2, None, 40)
    assert (large.size, large.lfs.size, large.lfs.sha256) == (len(WEIGHTS), len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    tree = {item.path: item for item in api.list_repo_tree(REPO, recursive=True)}
    assert tree["sub/model.gguf"].lfs.size == len(WEIGHTS)
    assert tree["config.json"].lfs is None


def test_errors_are_the_hubs(hub: LoopbackHub, tmp_path: Path):
    hub.add(REPO, "model.gguf", WEIGHTS)
    hub.add("someone/gated", "model.gguf", WEIGHTS, gated=True)
    hub.add("someone/private", "model.gguf", WEIGHTS, private=True)
    with pytest.raises(EntryNotFoundError):
        fetch(hub, tmp_path, "other.gguf")
    with pytest.raises(RevisionNotFoundError):
        fetch(hub, tmp_path, "model.gguf", revision="nowhere")
    with pytest.raises(GatedRepoError):
        fetch(hub, tmp_path, "model.gguf", repo="someone/gated")
    for repo in ("someone/private", "someone/missing"):
        with pytest.raises(RepositoryNotFoundError) as caught:
            fetch(hub, tmp_path, "model.gguf", repo=repo)
        assert not isinstance(caught.value, GatedRepoError)
    path = hf_hub_download("someone/gated", "model.gguf", endpoint=hub.url, cache_dir=tmp_path, token=hub.token)
    assert Path(path).read_bytes() == WEIGHTS
    assert all("authorization" not in {key.lower() for key in seen.headers} for seen in hub.seen(host="storage"))
