"""What a request becomes before it is queued, and what it is refused for."""

import pytest

from llmgallery.core.errors import ContextExceeded
from llmgallery.worker.prepare import check_fits


def test_a_prompt_leaves_room_for_one_token() -> None:
    check_fits(9, 10, "messages")
    with pytest.raises(ContextExceeded, match="10 tokens, but the context holds 10") as caught:
        check_fits(10, 10, "prompt")
    assert caught.value.field == "prompt"
