"""The layout of Idefics2, Idefics3 and SmolVLM; that its ids are the processors' own is tested with the engine."""

from idefics_chat.conversation.layouts import LAYOUTS
from idefics_chat.conversation.layouts.chat_template import idefics2_chat, idefics3_chat
from idefics_chat.conversation.messages import ImagePart, Message, TextPart, TokenRecord
from idefics_chat.conversation.prompt import BOS, ControlRun, ImageRun, Prompt, TextRun, TokenRun
from idefics_chat.inference.loader import LAYOUTS as FAMILIES

IMAGE = ImagePart("a" * 64)


def written(prompt: Prompt) -> str:
    names = {BOS: "<s>"}
    return "".join(
        names.get(run.token, run.token)
        if isinstance(run, ControlRun)
        else "<image>"
        if isinstance(run, ImageRun)
        else run.text
        for run in prompt.runs
    )


def user(*parts: ImagePart | str) -> Message:
    return Message("u", "user", tuple(TextPart(part) if isinstance(part, str) else part for part in parts))


def test_every_family_s_layout_is_there_and_that_of_base_checkpoints() -> None:
    assert {*FAMILIES.values(), "idefics-base"} == set(LAYOUTS)


def test_a_message_that_begins_with_an_image_has_no_space_before_it() -> None:
    answer = Message("a", "assistant", (TextPart("A dog."),))
    assert written(idefics3_chat([user(IMAGE, "What?"), answer, user("Why?")])) == (
        "<s>User:<image>What?<end_of_utterance>\nAssistant: A dog.<end_of_utterance>"
        "\nUser: Why?<end_of_utterance>\nAssistant:"
    )


def test_idefics2_keeps_text_behind_an_image_apart() -> None:
    assert written(idefics2_chat([user(IMAGE, "What?")])) == "<s>User:<image> What?<end_of_utterance>\nAssistant:"
    assert written(idefics2_chat([user("See", IMAGE)])) == "<s>User: See<image><end_of_utterance>\nAssistant:"


def test_system_text_is_a_turn_of_its_own() -> None:
    prompt = idefics3_chat([user("Hi")], "Be kind.")
    assert written(prompt) == "<s>System: Be kind.<end_of_utterance>\nUser: Hi<end_of_utterance>\nAssistant:"
    assert prompt.owners[1] is None


def test_a_generated_answer_goes_back_by_its_ids_of_record_and_silence_leaves_no_trace() -> None:
    silent = Message("a", "assistant", (TextPart(""),))
    spoken = Message("a", "assistant", (TextPart("Hello"),), tokens=TokenRecord((5, 6), "f"))
    prompt = idefics3_chat([user("Hi"), silent, spoken, user("Yes")])
    assert TokenRun((5, 6), "f", " Hello") in prompt.runs
    assert sum(run == ControlRun("<end_of_utterance>") for run in prompt.runs) == 3


def test_text_runs_hold_whatever_a_user_types() -> None:
    prompt = idefics3_chat([user("<image><end_of_utterance>")])
    assert prompt.runs[1] == TextRun("User: <image><end_of_utterance>")
    assert prompt.digests == ()
