"""From the Hub to a machine without a network, by the commands alone: install, look after, pack, carry over, answer."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from installing_home import BIG, REPO, SMALL
from loopback_hub import LoopbackHub
from market import Market, answers
from server_process import ServerProcess
from terminal import llmgallery

ABSENT = "http://127.0.0.1:9"
"""Where nobody listens."""


@dataclass
class Machine:
    folder: Path
    env: dict[str, str]

    def run(self, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
        result = llmgallery(*arguments, cwd=self.folder, **self.env)
        assert result.returncode == status, result.stdout + result.stderr
        assert "Traceback" not in result.stderr
        return result

    def listed(self) -> dict[str, str]:
        """Models and their states."""
        return dict(line.split("\t")[:2] for line in self.run("list").stdout.splitlines())


@pytest.fixture
def market(hub: LoopbackHub, tmp_path: Path) -> Market:
    (tmp_path / "connected").mkdir()
    return Market(hub, tmp_path / "connected")


def test_models_are_carried_to_a_machine_without_a_network(market: Market, tmp_path: Path) -> None:
    here = Machine(market.folder, market.environment)
    there = Machine(tmp_path / "away", {"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": ABSENT})
    (there.folder / "models").mkdir(parents=True)

    assert "mine@tiny" in here.run("search", "tiny").stdout
    assert "auto_install" not in here.run("install", "small", f"{REPO}:Q4_K_M", "tiny-q4_k_m").stderr  # the operator's own word
    assert {name: state for name, state in here.listed().items() if name != "pocket"} == {
        "tiny": "installed",
        f"{REPO}:Q4_K_M": "installed",
        "tiny-q4_k_m": "installed",
    }
    looked_after(here, market)

    before = len(market.hub.requests)
    here.run("bundle", "small", f"{REPO}:Q4_K_M", "-o", "models.tar")
    packed = (here.folder / "models.tar").read_bytes()
    carried = there.folder / "models.tar"
    carried.write_bytes(packed[: len(packed) // 2])
    there.run("unbundle", carried, status=1)
    assert there.listed().keys() == {"pocket"}
    carried.write_bytes(packed)
    assert {*there.run("unbundle", carried).stdout.split()} == {"tiny", f"{REPO}:Q4_K_M"}
    assert "as locked" in there.run("verify").stderr and there.run("gc").stdout == ""
    with ServerProcess(there.folder / "models", environment=offline(there)) as server:
        assert answers(server, "tiny", "small", f"{REPO}:Q4_K_M", f"hf://{REPO}:Q4_K_M")
    there.run("remove", "small", f"{REPO}:Q4_K_M")
    assert there.listed().keys() == {"pocket"} and not [*there.folder.rglob("*.gguf")] and not [*there.folder.rglob("blobs/*")]
    assert len(market.hub.requests) == before


def offline(machine: Machine) -> dict[str, str]:
    data, home = machine.folder / "data", machine.folder / "hf"
    return {**machine.env, "LLMGALLERY_DATA_DIR": str(data), "HF_HOME": str(home)}


def looked_after(machine: Machine, market: Market) -> None:
    """A damaged file is named, and fetched again once it is gone; what no YAML needs is found, and deleted when asked."""
    (blob,) = (path for path in market.folder.rglob("blobs/*") if path.name == market.sha256[BIG])
    damaged = bytearray(blob.read_bytes())
    damaged[1000] ^= 1
    blob.write_bytes(damaged)
    told = machine.run("verify", status=1).stdout
    assert told.startswith("tiny: ") and market.sha256[BIG] in told and market.sha256[SMALL] not in told
    blob.unlink()  # the advice, word by word
    assert "delete it, then `llmgallery install tiny`" in told
    machine.run("install", "tiny")
    assert "as locked" in machine.run("verify").stderr and len(market.downloads()) == 2
    for name in ("tiny-q4_k_m.yaml", "tiny.yaml"):
        (market.models / name).unlink()  # as people do
    found = machine.run("gc").stdout
    assert BIG in found or market.sha256[BIG] in found
    assert not re.search(rf"^\S*{re.escape(SMALL)}", found, re.MULTILINE)  # another model needs it
    machine.run("gc", "--delete")
    assert not [path for path in market.folder.rglob("blobs/*") if path.name == market.sha256[BIG]]
    assert machine.listed().keys() == {"pocket", f"{REPO}:Q4_K_M"}
    machine.run("install", "tiny")
