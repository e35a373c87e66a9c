"""From raw samples to benchmarks/RESULTS.md. Pure: text from data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

US, SERVER, PYTHON = "llmgallery", "llama-server", "llama-cpp-python"
PEERS = (SERVER, PYTHON)
STEADY, WHOLE = "steady_per_second", "tokens_per_second"
Data = Mapping[str, Any]
Line = Sequence[str]

HEAD = """# Results

Written by `python -m benchmarks.compare` from [results.json](results.json), which holds every sample; not edited by hand.
Medians of the samples; all sides in one run, alternating, on the same model files, threads, context, slots and batch.
A ratio above 1 means that {us} is faster. *By controls*: divided by the ratio of two bare `llama_decode` loops, one over each
side's own libllama, at the same number of sequences: what is left when the machine code is equal.
"""


def render(data: Data) -> str:
    """RESULTS.md. `data`: results.json; a part that was not run is left out."""
    parts = data["parts"]
    written = [section(parts[name]) for name, section in SECTIONS.items() if name in parts]
    return "\n".join([HEAD.format(us=US), verdicts(parts), *written, runs(parts)]).rstrip() + "\n"


def table(headings: Line, rows: Iterable[Line], *, numbers: bool = True) -> str:
    """`numbers`: all columns but the first stand right."""
    lines = [headings, ["---"] + ["---:" if numbers else "---"] * (len(headings) - 1), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


# --- samples to figures ------------------------------------------------------------------------------------------------------


def middle(samples: Iterable[Any], key: str | None = None) -> float | None:
    """The median of the samples, or of one of their fields; None when there is none."""
    values = [sample if key is None else sample[key] for sample in samples]
    known = [value for value in values if value is not None]
    return median(known) if known else None


def ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def paired(ours: Sequence[float | None], theirs: Sequence[float | None]) -> float | None:
    """The median of the ratios sample by sample: each pair was measured one after the other."""
    return middle(ratio(mine, other) for mine, other in zip(ours, theirs, strict=False))


def rates(streams: Data, side: str, key: str) -> list[float | None]:
    return [sample[key] for sample in streams.get(side, ())]


def decode_ratios(model: Data, count: str, peer: str) -> tuple[float | None, float | None]:
    """Raw, and divided by the controls' ratio."""
    streams, controls = model["streams"][count], model["controls"].get(count, {})
    # A server of one sequence never runs several: only whole waves can be compared with it.
    key = WHOLE if peer == PYTHON else STEADY
    raw = paired(rates(streams, US, key), rates(streams, peer, key))
    control = paired(controls.get(US, ()), controls.get(peer, ()))
    return raw, ratio(raw, control)


# --- sections ----------------------------------------------------------------------------------------------------------------


DECODED = """Tokens/s of all streams together, prompts of 128 tokens, all sent at once: while all of them run; and of whole waves,
from the first token of the first stream to the last of the last, in which some of the prompts are still read. The ratios
are of the former; those to llama-cpp-python, which serves one at a time, of the latter.
"""


def decode(part: Data) -> str:
    text = f"## Decode throughput over HTTP\n\n{DECODED}"
    for name, model in part["models"].items():
        rows = []
        for count, streams in model["streams"].items():
            shares = [shown(value) for peer in PEERS for value in decode_ratios(model, count, peer)]
            rows.append((count, *_cells(streams, STEADY), *shares))
        heads = ("streams", US, *PEERS, *(f"{word} {peer}" for peer in PEERS for word in ("vs", "by controls,")))
        slots = f"{part['about']['slots']} slots of {part['about']['context']} tokens"
        text += f"\n{name}, {slots}, while all run:\n\n{table(heads, rows)}"
        waves = [(count, *_cells(streams, WHOLE)) for count, streams in model["streams"].items()]
        text += f"\nWhole waves:\n\n{table(('streams', US, *PEERS), waves)}"
        text += f"\nBare loops, tokens/s:\n\n{_controls(model['controls'])}"
    return text + "\n" + _sides(part["sides"])


def _cells(streams: Data, key: str) -> list[str]:
    found = [(side, middle(rates(streams, side, key))) for side in (US, *PEERS)]
    return ["-" if not streams.get(side) else "never" if rate is None else f"{rate:.1f}" for side, rate in found]


def _controls(controls: Data) -> str:
    rows = [
        (count, *(f"{middle(sides[side]) or 0:.1f}" if sides.get(side) else "none" for side in (US, *PEERS)))
        for count, sides in controls.items()
    ]
    return table(("sequences", US, *PEERS), rows)


def _sides(sides: Data) -> str:
    lines = [f"- {name}: ggml {side['ggml']}; {side['features']}" for name, side in sides.items()]
    return "What each side's libllama was compiled to use:\n\n" + "\n".join(lines) + "\n"


def engine(part: Data) -> str:
    text = "## The engine alone\n\nNo HTTP, beside a bare `llama_decode` loop of the same batch; tokens/s. "
    text += "The bare loop attends as the engine does on a CPU (flash attention off); *llama.cpp's way*: with its own choice.\n"
    for name, samples in part["models"].items():
        rows = []
        for count in samples[0]:
            runs_ = [sample[count] for sample in samples]
            shares = [shown(middle(ratio(run[kind], run["bare"]) for run in runs_)) for kind in ("sampled", "greedy")]
            cells = [f"{middle(runs_, kind):.1f}" for kind in ("bare", "bare_default", "sampled", "greedy")]
            rows.append((count, *cells, *shares, f"{python_share(samples, count):.2%}"))
        heads = (
            "sequences",
            "bare",
            "bare, llama.cpp's way",
            "sampling",
            "greedy",
            "sampling/bare",
            "greedy/bare",
            "Python's share",
        )
        text += f"\n{name}:\n\n{table(heads, rows)}"
    return text


def python_share(samples: Sequence[Data], count: str) -> float:
    return float(median(sample[count]["python_share"] for sample in samples))


def prefix(part: Data) -> str:
    about = part["about"]
    text = f"## A shared prefix\n\n{about['requests']} requests at once, {about['prefix']} tokens in common, cold.\n"
    for name, sides in part["models"].items():
        rows = [
            (
                side,
                f"{middle(samples, 'first_token_p50'):.2f} s",
                f"{middle(samples, 'prompt_tokens'):.0f}",
                f"{middle(samples, 'cached_tokens'):.0f}",
            )
            for side, samples in sides.items()
        ]
        text += f"\n{name}:\n\n{table(('server', 'time to first token', 'prompt tokens', 'of which cached'), rows)}"
    return text


def prefix_ratio(sides: Data) -> float | None:
    """Our time to first token as a share of llama-server's."""
    firsts = [[sample["first_token_p50"] for sample in sides[side]] for side in (US, SERVER)]
    return paired(*firsts)


def stall(part: Data) -> str:
    about = part["about"]
    text = (
        f"## A long prompt among running streams\n\n{about['streams']} streams run, a prompt of {about['prompt']} tokens comes.\n"
    )
    for name, sides in part["models"].items():
        rows = [
            (
                side,
                *(f"{1000 * (middle(samples, key) or 0):.1f} ms" for key in ("idle_p95", "loaded_p95", "loaded_max")),
                shown(growth(samples)),
                f"{middle(samples, 'first_token'):.2f} s",
            )
            for side, samples in sides.items()
        ]
        heads = ("server", "inter-token p95, idle", "with the prompt", "longest pause", "growth", "the prompt's first token")
        text += f"\n{name}:\n\n{table(heads, rows)}"
    return text


def growth(samples: Sequence[Data]) -> float | None:
    return middle(ratio(sample["loaded_p95"], sample["idle_p95"]) for sample in samples)


def memory(part: Data) -> str:
    text = "## Memory\n\nRssAnon of the process that holds the model, MB: when it has loaded, and after the decode runs.\n"
    for name, sides in part["models"].items():
        rows = [(side, f"{found['loaded'] / 1e6:.0f}", f"{found['used'] / 1e6:.0f}") for side, found in sides.items()]
        text += f"\n{name}, {part['about']['slots']} slots of {part['about']['context']} tokens:\n\n"
        text += table(("server", "loaded", "used"), rows)
    return text


SECTIONS = {"decode": decode, "engine": engine, "prefix": prefix, "stall": stall, "memory": memory}


# --- what it must reach ------------------------------------------------------------------------------------------------------


def verdicts(parts: Data) -> str:
    """Every goal whose part was run, its figure, and whether it is reached."""
    rows = [
        (goal, said, "yes" if reached else "**no**")
        for goals in (_decode_goals, _engine_goals, _prefix_goals, _stall_goals, _memory_goals)
        for goal, said, reached in goals(parts)
    ]
    return "## What it must reach\n\n" + table(("goal", "measured", "reached"), rows, numbers=False)


def _decode_goals(parts: Data) -> Iterable[tuple[str, str, bool]]:
    for name, model in parts.get("decode", {"models": {}})["models"].items():
        for peer, goals in ((SERVER, {"1": 1.0, "8": 1.0, "16": 1.0}), (PYTHON, {"8": 2.0})):
            for count, least in goals.items():
                if count not in model["streams"]:
                    continue
                raw, net = decode_ratios(model, count, peer)
                if raw is not None:
                    goal = f"{name}: decode at {count} streams at least {least:g} of {peer}'s"
                    yield goal, f"{shown(raw)} ({shown(net)} by controls)", raw >= least


def _engine_goals(parts: Data) -> Iterable[tuple[str, str, bool]]:
    for name, samples in parts.get("engine", {"models": {}})["models"].items():
        for count in samples[0]:
            share = middle(ratio(sample[count]["sampled"], sample[count]["bare"]) for sample in samples) or 0.0
            yield f"{name}: the engine at {count} sequences at least 0.95 of a bare loop", shown(share), share >= 0.95
        if name == "135M" and "8" in samples[0]:
            share = python_share(samples, "8")
            yield f"{name}: Python's share of a step at 8 sequences under 3%", f"{share:.2%}", share < 0.03


def _prefix_goals(parts: Data) -> Iterable[tuple[str, str, bool]]:
    for name, sides in parts.get("prefix", {"models": {}})["models"].items():
        if (share := prefix_ratio(sides)) is not None:
            yield f"{name}: first token after a shared prefix in at most half of {SERVER}'s time", shown(share), share <= 0.5


def _stall_goals(parts: Data) -> Iterable[tuple[str, str, bool]]:
    for name, sides in parts.get("stall", {"models": {}})["models"].items():
        if (times := growth(sides[US])) is not None:
            yield f"{name}: a long prompt lets inter-token p95 grow to at most 3 times", shown(times), times <= 3


def _memory_goals(parts: Data) -> Iterable[tuple[str, str, bool]]:
    for name, sides in parts.get("memory", {"models": {}})["models"].items():
        if SERVER in sides:
            more = (sides[US]["used"] - sides[SERVER]["used"]) / 1e6
            yield f"{name}: memory within 60 MB of {SERVER}'s", f"{more:+.0f} MB", more <= 60


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def runs(parts: Data) -> str:
    """How each part was made, model by model."""
    rows = []
    for name, part in parts.items():
        for model, made in part["made"].items():
            rows.append((name, model, f"`{made['command']}`", made["date"], str(made["repeats"]), made["machine"]))
    return "## How\n\n" + table(("part", "model", "command", "date", "samples", "machine"), rows, numbers=False)
