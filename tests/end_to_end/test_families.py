"""The other model families behind the same wire: small random checkpoints, loaded from a folder by the real server."""

from pathlib import Path

import pytest

from tests.end_to_end.client import Client, text_of
from tests.end_to_end.server_process import ServerProcess
from tests.inference.conftest import save_in_sequence


@pytest.mark.parametrize("family", ["idefics2", "idefics3", "smolvlm"])
def test_a_conversation_with_images_goes_on_after_a_restart(
    tmp_path: Path, family: str, red_circle: bytes, blue_square: bytes
) -> None:
    folder, database = save_in_sequence(tmp_path / family, family), tmp_path / "chat.db"
    sampling = {"max_output_tokens": 6}
    with ServerProcess(database, "--model", str(folder)) as server, Client(server.url) as client:
        first = client.ask("What is this?", red_circle, **sampling)
        assert first["model"] == family
        assert first["status"] in ("completed", "incomplete")
        images = first["usage"]["input_tokens_details"]["image_tokens"]
        assert images > 1
        second = client.ask("And this?", blue_square, previous_response_id=first["id"], **sampling)
        assert second["usage"]["input_tokens_details"]["image_tokens"] == 2 * images
        assert second["usage"]["input_tokens_details"]["cached_tokens"] > 0
    with ServerProcess(database, "--model", str(folder)) as server, Client(server.url) as client:
        again = client.ask("And now?", conversation=first["conversation"]["id"], **sampling)
        assert again["usage"]["input_tokens_details"]["image_tokens"] == 2 * images
        assert again["usage"]["input_tokens"] > second["usage"]["input_tokens"]
        repeated = client.ask("And this?", blue_square, previous_response_id=first["id"], **sampling)
        assert text_of(repeated) == text_of(second)
