"""The thread that writes to the parent."""

import subprocess
import sys

DEADLINE = 20
UNSENDABLE = """
import socket, threading
from llmgallery.wire.channel import ChildChannel
from llmgallery.wire.frames import Result
from llmgallery.worker.outbox import Outbox

ours, theirs = socket.socketpair()
Outbox(ChildChannel(theirs)).send(Result(1, text=chr(0xD800)))
threading.Event().wait()
"""


def test_a_frame_that_cannot_be_sent_ends_the_worker_instead_of_its_voice() -> None:
    result = subprocess.run([sys.executable, "-c", UNSENDABLE], capture_output=True, text=True, timeout=DEADLINE)
    assert result.returncode == 1
    assert "UnicodeEncodeError" in result.stderr
