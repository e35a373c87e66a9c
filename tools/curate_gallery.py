"""Writes gallery/*.yaml from tools/gallery/choice.yaml (which models, and what we say of them) and tables of facts (repos, files,
digests, licences, sampling).

    python tools/curate_gallery.py FACTS.csv...

A table's columns: name, hub_repo, file, sha256, mmproj_repo, mmproj_file, mmproj_sha256, license, tags (words), context_size,
sampling (JSON), revision, size (bytes), source (an address); all but the first three may be empty or missing. tools/gallery/
facts.csv is always read. What no table has is not written: neither a file nor a digest is made up here. `--check` writes nothing
and exits with 1 when something would change.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
HERE = ROOT / "tools" / "gallery"
MODEST_CONTEXT = 40960
"""A table's context_size up to here is set for the model; a larger one is only told: what loading takes is for memory to say."""

LICENCES = {"other": "other", "falcon-llm": "falcon-llm-license", "deepseek": "deepseek-license"}
NOISE = frozenset({
    "llm", "gguf", "cpu", "gpu", "quantized", "imatrix", "open-source", "instruct", "instruction-tuned", "instruct-tuned",
    "embedding", "text-generation", "text-to-text", "dense", "llama-cpp", "llama.cpp", "unsloth", "smollvlm", "rerank",
    "reranker", "vlm",
})  # fmt: skip
SAME = {"coding": "code", "agentic": "agent", "thinking": "reasoning", "distill": "distilled", "rl": "reinforcement-learning"}
SIGHT = frozenset({"vision", "multimodal", "image-to-text"})
"""What a model is only with its projector."""
SIZE_TAG = re.compile(r"(?:e?\d+(?:\.\d+)?[bm]|a\d+b|q\d\w*)")
SPLIT = re.compile(r"-00001-of-(\d{5})\.gguf$")
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty")

Row = Mapping[str, str]
Keys = dict[str, Any]


class Gap(Exception):
    """A model is chosen of which the tables lack something that an entry needs."""


# --- reading -----------------------------------------------------------------------------------------------------------------


def read_facts(paths: Iterable[Path]) -> dict[str, Row]:
    """Rows by name; of two with one name the first counts."""
    facts: dict[str, Row] = {}
    for path in paths:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                facts.setdefault(row["name"], {key: (value or "").strip() for key, value in row.items() if key})
    return facts


def fact(facts: Mapping[str, Row], name: str) -> Row:
    if name not in facts:
        raise Gap(f"no table has a row called {name!r}")
    return facts[name]


# --- entries -----------------------------------------------------------------------------------------------------------------


def entries(family: Keys, facts: Mapping[str, Row]) -> Iterator[Keys]:
    """A model's entry and those of its other quantisations, which say only what differs."""
    for model in family["models"]:
        model = {**{key: value for key, value in family.items() if key not in ("tags", "models")}, **model}
        model["tags"] = [*family.get("tags", []), *model.get("tags", [])]
        if model.get("purpose") == "transformers":
            yield whole_repo(model)
            continue
        row = fact(facts, model.get("row", model["name"]))
        entry = full(model, row, facts)
        yield entry
        for quant, name in model.get("quants", {}).items():
            yield variant(entry, model, f"{model['name']}:{quant}", fact(facts, name))


def full(model: Keys, row: Row, facts: Mapping[str, Row]) -> Keys:
    draft = fact(facts, model["draft"]) if "draft" in model else None
    entry: Keys = {"name": model["name"], "description": description(model, row)}
    entry["license"] = licence(model, row)
    entry["tags"] = tags(model, row)
    entry["urls"] = urls(model, row, *([draft] if draft else []))
    if aliases := other_names(model, row):
        entry["aliases"] = aliases
    if quants := model.get("quants"):
        entry["variants"] = [{"model": f"{model['name']}:{quant}"} for quant in quants]
    return {**entry, **weights(model, row, draft)}


def variant(entry: Keys, model: Keys, name: str, row: Row) -> Keys:
    told: Keys = {"name": name, "description": description(model, row), "urls": urls(model, row)}
    if "aliases" in entry:
        told["aliases"] = []
    told = {**told, "variants": [], **weights(model, row, None)}
    if "size" in entry:
        told.setdefault("size", None)
    return {"<<": entry["name"], **{key: value for key, value in told.items() if entry.get(key) != value}}


def weights(model: Keys, row: Row, draft: Row | None) -> Keys:
    """What says which files, from where, and how they are loaded."""
    files = list(file_items(row))
    overrides: Keys = {"backend": "llama-cpp", "parameters": {"model": files[0]["filename"], **sampling(model, row)}}
    if context := modest(row):
        overrides["context_size"] = context
    if row.get("mmproj_file"):
        files.append(projector(row))
        overrides |= {"mmproj": files[-1]["filename"], "known_usecases": ["chat", "vision"]}
    if draft is not None:
        files += file_items(draft)
        overrides["draft_model"] = files[-1]["filename"]
    if (purpose := model.get("purpose")) is not None:
        overrides |= {purpose: True, "known_usecases": ["embeddings" if purpose == "embeddings" else "rerank"]}
    else:
        overrides["template"] = {"use_tokenizer_template": True, "preset": model["preset"]}
    size = {"size": sum(item["size"] for item in files)} if all("size" in item for item in files) else {}
    return {**size, "overrides": overrides, "files": files}


def whole_repo(model: Keys) -> Keys:
    """An entry without files: its weights are a Hub repo as it is."""
    weights = model["repo"] + (f"@{model['revision']}" if "revision" in model else "")
    return {
        "name": model["name"],
        "description": model["says"] + ".",
        "license": model["licence"],
        "tags": model["tags"],
        "urls": [f"https://huggingface.co/{model['repo']}"],
        "overrides": {
            "backend": "transformers",
            "parameters": {"model": weights},
            "template": {"use_tokenizer_template": True, "preset": model["preset"]},
        },
    }


def file_items(row: Row) -> Iterator[Keys]:
    """Of a split file all parts; only the first can have the row's digest."""
    split = SPLIT.search(row["file"])
    count = int(split[1]) if split else 1
    for number in range(1, count + 1):
        path = SPLIT.sub(f"-{number:05d}-of-{count:05d}.gguf", row["file"])
        digest = "sha256" if number == 1 else ""
        yield file_item(row["hub_repo"], path, path.rpartition("/")[2], row, digest, row.get("size") or "")


def projector(row: Row) -> Keys:
    """Projectors have the same few names in all repos: their filename begins with the repo's."""
    repo, path = row["mmproj_repo"] or row["hub_repo"], row["mmproj_file"]
    return file_item(repo, path, f"{repo.rpartition('/')[2]}/{path.rpartition('/')[2]}", row, "mmproj_sha256", "")


def file_item(repo: str, path: str, filename: str, row: Row, digest: str, size: str) -> Keys:
    revision = f"@{row['revision']}" if row.get("revision") else ""
    item: Keys = {"filename": filename, "uri": f"huggingface://{repo}{revision}/{path}"}
    if row.get(digest):
        item["sha256"] = row[digest]
    if size:
        item["size"] = int(size)
    return item


# --- what is said of a model -------------------------------------------------------------------------------------------------


def description(model: Keys, row: Row) -> str:
    quant = re.search(r"((?:UD-)?I?Q\d\w*|MXFP4|NVFP4|B?F16)(?:-0000.*)?\.gguf$", row["file"], re.IGNORECASE)
    aware = ", for which it was trained" if "qat" in row["hub_repo"].lower() and "trained for" not in model["says"] else ""
    told = f"{model['says']}. " + (f"Quantised to {quant[1].upper()}{aware}." if quant else "")
    if (context := trained_for(model, row)) is not None:
        told += f" Trained for {context:,} tokens of context."
    return told.strip()


def trained_for(model: Keys, row: Row) -> int | None:
    if model.get("context"):
        return int(model["context"])
    stated = row.get("context_size")
    return int(stated) if stated and int(stated) > MODEST_CONTEXT else None


def modest(row: Row) -> int | None:
    stated = row.get("context_size")
    return int(stated) if stated and int(stated) <= MODEST_CONTEXT else None


def licence(model: Keys, row: Row) -> str:
    found = model.get("licence") or row.get("license")
    if not found:
        raise Gap(f"{model['name']}: no table and no choice has its licence")
    return LICENCES.get(found, found)


def tags(model: Keys, row: Row) -> list[str]:
    written = row.get("tags", "").split()
    words = [SAME.get(word, word) for word in written if word not in NOISE and not SIZE_TAG.fullmatch(word)]
    if not row.get("mmproj_file"):
        words = [word for word in words if word not in SIGHT]
    purpose = {"embeddings": "embeddings", "reranking": "reranking"}.get(model.get("purpose", ""), "chat")
    vision = ["vision"] if row.get("mmproj_file") else []
    return list(dict.fromkeys([purpose, *model["tags"], *vision, *words, *(["draft"] if "draft" in model else [])]))


def urls(model: Keys, *rows: Row) -> list[str]:
    repos = [f"https://huggingface.co/{row['hub_repo']}" for row in rows]
    told = [row["source"] for row in rows if row.get("source")]
    return list(dict.fromkeys([*repos, *told, *model.get("sources", [])]))


def sampling(model: Keys, row: Row) -> Keys:
    """The table's, else the choice's; llama.cpp's -1 for no top_k is 0 everywhere else."""
    found = json.loads(row["sampling"]) if row.get("sampling") else model.get("sampling", {})
    found = {key: found[key] for key in SAMPLING if key in found}
    return {**found, **({"top_k": max(found["top_k"], 0)} if "top_k" in found else {})}


def other_names(model: Keys, row: Row) -> list[str]:
    """What the index that the table was made from calls it; the rows of our own table are not named for anybody."""
    name: str = row["name"]
    own = bool(row.get("source")) or ":" in name or "draft" in model or re.search(r"-i?q\d(_\w+)?$", name)
    return [] if own or name == model["name"] else [name]


# --- writing -----------------------------------------------------------------------------------------------------------------


def text(family: Keys, found: Iterable[Keys]) -> str:
    head = f"# {family['title']}. Written by tools/curate_gallery.py: edit tools/gallery/choice.yaml.\n"
    return head + "".join(item(entry) for entry in found)


def item(entry: Keys) -> str:
    """One entry as YAML; what has variants gets an anchor, under its own name."""
    lines = []
    for key, value in entry.items():
        if key == "<<":
            lines.append(f"<<: *{anchor(value)}")
        elif key == "files":
            lines.append("files:")
            lines += [line for one in value for line in listed(one)]
        elif key == "overrides":
            lines.append("overrides:")
            lines += [f"  {inner}: {flow(part)}" for inner, part in value.items()]
        else:
            lines.append(f"{key}: {flow(value)}")
    first = f"- &{anchor(entry['name'])}\n  " if entry.get("variants") else "- "
    return "\n" + first + "\n  ".join(lines) + "\n"


def listed(one: Keys) -> list[str]:
    first, *rest = [f"{key}: {flow(value)}" for key, value in one.items()]
    return [f"- {first}", *(f"  {line}" for line in rest)]


def flow(value: Any) -> str:
    dumped: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("\n...").removesuffix("...").strip()


def anchor(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower())


def main(arguments: list[str]) -> int:
    try:
        return write_all(arguments)
    except (OSError, Gap) as error:
        print(f"nothing more was written: {error}", file=sys.stderr)
        return 2


def write_all(arguments: list[str]) -> int:
    tables = [Path(argument) for argument in arguments if argument != "--check"]
    facts = read_facts([HERE / "facts.csv", *tables])
    families = yaml.safe_load((HERE / "choice.yaml").read_text("utf-8"))["families"]
    stale = []
    for family in families:
        path = ROOT / "gallery" / f"{family['file']}.yaml"
        made = text(family, entries(family, facts))
        if not path.is_file() or path.read_text("utf-8") != made:
            stale.append(path.name)
            if "--check" not in arguments:
                path.write_text(made, encoding="utf-8")
    print(f"changed: {', '.join(stale)}" if stale else "everything is up to date")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
