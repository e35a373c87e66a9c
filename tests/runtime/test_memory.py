"""What a model will take, by its files and settings."""

from pathlib import Path

import gguf
import pytest

from llmgallery import paths
from llmgallery.config.model import ModelConfig
from llmgallery.runtime import memory

POCKET = paths.builtin("models") / "pocket-f16.gguf"
SIZE = POCKET.stat().st_size
TOKEN_BYTES = 2 * 5 * 192 * 2  # K and V, 5 layers, 192 wide, F16


def test_weights_and_cache_count() -> None:
    plan = memory.plan(ModelConfig(context_size=512, parallel=2), [POCKET], 1 << 30, 1 << 30)
    assert plan.bytes == int(SIZE * 1.1) + 512 * 2 * TOKEN_BYTES
    assert plan.cache_bytes == TOKEN_BYTES


def test_what_nobody_set_is_decided_from_the_header_and_the_free_memory() -> None:
    roomy = memory.plan(ModelConfig(), [POCKET], 1 << 30, 1 << 30).config
    assert (roomy.context_size, roomy.parallel) == (1024, 8)
    assert memory.plan(ModelConfig(), [POCKET], SIZE + 4 * 3 * 1024 * TOKEN_BYTES, 1 << 30).config.parallel == 3
    assert memory.plan(ModelConfig(), [POCKET], 0, 1 << 30).config.parallel == 1


def test_a_quantised_cache_is_smaller() -> None:
    plain, small = ModelConfig(parallel=8), ModelConfig(parallel=8, cache_type_k="q8_0", cache_type_v="q8_0")
    assert memory.plan(small, [POCKET], 1 << 30, 1 << 30).bytes < memory.plan(plain, [POCKET], 1 << 30, 1 << 30).bytes


def test_files_of_another_kind_count_by_their_size(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(b"x" * 1000)
    assert memory.plan(ModelConfig(), files, 1 << 30, 1 << 30).bytes == 2200


def test_the_advice_fits() -> None:
    plan = memory.plan(ModelConfig(context_size=1024, parallel=8), [POCKET], 1 << 30, 1 << 30)
    most = int(SIZE * 1.1) + 600 * TOKEN_BYTES
    assert plan.advice(most).startswith("context_size: 512 and parallel: 1 would fit")
    fitting = memory.plan(ModelConfig(context_size=512, parallel=1), [POCKET], 1 << 30, 1 << 30)
    assert fitting.bytes <= most
    assert "smaller quantisation" in plan.advice(1000)


@pytest.mark.parametrize(
    ("limit", "current", "left"), [("1000000", "400000", 600000), ("max", "5", None), ("100", "200", 0), ("junk", "1", None)]
)
def test_a_container_s_limit_counts(tmp_path: Path, limit: str, current: str, left: int | None) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(current + "\n")
    assert memory._cgroup_left(tmp_path) == left


def test_this_machine_has_memory() -> None:
    assert memory.available() > 1 << 20


def test_a_context_that_nobody_set_shrinks_to_what_can_be_had(tmp_path: Path) -> None:
    long = tmp_path / "long.gguf"
    writer = gguf.GGUFWriter(long, "llama")
    writer.add_context_length(131_072)
    writer.add_block_count(32)
    writer.add_embedding_length(4096)
    writer.add_head_count(32)
    writer.add_head_count_kv(8)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    per_token = 2 * 32 * 1024 * 2  # K and V, 32 layers, 8 heads of 128, F16
    plan = memory.plan(ModelConfig(), [long], 4 << 30, 4 << 30)
    assert plan.config.context_size == ((4 << 30) - 2048) // per_token // 256 * 256
    assert plan.shrunk_from == 131_072
    assert plan.bytes <= 4 << 30
    assert memory.plan(ModelConfig(context_size=131_072), [long], 4 << 30, 4 << 30).shrunk_from is None
    roomy = memory.plan(ModelConfig(), [long], 1 << 40, 1 << 40)
    assert (roomy.config.context_size, roomy.shrunk_from) == (131_072, None)
    assert memory.plan(ModelConfig(), [long], 1 << 20, 1 << 20).config.context_size == 131_072  # refused, with advice
