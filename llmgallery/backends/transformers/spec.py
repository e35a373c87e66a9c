"""transformers: weights as the Hugging Face Hub has them, through torch; generation, vectors, scores and images."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from llmgallery.backends.base import CAPABILITIES, BackendSpec, by_name


class TransformersOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """transformers' own keys, beside the load keys that all backends share."""

    device_map: Annotated[
        str | int | dict[str, str | int] | None, Meta(description="where the layers go: auto, cpu, cuda:0, or a map of modules")
    ] = None
    device: Annotated[str | int | None, Meta(description="the one device for all layers: cpu, cuda:0, mps")] = None
    cuda_visible_devices: Annotated[str | int | None, Meta(description="numbers of the GPUs that this model may use")] = None
    max_memory: Annotated[
        dict[str, str | int] | None, Meta(description="most memory on each device, for device_map: auto, such as cpu: 8GiB")
    ] = None
    dtype: Annotated[str | None, Meta(description="the same as the key outside of options: auto, float32, bfloat16, ...")] = None
    torch_dtype: Annotated[str | None, Meta(description="the same, as older files call it, such as torch.bfloat16")] = None
    quantization: Annotated[str | None, Meta(description="the same as the key outside of options")] = None
    type: Annotated[str | None, Meta(description="the same as the key outside of options")] = None
    attn_implementation: Annotated[
        str | None, Meta(description="attention: sdpa, eager, flash_attention_2, ...; else the model's own")
    ] = None
    trust_remote_code: Annotated[
        bool | None, Meta(description="run Python code that came with the weights; off unless a file says so")
    ] = None
    safetensors_only: Annotated[
        bool, Meta(description="refuse weights as pickles (.bin, .pt), which can run code when they are loaded")
    ] = True
    subfolder: Annotated[str | None, Meta(description="folder within the repo that holds the model")] = None
    tokenizer: Annotated[str | None, Meta(description="path of a folder with another tokenizer than the model's own")] = None
    use_fast: Annotated[bool | None, Meta(description="accepted for older files' sake: tokenizers are the fast ones")] = None
    config_params: Annotated[
        dict[str, Any], Meta(description="attributes of the model's configuration to set before it is made (llm-api's key)")
    ] = {}
    model_params: Annotated[
        dict[str, Any], Meta(description="further arguments of from_pretrained (llm-api's key), such as torch_dtype, wbits")
    ] = {}
    wbits: Annotated[int | None, Meta(description="bits of GPTQ weights whose files do not say")] = None
    group_size: Annotated[int | None, Meta(description="group size of GPTQ weights whose files do not say")] = None
    generate: Annotated[
        dict[str, Any], Meta(description="arguments of generate() for requests that do not say, such as num_beams: 2")
    ] = {}
    continuous_batching: Annotated[
        Literal["auto", "on", "off"],
        Meta(description="transformers' own batching; auto: where the model can do it, else our loop; on: or fail"),
    ] = "auto"
    page_size: Annotated[Annotated[int, Meta(ge=1, le=4096)], Meta(description="tokens in a block of the KV cache")] = 32
    pooling: Annotated[
        Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "last", "lasttoken", "rank", "none"] | None,
        Meta(description="how tokens become one embedding; else as the repo's files say"),
    ] = None
    prompt_name: Annotated[
        str | None,
        Meta(description="which of the repo's prompts leads every text (config_sentence_transformers.json); else its default"),
    ] = None
    rerank_template: Annotated[
        str | None, Meta(description="text around {query} and {document}, for models that answer whether a document fits")
    ] = None


KEYS = frozenset({
    "context_size", "max_model_len", "parallel", "gpu_layers", "threads", "f16", "main_gpu", "flash_attention",
    "options", "type", "trust_remote_code", "quantization", "load_format", "dtype", "lora_adapter", "lora_scale",
    "limit_mm_per_prompt",
    "lora_adapters", "lora_scales", "embeddings", "reranking", "parameters.batch", "parameters.pooling", "parameters.tokenizer",
})  # fmt: skip

UNSET = {
    "context_size": "the model's own, or less where memory is short",
    "max_model_len": "context_size",
    "parallel": "1 to 8, by free memory",
    "f16": "bfloat16 on a GPU where true, float32 where false",
    "flash_attention": "transformers decides",
    "load_format": "safetensors",
    "limit_mm_per_prompt": "as many images as fit the context",
    "gpu_layers": "all, where there is a GPU",
    "threads": "all cores",
    "main_gpu": "the first GPU, else the CPU",
    "type": "by the files: AutoModelForCausalLM, AutoModel, AutoModelForSequenceClassification, AutoModelForImageTextToText",
    "trust_remote_code": False,
    "quantization": "as the files are",
    "dtype": "as the files are on a GPU, float32 on the CPU",
    "parameters.batch": "512 on a GPU, 256 on the CPU",
    "parameters.pooling": "the model's own",
    "parameters.tokenizer": "the model's own",
    "embeddings": "true for encoders",
    "reranking": "true for models that bring a classifier",
    "lora_adapter": "none",
    "lora_scale": 1,
    "lora_adapters": "none",
    "lora_scales": 1,
}

LISTED = {
    **dict.fromkeys(("parallel", "n_parallel", "max_num_seqs"), "parallel"),
    **dict.fromkeys(("attention", "attn"), "attn_implementation"),
}

PARAMETERS = frozenset({
    "assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens",
    "cache_config", "cache_implementation", "constraints", "decoder_start_token_id", "diversity_penalty", "do_sample",
    "dola_layers", "early_stopping", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff",
    "eta_cutoff", "exponential_decay_length_penalty", "force_words_ids", "forced_bos_token_id", "forced_eos_token_id",
    "guidance_scale", "length_penalty", "low_memory", "max_length", "max_matching_ngram_size", "max_new_tokens", "max_time",
    "min_length", "min_new_tokens", "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule",
    "num_beam_groups", "num_beams", "penalty_alpha", "prefill_chunk_size", "prompt_lookup_num_tokens", "remove_invalid_values",
    "renormalize_logits", "repetition_penalty", "sequence_bias", "suppress_tokens", "target_lookbehind", "token_healing",
    "top_h", "use_cache", "watermarking_config",
})  # fmt: skip
"""Arguments of generate() that requests may send under their own names; any other of them in `generation_config`."""

SPEC = BackendSpec(
    name="transformers",
    implementation="llmgallery.backends.transformers.backend:TransformersBackend",
    aliases=(
        "huggingface", "hf", "sentencetransformers", "sentence-transformers", "huggingface-embeddings", "bert-embeddings",
        "autogptq", "auto_gptq", "auto-gptq", "gptq", "gptq_llama", "autoawq", "awq", "rerankers", "langchain-huggingface",
    ),
    options=TransformersOptions,
    formats=("safetensors", "pytorch", "gptq", "awq", "sentence-transformers"),
    capabilities=frozenset(CAPABILITIES) - {"tools"},
    keys=KEYS,
    unset=UNSET,
    requires=("torch", "transformers"),
    requires_for={"gptq": ("gptqmodel", "optimum"), "awq": ("gptqmodel", "optimum")},
    extra="transformers",
    extras_for={"gptq": "gptq", "awq": "gptq"},
    parameters=PARAMETERS,
    listed=LISTED,
    judge=by_name("llmgallery.backends.transformers.judging:judge"),
)  # fmt: skip
