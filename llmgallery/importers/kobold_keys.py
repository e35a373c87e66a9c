"""What is in a KoboldCpp settings file: all the options of its command line. Tables; source: KoboldCpp 1.102's options."""

from __future__ import annotations

from typing import Any

from llmgallery.importers.draft import Row

_CACHE_TYPES = {"0": "f16", "1": "q8_0", "2": "q4_0"}
_CACHES = ("f16", "bf16", "q8_0", "q5_1", "q4_0")


def cache_type(value: str) -> str | None:
    """`quantkv`: a number, or the name of a type; None = KoboldCpp's default, which is ours. Raises ValueError."""
    name = _CACHE_TYPES.get(value, value)
    if name not in _CACHES:
        raise ValueError(f"{value} is no type of the KV cache that is known here: 0, 1, 2 or {', '.join(_CACHES)}")
    return None if name == "f16" else name


def _batch(value: int) -> int:
    if value < 1:
        raise ValueError("prompts are always computed in batches here: not imported")
    return value


ROWS = (
    Row(("contextsize",), "context_size", int),
    Row(("gpulayers",), "gpu_layers", int, neutral=(-1,)),
    Row(("threads",), "threads", int, neutral=(-1, 0)),
    Row(("blasthreads",), "options.threads_batch", int, neutral=(-1, 0)),
    Row(("batchsize", "blasbatchsize"), "parameters.batch", int, neutral=(512,), convert=_batch),
    Row(("usemmap",), "mmap", bool, neutral=(False,)),
    Row(("usemlock",), "mmlock", bool, neutral=(False,)),
    Row(("lowvram",), "no_kv_offloading", bool, neutral=(False,)),
    Row(("maingpu",), "main_gpu", int, neutral=(-1,)),
    Row(("defaultgenamt",), "parameters.max_tokens", int),
)
"""Those that one key of a model file means as well."""

DEFAULTS: dict[str, tuple[Any, ...]] = {
    "port": (5001,), "port_param": (5001,), "ropeconfig": ([0.0, 10000.0], [0, 10000]), "loramult": (1.0,),
    "draftamount": (8,), "draftgpulayers": (999,), "visionmaxres": (1024,), "visionmintokens": (-1,),
    "visionmaxtokens": (-1,), "moeexperts": (-1,), "maxrequestsize": (32,), "multiuser": (1, True), "splitmode": ("layer",),
    "sdtiledvae": (768,), "sdloramult": (1.0, [1.0]), "sdconvdirect": ("off",), "ttsmaxlen": (4096,), "sdmaingpu": (-1,),
    "hordegenlen": (1024,),
}  # fmt: skip
"""Values that say nothing, beside empty ones and false."""

SECRETS = ("hordekey", "adminpassword")
"""Keys whose values are nobody's business."""

_IMAGES = "images are not made here"
_SPEECH = "speech is not made or heard here"
_HORDE = "there is no worker for the AI Horde here"
_SCREEN = "it is for KoboldCpp's own window or terminal"
_STORIES = "stories are the client's"
_ADMIN = "models are switched by name here, and the server's own commands manage them"

REASONS: dict[str, str] = {
    **dict.fromkeys(("showgui", "skiplauncher", "launch", "quiet", "debugmode", "foreground", "highpriority", "cli"), _SCREEN),
    **dict.fromkeys(("analyze", "benchmark", "prompt", "testmemory", "onready", "unpack", "exportconfig", "istemplate"), _SCREEN),
    **dict.fromkeys(("preloadstory", "savedatafile", "multiplayer"), _STORIES),
    **dict.fromkeys(("admin", "admindir", "singleinstance", "routermode", "adminunloadtimeout", "baseconfig"), _ADMIN),
    "multiuser": "requests always run side by side, as many as `parallel` says",
    "noshift": "a conversation that is too long is refused, never cut",
    "smartcontext": "a conversation that is too long is refused, never cut",
    "nofastforward": "what a prompt shares with the one before is always kept",
    "useswa": "options.swa_full: false keeps only the window of layers that have one",
    "overridenativecontext": "parameters.rope_freq_base and rope_freq_scale set the scaling",
    "ropeconfig": "no scale that is known: parameters.rope_freq_base and rope_freq_scale set the scaling",
    "rowsplit": "weights are split over GPUs by layers",
    "splitmode": "weights are split over GPUs by layers",
    "usevulkan": "the installed llama.cpp decides what it runs on; main_gpu and tensor_split choose among its GPUs",
    "useclblast": "the installed llama.cpp decides what it runs on",
    "device": "the installed llama.cpp decides what it runs on; main_gpu and tensor_split choose among its GPUs",
    "noavx2": "the installed llama.cpp decides what it runs on",
    "failsafe": "the installed llama.cpp decides what it runs on",
    "moeexperts": "models use as many experts as they were made with",
    "moecpu": "layers are on a GPU as a whole, or not at all",
    "overridetensors": "layers are on a GPU as a whole, or not at all",
    "nobostoken": "a prompt begins with the BOS token if the model says so; template.bos_token sets what templates write",
    "enableguidance": "negative prompts are not used yet",
    "genlimit": "a request may ask for as many tokens as its context holds",
    "websearch": "the web is not searched here",
    "remotetunnel": "no tunnel is opened here",
    "mcpfile": "tool servers are the client's",
    "ssl": "put a reverse proxy in front for HTTPS",
    "ratelimit": "requests are not counted by address",
    "gendefaults": "write them below parameters",
    "downloaddir": "models are looked for in the models folder",
    "nocertify": "certificates are always checked",
    "mmprojcpu": "images are not read yet",
    "adminpassword": _ADMIN,
    "draftgpulayers": "the draft model is on the GPU as a whole",
    "draftgpusplit": "the draft model is on one GPU",
}
"""Why a key has no counterpart, where more can be said than that."""

_PREFIXES = {
    **dict.fromkeys(("tts", "whisper", "music"), _SPEECH),
    "sd": _IMAGES,
    "horde": _HORDE,
    "vision": "images are not read yet",
    "autofit": "memory is always planned before a model is loaded",
}


def reason(name: str) -> str:
    """Why a key is not imported; "" = only that it is not."""
    return REASONS.get(name) or next((why for start, why in _PREFIXES.items() if name.startswith(start)), "")


def says_nothing(name: str, value: Any) -> bool:
    """The value is empty, or KoboldCpp's default."""
    return value in (None, "", False, [], {}) or value == 0 or value in DEFAULTS.get(name, ())
