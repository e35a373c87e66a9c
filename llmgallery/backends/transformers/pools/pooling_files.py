"""What a repo's files say of vectors and scores: sentence-transformers' own files, else the architecture. Knows no torch.

sentence-transformers lists the modules that a text goes through in modules.json, each with a folder of its own: the
transformer, the pooling, then what becomes of the pooled vector (sentence_transformers/base/model.py, version 6.2).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llmgallery.config.model import ModelConfig
from llmgallery.core.errors import BadWeights, LoadError

Purpose = Literal["generate", "embed", "both", "rerank"]

MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""sentence-transformers' ways to pool, in the order in which the vectors of several are joined."""

POOLINGS = {**{mode: mode for mode in MODES}, "last": "lasttoken"}
"""What a YAML may call them."""

ACTIVATIONS = frozenset({"Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid", "LeakyReLU", "ELU", "Mish", "Softplus"})
"""Of torch.nn, those that a module of the repo may name."""

TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json" for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_MODE_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

ENCODERS = frozenset({
    "albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra",
    "ernie", "esm", "eurobert", "flaubert", "fnet", "funnel", "gte", "ibert", "jina_bert", "layoutlm", "longformer", "longt5",
    "luke", "megatron-bert", "mobilebert", "modernbert", "mpnet", "mra", "mt5", "new", "nezha", "nomic_bert", "nystromformer",
    "qdqbert", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "splinter", "squeezebert", "t5", "umt5",
    "xlm", "xlm-roberta", "xlm-roberta-xl", "xlnet", "xmod", "yoso",
})  # fmt: skip
"""model_type of those whose tokens see the whole text; without pooling files the mean of their tokens is the usual vector."""

ENCODER_DECODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel", "longt5": "LongT5EncoderModel"}
"""Of these the encoder alone makes vectors: transformers' class of it."""


@dataclass(frozen=True)
class Dense:
    """A linear layer on the vector; `weights` holds linear.weight, linear.bias, and residual.weight where `residual`."""

    weights: Path
    activation: str
    residual: bool = False


@dataclass(frozen=True)
class LayerNorm:
    """`weights` holds norm.weight and norm.bias."""

    weights: Path


@dataclass(frozen=True)
class Normalize:
    """To length 1."""


Step = Dense | LayerNorm | Normalize


@dataclass(frozen=True)
class Scoring:
    """A causal model that answers yes or no: ids of these tokens; `negative` None = the logit of yes is the score."""

    positive: int
    negative: int | None


@dataclass(frozen=True)
class Declared:
    """What the files of a repo say. `folder`: where the transformer's config.json and weights are. `modes`: of MODES; () = they
    do not say. `include_prompt`: the prompt's tokens are pooled too. `steps`: what becomes of the vector, less a last
    Normalize, which is the request's to decide. `activation`: what a classifier's logit goes through, a class of torch;
    "" = they do not say. `template_settings`: what the chat template of a causal reranker is to be given."""

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    is_sentence: bool = False
    modes: tuple[str, ...] = ()
    include_prompt: bool = True
    steps: tuple[Step, ...] = ()
    max_tokens: int | None = None
    lowercase: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    scoring: Scoring | None = None
    activation: str = ""
    template_settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type", ""))

    @property
    def architecture(self) -> str:
        names = self.config.get("architectures")
        return str(names[0]) if isinstance(names, list) and names else ""

    @property
    def classifies(self) -> bool:
        return self.architecture.endswith("ForSequenceClassification")

    @property
    def generates(self) -> bool:
        return self.architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))

    @property
    def is_encoder(self) -> bool:
        """Its tokens see what follows them."""
        both_ways = self.config.get("use_bidirectional_attention") is True or self.config.get("is_causal") is False
        return (self.model_type in ENCODERS and not self.config.get("is_decoder")) or both_ways or self._masked

    @property
    def _masked(self) -> bool:
        return self.architecture.endswith("ForMaskedLM")


def read(folder: Path) -> Declared:
    """Raises BadWeights for files that are no JSON of their kind, LoadError for modules that are not supported."""
    listed = _modules(folder)
    place = folder / listed[0][1] if listed else folder
    config = _object(place / "config.json", needed=True)
    said = _object(folder / "config_sentence_transformers.json")
    sentence = _first_object(place, TRANSFORMER_FILES)
    own = config.get("sentence_transformers")
    activation = own.get("activation_fn") if isinstance(own, dict) else config.get("sbert_ce_default_activation_function")
    processing = sentence.get("processing_kwargs")
    template = processing.get("chat_template") if isinstance(processing, dict) else None
    prompts = said.get("prompts")
    declared: dict[str, Any] = {
        "folder": place,
        "config": config,
        "max_tokens": _count(sentence.get("max_seq_length")),
        "lowercase": bool(sentence.get("do_lower_case")),
        "prompts": {str(name): str(text) for name, text in prompts.items()} if isinstance(prompts, dict) else {},
        "default_prompt": said.get("default_prompt_name"),
        "activation": str(said.get("activation_fn") or activation or ""),
        "template_settings": template if isinstance(template, dict) else {},
    }
    return Declared(**{**declared, **_followed(folder, listed[1:])}) if listed else Declared(**declared)


def _modules(folder: Path) -> list[tuple[str, str]]:
    """(class, subfolder) of each module, by their numbers. Raises LoadError unless the first is a transformer."""
    file = folder / "modules.json"
    if not file.is_file():
        return []
    rows = _json(file)
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise BadWeights(f"{file}: not a list of modules")
    if not all(isinstance(row.get("idx"), int) for row in rows):
        raise BadWeights(f"{file}: a module has no number (idx)")
    rows = sorted(rows, key=lambda row: int(row["idx"]))
    listed = [(_class(file, str(row.get("type", ""))), _subfolder(file, str(row.get("path", "")))) for row in rows]
    if listed[0][0] != "Transformer":
        raise LoadError(f"{file}: the first module is {rows[0]['type']}; only models that begin with a Transformer are served")
    return listed


def _class(file: Path, type: str) -> str:
    package, _, name = type.rpartition(".")
    if not package.startswith("sentence_transformers"):
        raise LoadError(f"{file}: the module {type} is code of the repo's own, which is not run; only sentence-transformers' are")
    return name


def _subfolder(file: Path, path: str) -> str:
    if Path(path).is_absolute() or ".." in Path(path).parts:
        raise BadWeights(f"{file}: the module's folder {path} is not inside the model's")
    return path


def _followed(folder: Path, listed: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What the modules behind the transformer say. Raises LoadError for one that is not supported, or not in this place."""
    found: dict[str, Any] = {}
    steps: list[Step] = []
    for name, path in listed:
        where = folder / path
        if name == "Pooling" and not found:
            found |= {"is_sentence": True, **_pooling(where)}
        elif name == "LogitScore" and not found:
            found["scoring"] = _scoring(where / "config.json")
        elif name in ("Dense", "LayerNorm", "Normalize", "Dropout") and found.get("is_sentence"):
            steps += _step(name, where)
        else:
            raise LoadError(
                f"{folder / 'modules.json'}: the module {name} is not supported"
                f"{' in this place' if name in ('Pooling', 'LogitScore', 'Dense', 'LayerNorm', 'Normalize') else ''}; "
                "supported are Transformer, then Pooling with any of Dense, LayerNorm, Normalize and Dropout, or LogitScore"
            )
    if not found:
        raise LoadError(f"{folder / 'modules.json'}: no Pooling: a vector of each token is not what any API asks for")
    while steps and isinstance(steps[-1], Normalize):
        steps.pop()
    return {**found, "steps": tuple(steps)}


def _scoring(file: Path) -> Scoring:
    said = _object(file, needed=True)
    positive = _count(said.get("true_token_id"))
    if positive is None:
        raise BadWeights(f"{file}: no true_token_id")
    return Scoring(positive, _count(said.get("false_token_id")))


def _pooling(folder: Path) -> dict[str, Any]:
    said = _object(folder / "config.json", needed=True)
    asked = said.get("pooling_mode")
    if asked is None:
        names = tuple(mode for key, mode in _MODE_KEYS.items() if said.get(key)) or ("mean",)
    else:
        names = (asked,) if isinstance(asked, str) else tuple(map(str, asked))
    if strange := [name for name in names if name not in MODES]:
        raise LoadError(f"{folder / 'config.json'}: the pooling {strange[0]} is not known; known are {', '.join(MODES)}")
    return {"modes": names, "include_prompt": bool(said.get("include_prompt", True))}


def _step(name: str, folder: Path) -> list[Step]:
    if name == "Dropout":
        return []
    if name == "Normalize":
        return [Normalize()]
    said = _object(folder / "config.json", needed=True)
    weights = next((file for file in map(folder.joinpath, ("model.safetensors", "pytorch_model.bin")) if file.is_file()), None)
    if weights is None:
        raise BadWeights(f"{folder}: the module {name} has no model.safetensors")
    if name == "LayerNorm":
        return [LayerNorm(weights)]
    for key in ("module_input_name", "module_output_name"):
        if said.get(key) not in (None, "sentence_embedding"):
            raise LoadError(f"{folder / 'config.json'}: {key}: {said[key]} is not supported, only sentence_embedding")
    return [Dense(weights, activation_name(str(said.get("activation_function", "Tanh")), folder), bool(said.get("use_residual")))]


def activation_name(path: str, where: Path) -> str:
    """The class of torch.nn that `path` names (torch.nn.modules.activation.Tanh). Raises LoadError for any other."""
    package, _, name = path.rpartition(".")
    if (package and not package.startswith("torch.nn")) or name not in ACTIVATIONS:
        known = ", ".join(sorted(ACTIVATIONS))
        raise LoadError(f"{where}: the activation {path} is not supported; supported of torch.nn are {known}")
    return name


def purpose(declared: Declared, config: ModelConfig, pooling: str | None = None) -> Purpose:
    """What the model is loaded for; "both" = it generates, and makes vectors beside. `pooling`: options.pooling. Raises
    LoadError for what the YAML asks of a model that cannot do it."""
    wanted = pooling or config.parameters.pooling
    if wanted == "none":
        raise LoadError("pooling: none would give a vector of each token, which no API asks for yet", field="options.pooling")
    if config.embeddings and config.reranking:
        raise LoadError("embeddings and reranking: a model is loaded for one of the two; make two files", field="reranking")
    by_itself = not config.embeddings and wanted is None and (declared.classifies or declared.scoring is not None)
    if config.reranking or wanted == "rank" or (by_itself and config.reranking is not False):
        if not (declared.classifies or declared.scoring is not None or declared.generates):
            what = declared.architecture or "this model"
            raise LoadError(f"reranking: {what} has no classifier that could score a document", field="reranking")
        return "rerank"
    if declared.is_sentence and config.embeddings is not False:
        return "embed"
    if declared.generates:
        if wanted and not config.embeddings:
            raise LoadError("pooling: only for models with embeddings: true or reranking: true", field="options.pooling")
        if not config.embeddings:
            return "generate"
        return "embed" if declared.is_encoder else "both"
    if config.embeddings is False:
        raise LoadError(f"embeddings: {declared.architecture or declared.folder.name} makes nothing else", field="embeddings")
    return "embed"


def chosen_modes(declared: Declared, config: ModelConfig, pooling: str | None = None) -> tuple[str, ...]:
    """How tokens become one vector: as the YAML says, else the repo, else by the architecture."""
    if wanted := pooling or config.parameters.pooling:
        return (POOLINGS[wanted],)
    return declared.modes or (("mean",) if declared.is_encoder else ("lasttoken",))


def chosen_prompt(declared: Declared, name: str | None) -> str:
    """What stands before every text: the prompt of this name, else the repo's default; "" = nothing. Raises LoadError."""
    wanted = name if name is not None else declared.default_prompt
    if wanted is None:
        return ""
    if wanted not in declared.prompts:
        known = ", ".join(sorted(declared.prompts)) or "none"
        raise LoadError(f"prompt_name: the model has no prompt {wanted}; it has: {known}", field="options.prompt_name")
    return declared.prompts[wanted]


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _first_object(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    return next((said for name in names if (said := _object(folder / name))), {})


def _object(file: Path, *, needed: bool = False) -> dict[str, Any]:
    """Of a file that is not there: nothing."""
    if not file.is_file():
        if needed:
            raise BadWeights(f"{file}: no such file")
        return {}
    said = _json(file)
    if not isinstance(said, dict):
        raise BadWeights(f"{file}: not a JSON object")
    return said


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise BadWeights(f"{file}: {exc}") from exc
