"""One server, a transformers model and a GGUF model: the same chat, a process each, and each survives the other's death."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from server_process import ServerProcess
from tiny_transformers import make_llama

ROOT = Path(__file__).parent.parent.parent
CHAT = [{"role": "user", "content": "Who are you?"}]


def test_both_answer_the_same_chat_and_survive_each_other(tmp_path):
    make_llama(tmp_path / "weights")
    shutil.copy(next((ROOT / "models").glob("*.gguf")), tmp_path / "small.gguf")
    (tmp_path / "hub.yaml").write_text("parameters: {model: weights}\n")
    (tmp_path / "gguf.yaml").write_text("parameters: {model: small.gguf}\n")
    with ServerProcess(tmp_path, environment={"OMP_NUM_THREADS": "1"}) as server, server.client as client:

        def ask(model: str) -> str:
            answer = client.chat.completions.create(model=model, messages=CHAT, max_tokens=8, temperature=0)
            assert answer.usage is not None and answer.usage.prompt_tokens > 0
            return answer.choices[0].message.content or ""

        def die(worker: int) -> None:
            os.kill(worker, signal.SIGKILL)

        first = ask("hub")
        (of_hub,) = server.workers()
        assert ask("gguf").startswith("I am pocket")
        (of_gguf,) = server.workers().keys() - {of_hub}
        die(of_hub)
        assert ask("gguf").startswith("I am pocket") and of_gguf in server.workers()
        assert ask("hub") == first, "a new process, the same answer"
        (of_hub,) = server.workers().keys() - {of_gguf}
        die(of_gguf)
        assert ask("hub") == first and of_hub in server.workers()
        assert ask("gguf").startswith("I am pocket")
        assert len(server.workers()) == 2
