"""Models as the Hub keeps them, small, with random weights: a Llama, a BERT with sentence-transformers' files, a BERT that
scores, and a LLaVA. Each is made in about a second, float32, heads of 64, the same for the same seed."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CONTEXT = 512
HEAD = 64
BOS, EOS, START, END, IMAGE = "<|begin|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>", "<image>"
FILL_IN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
TEXT = """\
The quick brown fox jumps over the lazy dog. What is the capital of France? The capital of France is Paris.
Who are you? I am a small model that knows few words. One, two, three, four, five, six, seven, eight, nine, ten.
{"name": "Ada", "age": 36, "likes": ["cats", "trains"], "true": false, "null": [0.5, -1]}
Grüße aus Köln, ça va très bien, naïve façade. Привет, как дела? 你好，世界。こんにちは。안녕하세요 🎉🌍👩‍👩‍👧
def answer(question: str) -> int:
    return 42  # whatever was asked
"""
"""What the vocabularies are learnt from. Every byte is a token beside, so that any text can be written."""

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ '<image>' if part.type == 'image' else part.text }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

POOLINGS = {
    "cls": "cls_token",
    "mean": "mean_tokens",
    "max": "max_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
"""sentence-transformers' names, and its keys of before version 5."""

SHARPNESS = 3.0
"""Standard deviation of the logits: wide enough that rounding decides nothing, and that greedy answers wander."""


def make_llama(
    folder: Path,
    *,
    seed: int = 0,
    vocab: int = 512,
    hidden: int = 128,
    layers: int = 2,
    context: int = CONTEXT,
    template: bool = True,
    add_bos: bool = True,
    fill_in: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """A LlamaForCausalLM. `vocab`: tokens, of them 256 bytes and the control tokens. `add_bos`: as Llama's tokenizers do.
    `fill_in`: with marks for what is to be filled in."""
    tokenizer = byte_tokenizer(vocab, add_bos=add_bos, controls=FILL_IN if fill_in else ())
    model = LlamaForCausalLM(_llama_config(tokenizer, hidden, layers, context))
    _fill(model, seed)
    return _save(folder, model.to(dtype), tokenizer, TEMPLATE if template else None)


def make_bert(
    folder: Path, *, seed: int = 0, pooling: str = "mean", normalize: bool = True, max_length: int = 64, context: int = 128
) -> Path:
    """A BertModel with sentence-transformers' files. `pooling`: of POOLINGS. It looks at `max_length` tokens,
    though it has positions for `context`."""
    tokenizer = word_tokenizer(max_length)
    model = BertModel(_bert_config(tokenizer, context))
    _fill(model, seed)
    _save(folder, model, tokenizer, None)
    modes = {f"pooling_mode_{name}": kind == pooling for kind, name in POOLINGS.items()}
    assert pooling in POOLINGS, pooling
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] if normalize else [])]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 2 * HEAD, **modes})
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(modules)
    ]
    _write(folder / "modules.json", listed)
    _write(folder / "config_sentence_transformers.json", {"prompts": {}, "similarity_fn_name": "cosine"})
    return folder


def make_reranker(folder: Path, *, seed: int = 0, labels: int = 1, context: int = 128) -> Path:
    """A BertForSequenceClassification: query and document in, a logit for each label out."""
    tokenizer = word_tokenizer(context)
    config = _bert_config(tokenizer, context)
    config.num_labels = labels
    model = BertForSequenceClassification(config)
    _fill(model, seed)
    return _save(folder, model, tokenizer, None)


def make_vision(folder: Path, *, seed: int = 0, side: int = 28, patch: int = 14) -> Path:
    """A LlavaForConditionalGeneration with its processor, for images of `side` pixels: (side / patch) squared tokens each. What
    it was made with needs no image library; its processor does."""
    tokenizer = byte_tokenizer(512)
    text = _llama_config(tokenizer, 2 * HEAD, 2, CONTEXT)
    sight = CLIPVisionConfig(
        hidden_size=2 * HEAD,
        intermediate_size=2 * HEAD,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
    )
    config = LlavaConfig(
        vision_config=sight,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(side // patch) ** 2,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    model = LlavaForConditionalGeneration(config)
    _fill(model, seed)
    model.generation_config = _ends(model, tokenizer)
    _save(folder, model, tokenizer, TEMPLATE)
    pixels = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    _write(folder / "preprocessor_config.json", pixels)
    processor = {
        "processor_class": "LlavaProcessor",
        "patch_size": patch,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
        "image_token": IMAGE,
    }
    _write(folder / "processor_config.json", processor)
    return folder


def make_adapter(folder: Path, base: Path, *, seed: int = 1, rank: int = 4) -> Path:
    """A LoRA adapter, as PEFT keeps them, that changes what the model of `base` says."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=rank, lora_alpha=4 * rank, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # peft asks transformers by an older name
        model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * math.sqrt(1 / weight.shape[1]))
    model.save_pretrained(folder)
    return folder


def byte_tokenizer(vocab: int = 512, *, add_bos: bool = True, controls: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2's; every text comes back as it was."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS, START, END, IMAGE, *controls],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(keepends=True) * 4, trainer)
    assert tokenizer.get_vocab_size() == vocab, tokenizer.get_vocab_size()
    if add_bos:
        bos = (BOS, tokenizer.token_to_id(BOS))
        tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", f"{BOS} $A {BOS} $B", [bos])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=EOS,
        additional_special_tokens=[START, IMAGE, *controls],
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def word_tokenizer(max_length: int) -> PreTrainedTokenizerFast:
    """WordPiece, as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    controls = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=controls, show_progress=False)
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    known = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", known)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=max_length,
    )


def _llama_config(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, context: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=max(1, hidden // HEAD // 2),
        head_dim=HEAD,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _bert_config(tokenizer: PreTrainedTokenizerFast, context: int) -> BertConfig:
    return BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=2 * HEAD,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * HEAD,
        max_position_embeddings=context,
        pad_token_id=tokenizer.pad_token_id,
    )


def _fill(model: PreTrainedModel, seed: int) -> None:
    """Normal values, so that every layer adds about as much as came in; what normalises, and what is added, stays as it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() < 2 or "norm" in name.lower():
                continue
            deviation = 1.0 if "embed" in name else math.sqrt(1 / math.prod(weight.shape[1:]))
            if "q_proj" in name or "k_proj" in name or "query" in name or "key" in name:
                deviation *= 1.5
            if "lm_head" in name or "classifier" in name:
                deviation *= SHARPNESS
            weight.copy_(torch.randn(weight.shape, generator=generator) * deviation)
    model.eval()


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> object:
    """generation_config.json as the Hub's chat models have it: the end of a turn, and the end of the text."""
    settings = model.generation_config
    settings.bos_token_id = tokenizer.bos_token_id
    settings.eos_token_id = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(EOS)]
    settings.pad_token_id = tokenizer.pad_token_id
    return settings


def _save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, template: str | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(model, LlamaForCausalLM):
        model.generation_config = _ends(model, tokenizer)
    if template is not None:
        tokenizer.chat_template = template
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _write(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
