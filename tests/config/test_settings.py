import math
import sys
from pathlib import Path

import pytest

from llmgallery.config.backend_settings import BackendSetting
from llmgallery.config.settings import DEFAULTS, GallerySetting, Settings, is_loopback, load_settings, setting_rows
from llmgallery.core.errors import ConfigError


def problems(*args: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        load_settings(*args)  # type: ignore[arg-type]
    return caught.value.hints


def test_defaults() -> None:
    assert load_settings() == DEFAULTS
    assert (DEFAULTS.host, DEFAULTS.port, DEFAULTS.keep_alive) == ("127.0.0.1", 8080, 900.0)
    assert (DEFAULTS.stream_hold, DEFAULTS.load_wait) == (2.0, 540.0)


def test_later_layers_replace_earlier_ones(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("port: 1\nhost: a.example\nkeep_alive: 1h\nload_wait: 1m\nmodels_dir: gallery\n")
    env = {"LLMGALLERY_PORT": "2", "LLMGALLERY_KEEP_ALIVE": "-1", "HOME": "/nowhere"}
    found = load_settings({"port": 3, "host": None, "api_keys": ()}, env, file)
    assert (found.port, found.host, found.keep_alive, found.load_wait) == (3, "a.example", math.inf, 60.0)
    assert found.models_dir == tmp_path / "gallery"


def test_lists_and_sizes_from_variables() -> None:
    env = {"LLMGALLERY_API_KEY": "one", "LLMGALLERY_ALLOWED_HOSTS": "a.example, b.example", "LLMGALLERY_MEMORY_BUDGET": "8GiB"}
    found = load_settings({}, env)
    assert found.api_keys == ["one"]
    assert found.allowed_hosts == ["a.example", "b.example"]
    assert found.memory_budget == 8 << 30
    assert load_settings({"api_keys": ("12345",)}).api_keys == ["12345"]


def test_keys_of_a_file_join_the_others(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nsecret-1\n\nsecret-2\n")
    assert load_settings({"api_key_file": keys, "api_keys": ["secret-0"]}).api_keys == ["secret-0", "secret-1", "secret-2"]
    keys.write_text("\n")
    assert "holds no key" in problems({"api_key_file": keys})[0]
    assert "cannot be read" in problems({"api_key_file": tmp_path / "gone"})[0]


def test_all_problems_of_all_layers_at_once(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("prot: 8080\nlog_level: loud\nport: many\nport: 2\n")
    found = problems({"port": 99999}, {"LLMGALLERY_LOAD_WAIT": "soon", "LLMGALLERY_MODEL_DIR": "x"}, file)
    texts = "\n".join(found)
    assert len(found) == 7
    assert f"{file}:1:1: prot: unknown key; did you mean port?" in texts
    assert f"{file}:2:12: log_level: expected one of" in texts
    assert f"{file}:4:1: port: the key is already in line 3" in texts
    assert "--port: 99999 is out of range; expected a whole number from 0 to 65535" in texts
    assert "LLMGALLERY_LOAD_WAIT: expected a duration" in texts
    assert "LLMGALLERY_MODEL_DIR: no setting has this name; did you mean LLMGALLERY_MODELS_DIR?" in texts


@pytest.mark.parametrize(("text", "line"), [("- port", 1), ("port: [", 2), ("\tport: 1", 1)])
def test_a_settings_file_that_is_none(tmp_path: Path, text: str, line: int) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    assert problems({}, {}, file)[0].startswith(f"{file}:{line}:")
    assert "cannot be read" in problems({}, {}, tmp_path / "gone.yaml")[0]


def test_variables_that_kubernetes_makes_of_a_service_are_not_ours() -> None:
    env = {
        "LLMGALLERY_PORT": "tcp://10.0.0.7:8080",
        "LLMGALLERY_PORT_8080_TCP_ADDR": "10.0.0.7",
        "LLMGALLERY_SERVICE_HOST": "10.0.0.7",
        "LLMGALLERY_SERVICE_PORT": "8080",
    }
    assert load_settings({}, env) == DEFAULTS


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"unknown_model": "default"}, "needs default_model"),
        ({"api_keys": ["smörgås"]}, "printable ASCII"),
        ({"allowed_origins": ["example.org"]}, "is no origin"),
        ({"host": ""}, "must not be empty"),
    ],
)
def test_what_must_hold_between_settings(flags: dict[str, object], message: str) -> None:
    assert message in problems(flags)[0]


def test_hosts_that_may_be_asked_for() -> None:
    assert Settings().hosts() == {"localhost", "127.0.0.1", "::1"}
    assert Settings(host="0.0.0.0", allowed_hosts=["GPU.lan", "[::1]"]).hosts() == {"localhost", "127.0.0.1", "::1", "gpu.lan"}
    assert is_loopback("127.9.9.9") and is_loopback("[::1]") and is_loopback("LOCALHOST")
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org")


def test_every_setting_has_a_row_for_the_docs() -> None:
    rows = {row.name: row for row in setting_rows()}
    assert list(rows) == list(Settings.__struct_fields__)
    assert all(row.description for row in rows.values())
    assert rows["keep_alive"][1:4] == ("--keep-alive", "LLMGALLERY_KEEP_ALIVE", "900s")
    assert rows["api_keys"].flag == "--api-key"


@pytest.mark.parametrize("line", ["load_wait: soon", "memory_budget: much"])
def test_a_duration_or_size_that_is_none_is_told_the_form(tmp_path: Path, line: str) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(line + "\n")
    (problem,) = problems({}, {}, file)
    assert "in quotes" not in problem
    assert "such as 90s, 15m or 1h30m" in problem or "such as 8GiB" in problem


def test_the_home_of_nobody() -> None:
    (problem,) = problems({"models_dir": "~nobody-of-this-name/models"})
    assert "--models-dir" in problem and "a path" in problem


def test_api_key_means_the_list_not_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("api_key: secret\n")
    assert problems({}, {}, file) == (f"{file}:1:1: api_key: unknown key; did you mean api_keys?",)


def test_galleries_of_files_variables_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        "galleries:\n- {name: ours, url: entries}\n- hub=hf://owner/repo\n- name: web\n  url: https://example.org/i.yaml\n"
    )
    of_file = load_settings({}, {}, file).gallery_settings()
    assert of_file == (
        GallerySetting("ours", str(tmp_path / "entries")),
        GallerySetting("hub", "hf://owner/repo"),
        GallerySetting("web", "https://example.org/i.yaml"),
    )
    env = {"LLMGALLERY_GALLERIES": "a=github:owner/repo/index.yaml@main, b=./here"}
    assert [(one.name, one.url) for one in load_settings({}, env).gallery_settings()] == [
        ("a", "github:owner/repo/index.yaml@main"),
        ("b", "./here"),
    ]
    assert load_settings({"galleries": ("c=/entries",)}, env, file).gallery_settings() == (GallerySetting("c", "/entries"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index.yaml", "'index.yaml' is no gallery; write it like name="),
        ("a=", "'a' is no gallery"),
        ("a b=x", "'a b=x' is no gallery"),
        ("llmgallery=x", "two galleries llmgallery"),
    ],
)
def test_galleries_that_are_none(text: str, message: str) -> None:
    assert message in problems({"galleries": (text,)})[0]


def test_what_requests_may_install_follows_the_address() -> None:
    assert Settings().installable() == "hub"
    assert Settings(host="::1").installable() == "hub"
    assert Settings(host="0.0.0.0").installable() == "gallery"
    assert Settings(host="0.0.0.0", auto_install="off").installable() == "off"
    found = load_settings({"auto_install": "off", "licences": ("mit", "apache-*")}, {"LLMGALLERY_INSTALL_SIZE_LIMIT": "20GiB"})
    assert (found.auto_install, found.licences, found.install_size_limit) == ("off", ["mit", "apache-*"], 20 << 30)
    assert "expected one of" in problems({"auto_install": "all"})[0]


def test_off_is_a_word_in_a_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("auto_install: off\n")
    assert load_settings({}, {}, file).auto_install == "off"


VARIABLES = {
    "host": "::1", "port": "81", "models_dir": "/m", "api_keys": "a,b", "default_model": "m", "unknown_model": "default",
    "stream_hold": "3s", "load_wait": "4s", "max_queue_wait": "5s", "keep_alive": "6m", "memory_budget": "7GiB", "drain": "8",
    "allowed_hosts": "x.example,y", "allowed_origins": "https://x.example", "watch": "poll", "log_level": "error",
    "hub_token": "hf_x", "auto_install": "off", "galleries": "mine=/index.yaml", "hub_owners": "Qwen",
    "install_size_limit": "9GB", "licences": "mit", "preload": "pocket,other", "media_hosts": "images.example,10.0.0.7",
    "backends": f"echo={sys.executable}",
}  # fmt: skip


def test_every_setting_has_its_variable(tmp_path: Path) -> None:
    key_file = tmp_path / "keys"
    key_file.write_text("c\n")
    env = {f"LLMGALLERY_{name.upper()}": text for name, text in {**VARIABLES, "api_key_file": str(key_file)}.items()}
    settings = load_settings(env=env)
    assert {row.variable for row in setting_rows()} == env.keys()
    unchanged = [row.name for row in setting_rows() if getattr(settings, row.name) == getattr(DEFAULTS, row.name)]
    assert not unchanged
    assert settings.api_keys == ["a", "b", "c"]


def test_values_of_another_program_lie_below_all_else() -> None:
    below = {"port": 1, "host": "0.0.0.0", "log_level": "debug"}
    settings = load_settings({"host": "::1"}, {"LLMGALLERY_PORT": "2"}, below=below)
    assert (settings.host, settings.port, settings.log_level) == ("::1", 2, "debug")


# --- interpreters of backends ------------------------------------------------------------------------------------------------

NAMES = {"transformers": "transformers", "hf": "transformers", "exllamav2": "exllamav2"}


def test_interpreters_of_backends_from_all_layers_by_their_own_names(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "link").symlink_to("a")
    file = tmp_path / "settings.yaml"
    file.write_text("backends:\n  HF: {python: link}\n  exllamav2:\n    python: ./c\n")
    found = load_settings({}, {}, file, backends=lambda: NAMES).backends
    assert found == {
        "transformers": BackendSetting(tmp_path / "link"),  # not what it leads to: the link is what makes it a venv's
        "exllamav2": BackendSetting(tmp_path / "c"),
    }
    env = {"LLMGALLERY_BACKENDS": f"transformers={tmp_path}/b, exllamav2={tmp_path}/b"}
    found = load_settings({"backends": (f"exllamav2={tmp_path}/a",)}, env, file, backends=lambda: NAMES).backends
    assert [str(found[name].python) for name in ("transformers", "exllamav2")] == [f"{tmp_path}/b", f"{tmp_path}/a"]


def test_what_is_wrong_with_interpreters_is_told_with_its_place(tmp_path: Path) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("")
    (tmp_path / "text").write_text("")
    file = tmp_path / "settings.yaml"
    file.write_text(
        "backends:\n  transformer: {python: /x}\n  transformers: {python: .}\n  exllamav2:\n    python: text\n    pyton: x\n"
        "  hf: {python: gone}\n"
    )
    found = problems({"backends": ("vllm=/x", "hf")}, {"LLMGALLERY_BACKENDS": "hf=/no/where"}, file, None, lambda: NAMES)
    assert sorted(found) == sorted([
        f"{file}:2:3: backends.transformer: there is no backend transformer; did you mean transformers?",
        f"{file}:3:3: backends.transformers: {tmp_path} is a folder, not a Python interpreter; did you mean {python}?",
        f"{file}:4:3: backends.exllamav2: {tmp_path}/text cannot be executed; chmod +x {tmp_path}/text",
        f"{file}:6:5: backends.exllamav2.pyton: unknown key; `llmgallery serve --help` names all settings",
        f"{file}:7:3: backends.hf: there is no Python interpreter {tmp_path}/gone",
        "LLMGALLERY_BACKENDS: there is no Python interpreter /no/where",
        "--backend-python: there is no backend vllm; backends: exllamav2, transformers",
        "--backend-python: 'hf' names no interpreter; write it like transformers=/path/to/python",
    ])  # fmt: skip
