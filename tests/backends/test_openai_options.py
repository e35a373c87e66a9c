"""What `llmgallery check` says of files whose model is elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmgallery.backends.loader import canonical, specs
from llmgallery.config.load import LoadedModel, parse_model


def read(tmp_path: Path, *lines: str) -> LoadedModel:
    return parse_model("\n".join(["backend: openai", *lines]).encode(), tmp_path / "far.yaml", specs())


def test_the_least_that_a_file_may_say(tmp_path: Path) -> None:
    found = read(tmp_path)
    assert (found.problems, found.warnings, found.backend, found.name) == ((), (), "openai", "far")
    assert canonical("OpenAI") == "openai" and specs()["openai"].missing() == []


def test_options(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "options:",
        "  base_url: ${FAR}/v1",
        "  api_key: ${FAR_KEY}",
        "  headers: {authorization: 'Basic ${X}', x-team: red}",
        "  connect_timeout: 2.5",
    )
    assert (found.problems, found.warnings) == ((), ()) and found.config is not None


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x/v1", "http://", "https://x/v1#top", "http://x:99999", "http://[x"])
def test_an_address_that_is_none(tmp_path: Path, url: str) -> None:
    (problem,) = read(tmp_path, "options:", f"  base_url: '{url}'").problems
    assert (problem.line, problem.column, problem.key) == (3, 3, "options.base_url") and "expected an address" in problem.message


def test_files_are_beside_the_yaml(tmp_path: Path) -> None:
    found = read(tmp_path, "options: {api_key_file: keys/far.key, ca_bundle: /etc/own.pem}").config
    assert found is not None and found.options == {
        "api_key_file": str(tmp_path / "keys" / "far.key"),
        "ca_bundle": "/etc/own.pem",
    }
    listed = read(tmp_path, "options: ['api_key_file:~/far.key']").config
    assert listed is not None and listed.options == {"api_key_file": str(Path.home() / "far.key")}


def test_two_keys(tmp_path: Path) -> None:
    (problem,) = read(tmp_path, "options:", "  api_key_env: A", "  api_key_file: b").problems
    assert problem.key == "options.api_key_file" and "api_key_env" in problem.message


def test_a_secret_in_the_file_is_a_warning(tmp_path: Path) -> None:
    found = read(tmp_path, "options:", "  api_key: sk-1234", "  headers:", "    API-Key: abcd")
    assert found.config is not None and not found.problems
    assert [(each.line, each.key) for each in found.warnings] == [(3, "options.api_key"), (4, "options.headers")]
    assert all("secret stands here" in each.message and "sk-" not in str(each) for each in found.warnings)


def test_a_list_of_options(tmp_path: Path) -> None:
    found = read(tmp_path, 'options: ["base_url:nowhere", "connect_retries:3"]')
    assert [problem.key for problem in found.problems] == ["options"]


@pytest.mark.parametrize("line", ["connect_timeout: 0", "connect_retries: -1", "no_such: 1", "max_tokens_field: length"])
def test_what_is_no_option(tmp_path: Path, line: str) -> None:
    (problem,) = read(tmp_path, "options:", f"  {line}").problems
    assert problem.key == f"options.{line.partition(':')[0]}"
