"""What the worker says to its parent."""

import socket
import subprocess
import sys
import threading

from llmgallery.wire.channel import LENGTH, ChildChannel, decode_report, encode
from llmgallery.wire.frames import Result
from llmgallery.worker.outbox import Outbox

DEADLINE = 20
FRAMES = 200
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


def test_who_sends_never_waits_and_every_frame_arrives_in_order() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outbox = Outbox(ChildChannel(theirs))
        sent = [Result(number, text="x" * (number * 97 % 50_000)) for number in range(300)]
        for frame in sent:
            outbox.send(frame)  # more than the kernel takes before anybody reads
        whole = b"".join(encode(frame) for frame in sent)
        ours.settimeout(DEADLINE)
        read = bytearray()
        while len(read) < len(whole):
            read += ours.recv(1 << 16)
        assert read == whole
        outbox.flush(DEADLINE)
        outbox.send(Result(300))
        assert ours.recv(1 << 16) == encode(Result(300))


def test_frames_of_several_threads_stay_whole() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outbox = Outbox(ChildChannel(theirs))
        threads = [threading.Thread(target=send_all, args=(outbox, thread)) for thread in range(4)]
        for thread in threads:
            thread.start()
        ours.settimeout(DEADLINE)
        reader, seen = ours.makefile("rb"), [0] * 4
        for _ in range(4 * FRAMES):
            report = decode_report(reader.read(LENGTH.unpack(reader.read(LENGTH.size))[0]))
            assert isinstance(report, Result)
            assert report.text == str(seen[report.id]) * 3000
            seen[report.id] += 1
        for thread in threads:
            thread.join()


def send_all(outbox: Outbox, thread: int) -> None:
    for number in range(FRAMES):
        outbox.send(Result(thread, text=str(number) * 3000))
