"""What a request may have installed is said by the settings, and a refusal says which one; nothing leads out of the folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from installing_home import BIG, DEADLINE, REPO, SMALL
from loopback_hub import LoopbackHub
from market import POCKET, Market, answers, apply, ended, post
from server_process import ServerProcess


@pytest.fixture
def market(hub: LoopbackHub, tmp_path: Path) -> Market:
    return Market(hub, tmp_path)


def refused(server: ServerProcess, model: str, status: int, *said: str) -> None:
    """By every way in: a chat, a stream, and the route of installs. 403 is a 404 for who only asks for an answer of a model
    that, for all it may know, does not exist."""
    for reply in (post(server, model), post(server, model, stream=True), applied(server, id=model)):
        error = reply.json()["error"]
        assert reply.status_code in (status, 403), reply.text
        told = error["message"] + " ".join(error.get("hints", ()))
        assert all(word in told for word in said), told


def applied(server: ServerProcess, **fields: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/models/apply", json=fields, timeout=DEADLINE)


def job_error(server: ServerProcess, model: str) -> str:
    job = ended(server, apply(server, model))
    assert job["failure"]["kind"] == "NotAllowed", job
    message: str = job["error"]
    return message


# --- auto_install ----------------------------------------------------------------------------------------------------------


def test_off_installs_nothing_and_asks_nobody(market: Market) -> None:
    with market.serve("--auto-install", "off") as server:
        refused(server, "tiny", 404, "auto_install: gallery")
        refused(server, f"{REPO}:Q8_0", 404, "auto_install: hub")
        assert httpx.post(f"{server.url}/models/delete/pocket").status_code == 403
        assert answers(server, "pocket")
    assert market.hub.requests == [] and market.left() == []


def test_gallery_installs_entries_and_no_hub_ids(market: Market) -> None:
    with market.serve("--auto-install", "gallery") as server:
        refused(server, f"{REPO}:Q8_0", 404, "auto_install: hub")
        refused(server, f"hf://{REPO}/{BIG}", 404, "auto_install: hub")
        assert applied(server, id=f"https://huggingface.co/{REPO}").status_code == 403
        assert market.hub.requests == []
        assert answers(server, "tiny")


def test_beyond_loopback_only_galleries_unless_it_is_set(market: Market) -> None:
    keys = {"LLMGALLERY_API_KEYS": "sesame"}
    with ServerProcess(market.models, "--host", "0.0.0.0", environment=market.environment | keys) as server:
        url = server.url.replace("0.0.0.0", "127.0.0.1")
        header = {"Authorization": "Bearer sesame"}
        asked = {"model": f"{REPO}:Q8_0", "messages": [{"role": "user", "content": "Hi"}]}
        assert httpx.post(f"{url}/v1/chat/completions", json=asked).status_code == 401
        assert httpx.post(f"{url}/models/apply", json={"id": "tiny"}).status_code == 401
        told = httpx.post(f"{url}/v1/chat/completions", json=asked, headers=header, timeout=DEADLINE)
        assert told.status_code == 404 and "0.0.0.0" in told.text and "auto_install: hub" in told.text
        assert market.hub.requests == []
        reply = httpx.post(f"{url}/v1/chat/completions", json=asked | {"model": "tiny"}, headers=header, timeout=DEADLINE)
        assert reply.status_code == 200


# --- limits ----------------------------------------------------------------------------------------------------------------


def test_limits_hold_for_every_way_in_and_name_their_setting(market: Market) -> None:
    market.put("acme/nano-GGUF", "nano-Q8_0.gguf", 32, "apache-2.0")
    market.put("acme/large-GGUF", "large-Q8_0.gguf", 4 << 20, "apache-2.0")
    market.put("acme/closed-GGUF", "closed-Q8_0.gguf", 48, "cc-by-nc-4.0")
    market.put("acme/silent-GGUF", "silent-Q8_0.gguf", 56)
    market.put("evil/nano-GGUF", "nano-Q8_0.gguf", 64, "apache-2.0")
    market.hub.add("acme/pickled", "pytorch_model.bin", b"\x80\x04" + bytes(100))
    market.hub.add("acme/pickled", "config.json", b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}', lfs=False)
    market.hub.describe("acme/pickled", {"license": "mit"})
    market.offer("foreign", "huggingface://evil/nano-GGUF/nano-Q8_0.gguf")
    market.offer("closed", "huggingface://acme/closed-GGUF/closed-Q8_0.gguf", license="cc-by-nc-4.0")
    limits = ("--hub-owner", "ac*", "--hub-owner", "tiny", "--licence", "apache-2.0", "--licence", "mit", "--install-size-limit")
    with market.serve(*limits, "6MiB") as server:
        refused(server, "evil/nano-GGUF:Q8_0", 403, "evil", "hub_owners")
        assert market.hub.requests == []
        for name, *said in (
            ("foreign", "evil", "hub_owners"),
            ("closed", "cc-by-nc-4.0", "licences"),
            ("acme/closed-GGUF:Q8_0", "cc-by-nc-4.0", "licences"),
            ("acme/silent-GGUF", "licence", "licences"),
            ("acme/large-GGUF", "install_size_limit"),
            ("acme/pickled", "pickle", "safetensors"),
        ):
            reply = post(server, name)
            assert reply.status_code == 403 and reply.json()["error"]["code"] == "not_allowed", reply.text
            assert all(word in reply.json()["error"]["message"] for word in said), reply.text
            assert all(word in job_error(server, name) for word in said)
        weights = [
            seen for seen in market.hub.seen("GET", host="storage") if not seen.headers.get("Range", "").startswith("bytes=0-")
        ]
        assert not weights and market.left() == []
        assert answers(server, "acme/nano-GGUF", "tiny")


# --- places ----------------------------------------------------------------------------------------------------------------


def test_no_request_names_a_file_of_the_server_or_leads_out_of_its_folders(market: Market, tmp_path: Path) -> None:
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(POCKET)
    (tmp_path / "secret.yaml").write_text("name: secret\nparameters: {model: secret.gguf}\n")
    uri = f"huggingface://{REPO}/{SMALL}"
    market.offer("leads-out", files=[{"filename": "../../evil.gguf", "uri": uri}])
    market.offer("absolute", files=[{"filename": "/tmp/evil.gguf", "uri": uri}])
    market.offer("local-file", files=[{"filename": "x.gguf", "uri": "/etc/passwd"}])
    before = sorted(tmp_path.iterdir())
    with market.serve() as server:
        names = [str(secret), "../secret", "../secret.gguf", "../secret.yaml", f"file://{secret}", "~/secret.gguf", "./x/y"]
        names += [
            "../../etc",
            "..",
            "a/..",
            "tiny/../../secret",
            f"{REPO}/../../../secret.gguf",
            "hf://../../secret",
            "\\\\host\\x",
        ]
        for name in [*names, f"{REPO}@../../x", "x" * 5000, "a/b\x00c", "a/b\nc", f"{REPO}/%2e%2e/%2e%2e/secret.gguf"]:
            for reply in (post(server, name), applied(server, id=name)):
                if "uuid" in reply.json():  # only the Hub could tell that there is no such file
                    assert ended(server, reply.json()["uuid"])["failure"]["kind"] == "HubNotFound"
                    continue
                assert reply.status_code in (400, 404), (name, reply.status_code, reply.text)
                assert reply.json()["error"]["message"], name
        asked: list[dict[str, Any]] = [
            {"id": "tiny", "name": "../outside"},
            {"id": "tiny", "name": "..\\outside"},
            {"id": "tiny", "name": ".hidden"},
            {"id": "tiny", "overrides": {"parameters": {"model": str(secret)}}},
            {"id": "tiny", "overrides": {"parameters": {"model": "../secret.gguf"}}},
            {"id": "tiny", "overrides": {"mmproj": str(secret)}},
            {"id": "tiny", "overrides": {"draft_model": "/etc/passwd"}},
            {"id": "tiny", "overrides": {"lora_adapters": ["../../secret.gguf"]}},
            {"id": "tiny", "overrides": {"template": {"chat_template_file": "/etc/passwd"}}},
            {"id": "tiny", "overrides": {"template": {"chat_template_file": "../secret.yaml"}}},
            {"id": "tiny", "files": [{"uri": f"file://{secret}", "filename": "x.gguf"}]},
            {"id": "tiny", "files": [{"uri": uri, "filename": "../../x.gguf"}]},
            {"url": f"file://{secret}"},
            {"url": "http://169.254.169.254/latest/meta-data"},
            {"id": "leads-out"},
            {"id": "absolute"},
            {"id": "local-file"},
        ]
        for fields in asked:
            reply = applied(server, **fields)
            assert reply.status_code < 500, reply.text
            if reply.status_code == 200:  # what only the plan finds
                job = ended(server, reply.json()["uuid"])
                assert job["phase"] == "failed" and job["failure"]["kind"] != "GalleryError", (fields, job)
        for name in ("../secret", "..%2Fsecret", "../../secret.yaml", str(secret), "pocket"):
            reply = httpx.post(f"{server.url}/models/delete/{name}")
            assert reply.status_code == 404 or ended(server, reply.json()["uuid"])["phase"] == "failed"
        assert not market.yamls() and market.left() == []
        assert secret.read_bytes() == POCKET and {*tmp_path.iterdir()} <= {*before, tmp_path / "data", tmp_path / "hf"}
        assert "Traceback" not in server.output
        assert ended(server, apply(server, "tiny", name="a/../../outside"))["phase"] == "done"
        assert market.yamls() == ["a__..__..__outside.yaml"] and answers(server, "a/../../outside")
