"""echo: what it answers, and how it waits, fails and dies when told to."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Environment
from listening import Listener

from llmgallery.backends.base import Job
from llmgallery.backends.echo import vocab
from llmgallery.backends.loader import specs
from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import LoadError
from llmgallery.core.sampling import Sampling


def load(listener: Listener, context_size: int | None = None, parallel: int | None = None, **options: object):
    backend = specs()["echo"].load()()
    loaded = backend.load(ModelConfig(options=options, context_size=context_size, parallel=parallel), [], listener)
    return backend, loaded


def prompt_of(backend, loaded, *messages: tuple[str, str]) -> list[int]:
    template = Environment().from_string(loaded.chat_template)
    text = template.render(
        messages=[{"role": role, "content": content} for role, content in messages], add_generation_prompt=True
    )
    return backend.tokenize(text, special=True, bos=False)


@pytest.fixture
def listener():
    return Listener()


@pytest.fixture
def started(listener):
    """Start an echo of these options; closed at the end."""
    made = []

    def start(**options):
        backend, loaded = load(listener, **options)
        made.append(backend)
        return backend, loaded

    yield start
    for backend in made:
        backend.close()


def test_it_answers_with_the_last_user_message(started, listener):
    backend, loaded = started()
    prompt = prompt_of(backend, loaded, ("system", "Be brief."), ("user", "one"), ("assistant", "one"), ("user", "zwöi 🌍"))
    backend.submit(Job(1, prompt, Sampling()))
    listener.wait_for_end(1)
    assert listener.text(1) == "zwöi 🌍"
    assert listener.last(1).finish == "stop"
    assert listener.last(1).usage.prompt_tokens == len(prompt)
    assert (loaded.context_size, loaded.slots, loaded.vocab_size) == (2048, 8, vocab.SIZE)


def test_a_prompt_without_marks_is_repeated(started, listener):
    backend, _ = started()
    backend.submit(Job(1, backend.tokenize("Once upon", special=True, bos=True), Sampling()))
    listener.wait_for_end(1)
    assert listener.text(1) == "Once upon"


def test_a_fixed_reply_and_a_limit(started, listener):
    backend, _ = started(reply="yes, of course")
    backend.submit(Job(1, [65], Sampling(max_tokens=3)))
    backend.submit(Job(2, [65], Sampling()))
    listener.wait_for_end(1, 2)
    assert (listener.text(1), listener.last(1).finish) == ("yes", "length")
    assert (listener.text(2), listener.last(2).finish) == ("yes, of course", "stop")


def test_ignore_eos_begins_anew(started, listener):
    backend, _ = started(reply="ab")
    backend.submit(Job(1, [65], Sampling(max_tokens=5, ignore_eos=True)))
    listener.wait_for_end(1)
    assert (listener.text(1), listener.last(1).finish) == ("ababa", "length")


def test_the_context_ends_an_answer(started, listener):
    backend, loaded = started(context_size=16, reply="x" * 100)
    backend.submit(Job(1, [65] * 10, Sampling()))
    listener.wait_for_end(1)
    assert loaded.context_size == 16
    assert (listener.text(1), listener.last(1).finish) == ("xxxxxx", "length")


def test_many_share_a_step(started, listener, tmp_path):
    gate = tmp_path / "gate"
    backend, _ = started(gate=str(gate), parallel=3)
    for id in range(5):
        backend.submit(Job(id, backend.tokenize("hello", special=False, bos=False), Sampling()))
    gate.touch()
    listener.wait_for_end(*range(5))
    assert {listener.text(id) for id in range(5)} == {"hello"}
    assert max(stats.sequences for stats in listener.steps) == 3


def test_a_gate_holds_answers_after_some_tokens(started, listener, tmp_path):
    gate = tmp_path / "gate"
    backend, _ = started(gate=str(gate), gate_after=2)
    backend.submit(Job(1, list(b"hello"), Sampling()))
    listener.wait(lambda: 1 in listener.outputs and listener.text(1) == "he")
    gate.touch()
    listener.wait_for_end(1)
    assert listener.text(1) == "hello"


@pytest.mark.parametrize("options", [{"gate": "/nowhere/at/all"}, {"delay_ms": 1e9}])
def test_a_cancel_ends_a_waiting_step_at_once(started, listener, options):
    backend, _ = started(**options)
    backend.submit(Job(1, list(b"hello"), Sampling()))
    backend.submit(Job(2, list(b"hello"), Sampling()))
    backend.cancel(1)
    listener.wait_for_end(1)
    assert listener.finishes(1) == ["cancelled"] and not listener.finishes(2)
    backend.close()
    assert listener.finishes(2) == ["cancelled"]


def test_a_delay_slows_but_changes_nothing(started, listener):
    backend, _ = started(delay_ms=1)
    backend.submit(Job(1, list(b"hello"), Sampling()))
    listener.wait_for_end(1)
    assert listener.text(1) == "hello"


def test_loading_tells_its_progress_and_waits_at_its_gate(listener, tmp_path):
    gate = tmp_path / "gate"
    loaded = threading.Event()

    def run() -> None:
        backend, _ = load(listener, load_steps=4, load_gate=str(gate))
        loaded.set()
        backend.close()

    thread = threading.Thread(target=run)
    thread.start()
    listener.wait(lambda: listener.fractions == [0.25, 0.5, 0.75, 1.0])
    assert not loaded.is_set()
    gate.touch()
    assert loaded.wait(10)
    thread.join()


def test_loading_fails_when_told(listener):
    with pytest.raises(LoadError, match="out of coffee"):
        load(listener, fail_load="out of coffee")


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT"])
def test_it_kills_its_process_in_a_step(name):
    code = f"""
import threading
from llmgallery.backends.base import Job
from llmgallery.backends.echo.backend import EchoBackend
from llmgallery.config.model import ModelConfig
from llmgallery.core.sampling import Sampling

class Emit:
    def progress(self, fraction): pass
    def step(self, outputs, stats): print("".join(output.text for output in outputs), end="", flush=True)
    def fatal(self, error): raise error

backend = EchoBackend()
backend.load(ModelConfig(options=dict(crash_on="boom", crash_after=2, crash_signal="{name}")), [], Emit())
backend.submit(Job(1, list(b"big boom"), Sampling()))
threading.Event().wait(10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == -signal.Signals[name]
    assert done.stdout == "bi"


@given(st.text())
def test_tokens_are_the_text(text):
    assert vocab.detokenize(vocab.tokenize(text, special=False)) == text
    assert vocab.detokenize(vocab.tokenize(text, special=True)) == text


def test_marks_are_tokens_only_when_special():
    assert vocab.tokenize("a<|end|>b", special=True) == [97, vocab.END, 98]
    assert vocab.END not in vocab.tokenize("<|end|>", special=False)


def test_the_specs_import_no_engine():
    code = "import sys, llmgallery.backends.loader as loader; loader.specs(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "llmgallery.backends.llamacpp.spec" in loaded
    assert not {"llama_cpp", "numpy", "llmgallery.engine.step"} & set(loaded)
