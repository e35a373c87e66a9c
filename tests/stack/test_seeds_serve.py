"""Every configuration that the documents print which this project was made after, imported and served, its weights replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from click.testing import CliRunner
from server_process import ServerProcess

from llmgallery import paths
from llmgallery.backends.loader import specs
from llmgallery.cli import main
from llmgallery.config.model import LOAD_KEYS, LOAD_PARAMETERS

CASES = Path(__file__).parents[1] / "cases"
SEEDS = CASES / "seeds"
TABLE: list[dict[str, Any]] = json.loads((SEEDS / "table.json").read_text())
REQUESTS: dict[str, Any] = {case["name"]: case["body"] for case in json.loads((CASES / "requests_to_render.json").read_text())}
BODIES = [REQUESTS[name] for name in ("one message", "a system message, and turns", "a completion")]
KOBOLD: dict[str, Any] = json.loads((SEEDS / "kobold-request.json").read_text())
POCKET = str(paths.builtin("models") / "pocket-f16.gguf")

ALIKE: dict[str, Any] = yaml.safe_load((SEEDS / "own" / "mistral.yaml").read_text())
"""The sample of our own: the other models are loaded as it says, so that one process serves all of them."""

AS_WRITTEN = ("gatogpt-full/mistral-7b-instruct", "localai-fragments/embeddings")
"""Models that are loaded as they say themselves: the one that says everything, and the one that does not only answer."""


class Served(NamedTuple):
    http: httpx.Client
    models: dict[str, dict[str, Any]]

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        reply = self.http.post(path, json=body)
        assert reply.status_code == 200, (body, reply.text)
        return reply.json()

    def shown(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """The prompt as it is shown."""
        told: dict[str, Any] = self.ask("/apply-template", {"model": name, **body})
        return told

    def counted(self, name: str, body: dict[str, Any]) -> int:
        """The length of the prompt that has been answered."""
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        reply = self.ask(path, {"model": name, "max_tokens": 1, **body})
        assert (reply["model"], reply["usage"]["completion_tokens"]) == (name, 1)
        tokens: int = reply["usage"]["prompt_tokens"]
        return tokens


def imported(case: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """What the command writes, by the models' names."""
    weights = ["--model", case["weights"]] if "weights" in case else []
    arguments = ["import", str(SEEDS / case["source"]), "--to", str(folder), "--user-data", "/data", *weights]
    result = CliRunner().invoke(main, arguments, prog_name="llmgallery")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = [yaml.safe_load(path.read_text()) for path in folder.glob("*.yaml")]
    return {config["name"]: config for config in found}


def with_the_bundled_weights(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The same model, but for its weights, for a backend that is not here yet, and for how it is loaded."""
    parameters = config.get("parameters", {})
    if name not in AS_WRITTEN:
        config = {key: value for key, value in config.items() if key not in LOAD_KEYS} | {
            key: value for key, value in ALIKE.items() if key in LOAD_KEYS
        }
        parameters = {key: value for key, value in parameters.items() if key not in LOAD_PARAMETERS}
    here = {word for spec in specs().values() for word in (spec.name, *spec.aliases)}
    backend = config["backend"] if config.get("backend") in here else "llama-cpp"
    return {**config, "name": name, "backend": backend, "parameters": {**parameters, "model": POCKET}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One folder with all of them, and the server in a process of its own."""
    models: dict[str, dict[str, Any]] = {"kobold/adapter": {"template": {"adapter": KOBOLD["adapter"]}}}
    for case in TABLE:
        found = imported(case, tmp_path_factory.mktemp("imported"))
        assert found.keys() == case["models"].keys()
        models |= {f"{case['source'].partition('/')[0]}/{name}": config for name, config in found.items()}
    folder = tmp_path_factory.mktemp("models")
    for index, (name, config) in enumerate(models.items()):
        (folder / f"{index}.yaml").write_text(json.dumps(with_the_bundled_weights(name, config)))
    with ServerProcess(folder, "--auto-install", "off") as server, server.http() as http:
        yield Served(http, models)


def test_the_server_has_all_of_them(served: Served) -> None:
    listed = {model["id"] for model in served.http.get("/v1/models").json()["data"]}
    assert listed == {*served.models, "pocket"}
    assert len(served.models) == 1 + sum(len(case["models"]) for case in TABLE)


def test_each_answers_the_prompt_that_is_shown(served: Served) -> None:
    """It is shown before the process that answers is there, by one that holds the vocabulary only; both count for themselves."""
    asked = [(name, body) for name in served.models if name not in AS_WRITTEN for body in BODIES]
    tokens = [served.shown(name, body)["tokens"] for name, body in asked]
    assert [(name, served.counted(name, body)) for name, body in asked] == [
        (name, count) for (name, _), count in zip(asked, tokens, strict=True)
    ]


@pytest.mark.parametrize("name", AS_WRITTEN)
def test_models_that_are_loaded_as_they_say(served: Served, name: str) -> None:
    for body in BODIES:
        assert served.counted(name, body) == served.shown(name, body)["tokens"]
    if served.models[name].get("embeddings"):
        (vector,) = served.ask("/v1/embeddings", {"model": name, "input": "Hi"})["data"]
        assert any(vector["embedding"])


def test_templates_act_on_the_served_model(served: Served) -> None:
    """GatoGPT prints what it makes of the two models that it defines: profiles which are the same when they are imported."""
    same = {"mistral-7b-instruct": "mistral", "orca-2-13b": "chatml"}
    for name, profile in same.items():
        for body in BODIES:
            prompt = served.shown(f"gatogpt-two-models/{name}", body)["prompt"]
            assert prompt == served.shown(f"gatogpt-profiles/{profile}", body)["prompt"]
            assert ("[INST]" in prompt, "<|im_start|>" in prompt) == (profile == "mistral", profile == "chatml")
    assert served.shown("localai/starling-openvino", BODIES[2])["prompt"] == "Once upon a time\n"
    assert served.shown("localai/starling-openvino", BODIES[0])["prompt"].endswith("<|end_of_turn|>GPT4 Correct Assistant:\n")


def test_our_own_sample_answers_to_its_globs(served: Served) -> None:
    assert served.shown("gpt-4o-mini", BODIES[0])["prompt"].startswith("<|im_start|>system\nYou are brief.<|im_end|>\n")


def test_koboldcpps_adapter_of_a_request_is_the_same_in_a_model_file(served: Served) -> None:
    """What it does not say is KoboldCpp's default; what it says is empty stays empty, and ends no answer."""
    messages = [*KOBOLD["messages"], {"role": "user", "content": ": who are you?"}]
    shown = served.shown("localai/llama", {**KOBOLD, "messages": messages})
    assert shown["prompt"] == "you are a dungeons and dragons dungeon master: who are you?\n### Response:\n"
    assert served.counted("localai/llama", {**KOBOLD, "messages": messages}) == shown["tokens"]
    assert "" not in shown["stops"]
    in_file = served.shown("kobold/adapter", {"messages": messages})
    assert (in_file["prompt"], in_file["stops"]) == (shown["prompt"], shown["stops"])
