"""What a model will take, by its files and settings."""

from pathlib import Path

import gguf
import pytest

from llmgallery import paths
from llmgallery.backends.base import Files
from llmgallery.config.model import ModelConfig
from llmgallery.runtime import memory

POCKET = paths.builtin("models") / "pocket-f16.gguf"
SIZE = POCKET.stat().st_size
TOKEN_BYTES = 2 * 5 * 192 * 2  # K and V, 5 layers, 192 wide, F16


def test_weights_and_cache_count() -> None:
    plan = memory.plan(ModelConfig(context_size=512, parallel=2), Files((POCKET,)), 1 << 30, 1 << 30)
    assert plan.bytes == int(SIZE * 1.1) + 512 * 2 * TOKEN_BYTES
    assert plan.cache_bytes == TOKEN_BYTES


def test_what_nobody_set_is_decided_from_the_header_and_the_free_memory() -> None:
    roomy = memory.plan(ModelConfig(), Files((POCKET,)), 1 << 30, 1 << 30).config
    assert (roomy.context_size, roomy.parallel) == (1024, 8)
    assert memory.plan(ModelConfig(), Files((POCKET,)), SIZE + 4 * 3 * 1024 * TOKEN_BYTES, 1 << 30).config.parallel == 3
    assert memory.plan(ModelConfig(), Files((POCKET,)), 0, 1 << 30).config.parallel == 1


def test_a_quantised_cache_is_smaller() -> None:
    plain, small = ModelConfig(parallel=8), ModelConfig(parallel=8, cache_type_k="q8_0", cache_type_v="q8_0")
    assert (
        memory.plan(small, Files((POCKET,)), 1 << 30, 1 << 30).bytes
        < memory.plan(plain, Files((POCKET,)), 1 << 30, 1 << 30).bytes
    )


def test_requests_that_share_one_cache_take_one() -> None:
    config = ModelConfig(context_size=1024, options={"kv_unified": True})
    plan = memory.plan(config, Files((POCKET,)), SIZE, 1 << 30)
    assert plan.config.parallel == 8  # more requests cost nothing
    assert plan.bytes == int(SIZE * 1.1) + 1024 * TOKEN_BYTES
    assert plan.advice(int(SIZE * 1.1) + 600 * TOKEN_BYTES).startswith("context_size: 512 ")


def test_files_of_another_kind_count_by_their_size(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_bytes(b"x" * 1000)
    assert memory.plan(ModelConfig(), Files(tuple(files)), 1 << 30, 1 << 30).bytes == 2200


def test_the_advice_fits() -> None:
    plan = memory.plan(ModelConfig(context_size=1024, parallel=8), Files((POCKET,)), 1 << 30, 1 << 30)
    most = int(SIZE * 1.1) + 600 * TOKEN_BYTES
    assert plan.advice(most).startswith("context_size: 512 and parallel: 1 would fit")
    fitting = memory.plan(ModelConfig(context_size=512, parallel=1), Files((POCKET,)), 1 << 30, 1 << 30)
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
    plan = memory.plan(ModelConfig(), Files((long,)), 4 << 30, 4 << 30)
    assert plan.config.context_size == ((4 << 30) - 2048) // per_token // 256 * 256
    assert plan.shrunk_from == 131_072
    assert plan.bytes <= 4 << 30
    assert memory.plan(ModelConfig(context_size=131_072), Files((long,)), 4 << 30, 4 << 30).shrunk_from is None
    roomy = memory.plan(ModelConfig(), Files((long,)), 1 << 40, 1 << 40)
    assert (roomy.config.context_size, roomy.shrunk_from) == (131_072, None)
    assert memory.plan(ModelConfig(), Files((long,)), 1 << 20, 1 << 20).config.context_size == 131_072  # refused, with advice


def header_only(path: Path, architecture: str = "llama", *, context: int = 2048, causal: bool = True) -> Path:
    """4 layers, 2 heads of 64."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(context)
    writer.add_block_count(4)
    writer.add_embedding_length(128)
    writer.add_head_count(2)
    if not causal:
        writer.add_causal_attention(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_adapters_and_the_draft_model_count(tmp_path: Path) -> None:
    adapter, draft = tmp_path / "adapter.gguf", header_only(tmp_path / "draft.gguf", context=512)
    adapter.write_bytes(b"x" * 100_000)
    config = ModelConfig(context_size=1024, parallel=2, cache_type_k="q8_0", cache_type_v="q8_0")
    alone = memory.plan(config, Files((POCKET,)), 1 << 30, 1 << 30)
    both = memory.plan(config, Files((POCKET,), (adapter,), (draft,)), 1 << 30, 1 << 30)
    files = int((SIZE + 100_000 + draft.stat().st_size) * 1.1) - int(SIZE * 1.1)
    cache = 2 * 512 * (2 * 4 * 128 * 2)  # 2 slots, as far as it was trained, K and V, 4 layers, 128 wide, F16 in any case
    assert both.bytes - alone.bytes == files + cache


def test_embeddings_take_a_context_of_their_own() -> None:
    answers, embeds = ModelConfig(context_size=512, parallel=2), ModelConfig(context_size=512, parallel=2, embeddings=True)
    more = (
        memory.plan(embeds, Files((POCKET,)), 1 << 30, 1 << 30).bytes - memory.plan(answers, Files((POCKET,)), 1 << 30, 1).bytes
    )
    assert more == (512 + 512) * TOKEN_BYTES + 2 * 4 * 2048 * 512  # one more cache; logits of 2,048 tokens for 512, twice


def test_an_encoder_s_longest_input_follows_the_memory(tmp_path: Path) -> None:
    bert = header_only(tmp_path / "long.gguf", "bert", context=8192, causal=False)
    assert memory.plan(ModelConfig(), Files((bert,)), 1 << 30, 1 << 30).config.context_size == 8192
    assert memory.plan(ModelConfig(), Files((bert,)), 1 << 30, 100 << 20).config.context_size < 8192


def test_an_encoder_keeps_no_cache(tmp_path: Path) -> None:
    bert = header_only(tmp_path / "bert.gguf", "bert", causal=False)
    plan = memory.plan(ModelConfig(), Files((bert,)), 1 << 30, 1 << 30)
    longest = 32 * 128 * 2048 + 2 * 2048 * 2048  # what is computed for each token, and the mask of all pairs
    assert (plan.bytes, plan.cache_bytes) == (int(bert.stat().st_size * 1.1) + longest, 0.0)
    assert plan.config.context_size == 2048
    causal = header_only(tmp_path / "llama.gguf")
    assert memory.plan(ModelConfig(), Files((causal,)), 1 << 30, 1 << 30).cache_bytes > 0
