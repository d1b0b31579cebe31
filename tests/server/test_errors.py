"""Errors: every code that any package raises is on the list, with a status and a sentence."""

from idefics_chat.conversation import errors as conversation
from idefics_chat.inference import errors as inference
from idefics_chat.server.errors import CODES, ApiError, as_api_error
from idefics_chat.storage import errors as storage
from idefics_chat.storage.errors import ConversationNotFound
from tests.server.openai_types import check_frame

OPERATOR_ONLY = {
    inference.ModelLoadError,
    storage.DatabaseTooNew,
    storage.DatabaseTooOld,
    storage.OwnerNotFound,
    storage.UnknownRevision,
}
OURS_ALONE = {storage.StorageError, storage.NotFound, storage.ResponseFinished, storage.EventOutOfOrder}
"""Bases, and mistakes of the server's: a client is told `server_error`."""


def tree(base: type[Exception]) -> set[type[Exception]]:
    return {base} | {kind for child in base.__subclasses__() for kind in tree(child)}


def test_every_error_that_can_reach_a_client_has_a_listed_code() -> None:
    trees = tree(conversation.ConversationError) | tree(inference.InferenceError) | tree(storage.StorageError)
    # Who embeds the package has errors besides, which no server raises.
    servers = {kind for kind in trees if not kind.__module__.startswith("idefics_chat.tasks.")}
    for kind in servers - OPERATOR_ONLY - OURS_ALONE:
        assert kind.code in CODES, kind  # type: ignore[attr-defined]


def test_an_error_keeps_its_code_parameter_and_sentence() -> None:
    api_error = as_api_error(inference.InvalidSampling("top_p", "must be above 0 and at most 1."))
    assert (api_error.code, api_error.param, api_error.status) == ("invalid_value", "top_p", 400)
    assert as_api_error(ConversationNotFound("conv_1")).status == 404
    assert as_api_error(api_error) is api_error


def test_what_nobody_foresaw_tells_the_client_nothing_of_our_inside() -> None:
    api_error = as_api_error(RuntimeError("password=hunter2 at /srv/secret"))
    assert (api_error.code, api_error.status) == ("server_error", 500)
    assert "hunter2" not in api_error.message


def test_an_error_frame_is_nested_and_flat_and_the_sdk_s_types_hold_it() -> None:
    for code in CODES:
        frame = ApiError(code, "Do this.", "input").frame()
        check_frame(frame)
        assert frame["error"] == {"message": "Do this.", "type": CODES[code][1], "code": code, "param": "input"}
