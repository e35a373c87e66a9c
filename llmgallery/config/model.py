"""A model's YAML as typed structs: LocalAI's key names, and ours. config/load.py fills them; nothing here reads a file.

Every key has its meaning in `Meta(description=...)`: the JSON schema, the README's table and error messages are made from it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Magnitude = Annotated[float, Meta(ge=0, le=100)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
LastN = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Demand = Literal["error", "warn", "ignore"]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A mapping of the YAML."""


class Parameters(Section, frozen=True):
    """The weights, and the sampling defaults of requests that do not ask."""

    model: Annotated[str | None, Meta(description="weights: Hub reference, path under the models folder, or absolute path")] = (
        None
    )
    temperature: Annotated[Annotated[float, Meta(ge=0, le=100)] | None, Meta(description="0 = always the likeliest token")] = None
    top_k: Annotated[Annotated[int, Meta(ge=0)] | None, Meta(description="keep the k likeliest tokens; 0 = all")] = None
    top_p: Annotated[Probability | None, Meta(description="keep the likeliest tokens up to this probability")] = None
    min_p: Annotated[Probability | None, Meta(description="drop tokens less likely than this share of the likeliest")] = None
    typical_p: Annotated[Probability | None, Meta(description="locally typical sampling; 1 = off")] = None
    seed: Annotated[int | None, Meta(description="-1 = random")] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=-1)] | None,
        Meta(description="length limit of an answer, 1 or more; -1 = to the context's end"),
    ] = None
    repeat_penalty: Annotated[Annotated[float, Meta(ge=0)] | None, Meta(description="1 = off")] = None
    repeat_last_n: Annotated[
        Annotated[int, Meta(ge=-1)] | None, Meta(description="how many tokens the penalties look back; -1 = all")
    ] = None
    presence_penalty: Annotated[Penalty | None, Meta(description="0 = off")] = None
    frequency_penalty: Annotated[Penalty | None, Meta(description="0 = off")] = None
    ignore_eos: Annotated[bool | None, Meta(description="go on after the end token")] = None
    logit_bias: Annotated[dict[str, float] | None, Meta(description="token id: added logit")] = None
    top_n_sigma: Annotated[
        Annotated[float, Meta(ge=-1, le=1000)] | None,
        Meta(description="keep logits within so many standard deviations of the highest; -1 = off"),
    ] = None
    xtc_probability: Annotated[
        Probability | None, Meta(description="how often XTC drops all but the last of the tokens above its threshold; 0 = off")
    ] = None
    xtc_threshold: Annotated[Probability | None, Meta(description="probability from which XTC drops; above 0.5 = off")] = None
    dry_multiplier: Annotated[Magnitude | None, Meta(description="DRY: penalty of what prolongs a repetition; 0 = off")] = None
    dry_base: Annotated[
        Annotated[float, Meta(ge=1, le=100)] | None, Meta(description="DRY: growth of the penalty with each repeated token")
    ] = None
    dry_allowed_length: Annotated[Count | None, Meta(description="DRY: repetitions of fewer tokens are free")] = None
    dry_penalty_last_n: Annotated[LastN | None, Meta(description="how many tokens DRY looks back; 0 = off, -1 = all")] = None
    dry_sequence_breakers: Annotated[list[str] | None, Meta(description="texts across which DRY sees no repetition")] = None
    mirostat: Annotated[
        Annotated[int, Meta(ge=0, le=2)] | None,
        Meta(description="1 or 2 = Mirostat in place of all samplers but temperature and logit_bias; 0 = off"),
    ] = None
    mirostat_tau: Annotated[Magnitude | None, Meta(description="Mirostat: surprise to aim at, in bits")] = None
    mirostat_eta: Annotated[Magnitude | None, Meta(description="Mirostat: learning rate")] = None
    dynatemp_range: Annotated[
        Magnitude | None, Meta(description="how far the temperature moves up and down with the entropy; 0 = off")
    ] = None
    dynatemp_exponent: Annotated[Magnitude | None, Meta(description="how the entropy maps to the temperature; 1 = linear")] = None
    samplers: Annotated[
        str | list[str] | None,
        Meta(description="which samplers act, in this order: llama.cpp's names, or one text of its letters"),
    ] = None
    n: Annotated[Annotated[int, Meta(ge=1, le=128)] | None, Meta(description="answers to a request that does not say")] = None
    echo: Annotated[bool | None, Meta(description="completions begin with their prompt unless they say")] = None
    batch: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="most tokens computed in one decode")] = None
    n_keep: int | None = None
    keep: int | None = None
    tfz: float | None = None
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=20)] | bool | None,
        Meta(description="tell log probabilities unless a request says; a number: with as many likeliest tokens"),
    ] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=20)] | None, Meta(description="with as many likeliest tokens, where logprobs is on")
    ] = None
    negative_prompt: str | None = None
    negative_prompt_scale: float | None = None
    rope_freq_base: Annotated[Annotated[float, Meta(ge=0)] | None, Meta(description="RoPE base; 0 = the model's own")] = None
    rope_freq_scale: Annotated[Annotated[float, Meta(ge=0)] | None, Meta(description="RoPE scale; 0 = the model's own")] = None
    tokenizer: Annotated[str | None, Meta(description="folder of another tokenizer than the weights' own")] = None
    clip_skip: int | None = None
    encoding_format: str | None = None
    pooling: Annotated[Literal["none", "mean", "cls", "last", "rank"] | None, Meta(description="the same as options.pooling")] = (
        None
    )
    pooling_half_life_tokens: float | None = None
    translate: bool | None = None
    language: str | None = None


class Template(Section, frozen=True):
    """How messages become a prompt. Jinja in chat_template[_file], a preset's name, a KoboldCpp adapter, LocalAI's Go templates,
    with `engine: gatogpt` GatoGPT's, which replace `{{ Key }}` and nothing else, or with `engine: ollama` Ollama's."""

    preset: Annotated[
        str | None, Meta(description="a named prompt format, such as chatml, or presets/NAME.yaml beside this file")
    ] = None
    chat_template: Annotated[str | None, Meta(description="a Jinja chat template")] = None
    chat_template_file: Annotated[str | None, Meta(description="a file beside this YAML that holds one")] = None
    bos_token: Annotated[str | None, Meta(description="what the template gets as bos_token")] = None
    eos_token: Annotated[str | None, Meta(description="what the template gets as eos_token")] = None
    use_tokenizer_template: Annotated[bool | None, Meta(description="use the template that came with the weights")] = None
    engine: Annotated[
        Literal["go", "gatogpt", "ollama"] | None, Meta(description="language of the keys below; else go, LocalAI's")
    ] = None
    chat: Annotated[
        str | None, Meta(description="around the joined messages; GatoGPT's ChatTemplate, or the whole TEMPLATE of Ollama")
    ] = None
    chat_message: Annotated[str | None, Meta(description="each message; GatoGPT's ChatMessageTemplate")] = None
    completion: Annotated[str | None, Meta(description="the prompt of a completion; GatoGPT's InstructTemplate")] = None
    edit: Annotated[str | None, Meta(description="the prompt of an edit (Go)")] = None
    function: Annotated[str | None, Meta(description="in place of chat when tools are on offer (Go)")] = None
    join_chat_messages_by_character: Annotated[str | None, Meta(description="between messages; else a line's end")] = None
    multimodal: Annotated[str | None, Meta(description="the text of a message with images (Go)")] = None
    reply_prefix: Annotated[str | None, Meta(description="what every answer begins with, before what the model writes")] = None
    generation: Annotated[str | None, Meta(description="GatoGPT's ChatMessageGenerationTemplate")] = None
    variables: Annotated[dict[str, str], Meta(description="what GatoGPT's keys stand for, such as InputPrefix")] = {}
    adapter: Annotated[
        dict[str, Any] | str,
        Meta(description="KoboldCpp's: user_start, user_end, assistant_start, ..., flat or nested; or a name, or AutoGuess"),
    ] = {}

    @property
    def is_written(self) -> bool:
        """It says how chats are written, so that prompts can be made without the weights."""
        guessed = isinstance(self.adapter, str) and self.adapter.lower() == "autoguess"
        said = (self.preset, self.chat_template, self.chat, self.chat_message, self.function, self.engine == "gatogpt")
        return not self.use_tokenizer_template and (any(said) or bool(self.adapter and not guessed))


class KeyValue(Section, frozen=True):
    """A replacement: what `key` (a regex) matches becomes `value`."""

    key: str
    value: str


class Trigger(Section, frozen=True):
    """A word that switches a grammar on."""

    word: str


class Grammar(Section, frozen=True):
    """How tool calls constrain the answer."""

    disable: Annotated[bool | None, Meta(description="models are not told of that function, as no grammar makes them call")] = (
        None
    )
    parallel_calls: bool | None = None
    disable_parallel_new_lines: bool | None = None
    mixed_mode: bool | None = None
    no_mixed_free_string: bool | None = None
    prefix: str | None = None
    expect_strings_after_json: bool | None = None
    properties_order: str | None = None
    schema_type: str | None = None
    triggers: list[Trigger] = []


class Function(Section, frozen=True):
    """LocalAI's `function:` block."""

    disable_no_action: Annotated[
        bool | None, Meta(description="models are not told of LocalAI's function `answer`, by which they call none")
    ] = None
    no_action_function_name: Annotated[str | None, Meta(description="what that function is called; else answer")] = None
    no_action_description_name: Annotated[str | None, Meta(description="how that function is described")] = None
    response_regex: Annotated[list[str], Meta(description="regexes with the groups name and arguments: a call each")] = []
    json_regex_match: Annotated[
        list[str], Meta(description="regexes whose first group is the JSON of calls; the first that matches counts")
    ] = []
    argument_regex: Annotated[
        list[str], Meta(description="regexes with the groups key and value, for arguments that are no JSON")
    ] = []
    argument_regex_key_name: Annotated[
        str | None, Meta(description="group of argument_regex that holds an argument's name; else key")
    ] = None
    argument_regex_value_name: Annotated[str | None, Meta(description="group that holds its value; else value")] = None
    replace_function_results: Annotated[
        list[KeyValue], Meta(description="regex (key) and text (value) to replace it by, before calls are looked for")
    ] = []
    replace_llm_results: Annotated[
        list[KeyValue], Meta(description="the same for the whole answer where functions are on offer")
    ] = []
    capture_llm_results: Annotated[list[str], Meta(description="regexes whose first group is the text beside calls")] = []
    automatic_tool_parsing_fallback: Annotated[
        bool | None, Meta(description="arguments that are plain text become {query: TEXT}")
    ] = None
    function_name_key: Annotated[
        str | None, Meta(description="key, or group of response_regex, that holds a call's name; else name")
    ] = None
    function_arguments_key: Annotated[str | None, Meta(description="the same of its arguments; else arguments")] = None
    xml_format_preset: Annotated[
        str | None, Meta(description="calls stand in the tags of qwen3-coder, glm-4.5, minimax-m2, kimi-k2, functionary, ...")
    ] = None
    xml_format: Annotated[
        dict[str, Any] | None,
        Meta(description="the tags themselves: tool_start, tool_sep, key_start, key_val_sep, val_end, tool_end, ..."),
    ] = None
    disable_peg_parser: Annotated[
        bool | None, Meta(description="of the tags of those presets only `<tool_call>` and `<function=` are looked for")
    ] = None
    grammar: Grammar = Grammar()


class OnUnsupported(Section, frozen=True):
    """What to do with a request field that this model cannot honour. One word in its place holds for both."""

    IN_A_WORD: ClassVar = ("demands", "hints")
    demands: Annotated[Demand, Meta(description="tools, response_format, images, suffix, and what else the model lacks")] = (
        "error"
    )
    hints: Annotated[Demand, Meta(description="user, metadata, reasoning_effort, store, service_tier, unknown fields")] = "ignore"


class Limits(Section, frozen=True):
    """LocalAI's per-model limits."""

    max_concurrent: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="requests that run at once; more get 503")] = (
        None
    )
    retry_after_seconds: Annotated[Annotated[int, Meta(ge=0)] | None, Meta(description="what such a 503 says in Retry-After")] = (
        None
    )


class ModelConfig(Section, frozen=True):
    """One model file. Load keys (LOAD_KEYS) start a new worker when they change; all others act at the next request."""

    name: Annotated[str | None, Meta(description="what requests call it; else the file's stem")] = None
    aliases: Annotated[list[str], Meta(description="other names; may be globs such as gpt-4o*")] = []
    description: Annotated[str | None, Meta(description="shown in lists")] = None
    owned_by: Annotated[str | None, Meta(description="owned_by in GET /v1/models")] = None
    usage: Annotated[str | None, Meta(description="free text: how the model is meant to be used")] = None
    backend: Annotated[str | None, Meta(description="the engine; else recognised from the files")] = None
    model: Annotated[str | None, Meta(description="the same as parameters.model")] = None
    model_base_name: Annotated[str | None, Meta(description="stem of the weights file in a repo that holds several")] = None
    parameters: Annotated[Parameters, Meta(description="the weights and the sampling defaults")] = Parameters()

    context_size: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="tokens of prompt and answer; else the model's own, or what memory holds"),
    ] = None
    parallel: Annotated[Annotated[int, Meta(ge=1, le=256)] | None, Meta(description="requests decoded together")] = None
    gpu_layers: Annotated[Annotated[int, Meta(ge=-1)] | None, Meta(description="layers on the GPU; -1 = all")] = None
    threads: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="CPU threads; else the cores of the machine")] = None
    mmap: Annotated[bool | None, Meta(description="map the weights instead of reading them")] = None
    mmlock: Annotated[bool | None, Meta(description="lock the weights in memory")] = None
    f16: Annotated[bool | None, Meta(description="KV cache in F16, which is the default")] = None
    low_vram: bool | None = None
    flash_attention: Annotated[Literal["auto", "on", "off"] | bool | None, Meta(description="auto, on or off")] = None
    cache_type_k: Annotated[str | None, Meta(description="type of the K cache, such as q8_0")] = None
    cache_type_v: Annotated[str | None, Meta(description="type of the V cache, such as q8_0")] = None
    no_kv_offloading: Annotated[bool | None, Meta(description="keep the KV cache in main memory when layers are on the GPU")] = (
        None
    )
    numa: Annotated[bool | None, Meta(description="spread the work over NUMA nodes")] = None
    tensor_split: Annotated[str | list[float] | None, Meta(description="shares of the weights on each GPU")] = None
    main_gpu: Annotated[str | int | None, Meta(description="the GPU that holds what is not split")] = None
    rope_scaling: Annotated[str | None, Meta(description="none, linear, yarn or longrope")] = None
    yarn_ext_factor: Annotated[float | None, Meta(description="YaRN: share of extrapolation")] = None
    yarn_attn_factor: Annotated[float | None, Meta(description="YaRN: scale of the attention")] = None
    yarn_beta_fast: Annotated[float | None, Meta(description="YaRN: low correction dimension")] = None
    yarn_beta_slow: Annotated[float | None, Meta(description="YaRN: high correction dimension")] = None
    mmproj: str | None = None
    draft_model: Annotated[
        str | None, Meta(description="weights of a small model with the same vocabulary, whose guesses this one checks")
    ] = None
    n_draft: Annotated[
        Annotated[int, Meta(ge=0, le=64)] | None, Meta(description="most tokens guessed ahead of one request at once; 0 = none")
    ] = None
    lora_adapter: Annotated[str | None, Meta(description="one LoRA adapter, before those of lora_adapters")] = None
    lora_base: str | None = None
    lora_scale: Annotated[float | None, Meta(description="scale of lora_adapter; else 1")] = None
    lora_adapters: Annotated[
        list[str], Meta(description="LoRA adapters in GGUF, each a reference such as parameters.model is")
    ] = []
    lora_scales: Annotated[list[float], Meta(description="a scale for each of lora_adapters; else 1")] = []
    embeddings: Annotated[bool | None, Meta(description="serve embeddings; else only models made for them do")] = None
    reranking: Annotated[bool | None, Meta(description="serve reranking; else only models made for it do")] = None
    options: Annotated[
        dict[str, Any] | list[str], Meta(description="the backend's own keys; LocalAI's list of key:value is read too")
    ] = {}
    engine_args: dict[str, Any] | None = None
    type: Annotated[str | None, Meta(description="class of transformers to load: AutoModelForCausalLM, AutoModel, ...")] = None
    trust_remote_code: Annotated[bool | None, Meta(description="run Python code that came with the weights")] = None
    quantization: Annotated[
        str | None, Meta(description="quantise while loading: bnb_4bit, bnb_8bit; or what the files are: gptq")
    ] = None
    load_format: Annotated[str | None, Meta(description="safetensors, or pt: weights may be pickles, which can run code")] = None
    dtype: Annotated[str | None, Meta(description="type of the weights in memory: float32, bfloat16, float16, auto")] = None
    gpu_memory_utilization: float | None = None
    enforce_eager: bool | None = None
    swap_space: int | None = None
    max_model_len: Annotated[int | None, Meta(description="the same as context_size")] = None
    tensor_parallel_size: int | None = None
    disable_log_stats: bool | None = None
    limit_mm_per_prompt: Annotated[dict[str, int] | None, Meta(description="most images of a request: {image: 4}")] = None

    keep_alive: Annotated[
        str | int | float | None, Meta(description="unload after this idle time, such as 15m; 0 = at once, -1 = never")
    ] = None
    pinned: Annotated[bool | None, Meta(description="never unload to make room")] = None
    disabled: Annotated[bool | None, Meta(description="listed, but not served")] = None

    system_prompt: Annotated[str | None, Meta(description="system message of chats that bring none")] = None
    stopwords: Annotated[list[str], Meta(description="strings that end an answer, beside the request's own")] = []
    template: Annotated[Template, Meta(description="how messages become a prompt")] = Template()
    roles: Annotated[dict[str, str], Meta(description="other names for roles, for Go templates")] = {}
    function: Function = Function()
    grammar: str | None = None
    cutstrings: Annotated[list[str], Meta(description="regexes; what they match is cut out of answers")] = []
    extract_regex: Annotated[
        list[str], Meta(description="regexes; the first match of each is the answer, where anything matches")
    ] = []
    trimspace: Annotated[list[str], Meta(description="texts taken from an answer's beginning, with the spaces at both ends")] = []
    trimsuffix: Annotated[list[str], Meta(description="texts taken from an answer's end, with the spaces at both ends")] = []
    reasoning: dict[str, Any] | None = None
    reasoning_effort: Annotated[
        str | None, Meta(description="how long to think, for templates that ask: low, medium, high, ...")
    ] = None
    chat_template_kwargs: Annotated[dict[str, Any], Meta(description="variables for the chat template")] = {}
    on_unsupported: Annotated[
        OnUnsupported, Meta(description="fields that the model cannot honour; one word: for both kinds")
    ] = OnUnsupported()

    known_usecases: list[str] = []
    known_input_modalities: list[str] = []
    known_output_modalities: list[str] = []
    feature_flags: dict[str, Any] = {}
    limits: Annotated[Limits, Meta(description="how much one model may be asked at once")] = Limits()
    concurrency_groups: list[str] = []
    artifacts: list[dict[str, Any]] = []
    download_files: list[dict[str, Any]] = []
    mirostat: Annotated[Annotated[int, Meta(ge=0, le=2)] | None, Meta(description="the same as parameters.mirostat")] = None
    mirostat_eta: Annotated[Magnitude | None, Meta(description="the same as parameters.mirostat_eta")] = None
    mirostat_tau: Annotated[Magnitude | None, Meta(description="the same as parameters.mirostat_tau")] = None
    prompt_cache_path: str | None = None
    prompt_cache_all: bool | None = None
    prompt_cache_ro: bool | None = None
    ngqa: int | None = None
    rms_norm_eps: float | None = None
    no_mulmatq: bool | None = None
    cfg_scale: float | None = None
    step: int | None = None
    alias: str | None = None
    proxy: dict[str, Any] | None = None
    grpc: dict[str, Any] | None = None

    @property
    def weights(self) -> str | None:
        """The weights reference, under either of its two names."""
        return self.parameters.model or self.model

    @property
    def adapters(self) -> tuple[tuple[str, float], ...]:
        """References of the LoRA adapters with their scales: `lora_adapter`, then `lora_adapters`."""
        one = [(self.lora_adapter, 1.0 if self.lora_scale is None else self.lora_scale)] if self.lora_adapter else []
        scales = self.lora_scales or [1.0] * len(self.lora_adapters)
        return (*one, *zip(self.lora_adapters, scales, strict=False))


LOAD_KEYS = frozenset({
    "backend", "model", "model_base_name", "context_size", "parallel", "gpu_layers", "threads", "mmap", "mmlock", "f16",
    "low_vram", "flash_attention", "cache_type_k", "cache_type_v", "no_kv_offloading", "numa", "tensor_split", "main_gpu",
    "rope_scaling", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "mmproj", "draft_model",
    "n_draft", "lora_adapter", "lora_base", "lora_scale", "lora_adapters", "lora_scales", "embeddings", "reranking",
    "options", "engine_args", "type", "trust_remote_code", "quantization", "load_format", "dtype", "gpu_memory_utilization",
    "enforce_eager", "swap_space", "max_model_len", "tensor_parallel_size", "disable_log_stats", "limit_mm_per_prompt",
})  # fmt: skip
"""Top-level keys that decide what is loaded."""

LOAD_PARAMETERS = frozenset({"model", "batch", "rope_freq_base", "rope_freq_scale", "tokenizer", "pooling"})
"""The same, under `parameters`."""


def load_options(config: ModelConfig) -> dict[str, Any]:
    """The load keys that are set, `parameters`' own with their dotted names; equal options may share a worker."""
    top = {key: getattr(config, key) for key in sorted(LOAD_KEYS)}
    below = {f"parameters.{key}": getattr(config.parameters, key) for key in sorted(LOAD_PARAMETERS)}
    return {key: value for key, value in {**top, **below}.items() if value not in (None, [], {})}
