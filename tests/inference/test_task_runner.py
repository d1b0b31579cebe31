"""Tasks on an engine: what prompts begin with is read once where one owner asks."""

from typing import Any

import pytest

from idefics_chat.conversation.tasks import Caption, Question
from idefics_chat.inference.families import family_of
from idefics_chat.inference.task_runner import Order, TaskRunner

pytestmark = pytest.mark.anyio


async def test_an_instruction_before_the_image_is_read_once_for_all_images_of_one_owner(
    shipped: Any, running: Any, album: Any
) -> None:
    engine = running(shipped)
    orders = [Order(Question(album.add(colour), "What color is it?"), album.load) for colour in ("red", "blue")]
    apart = [await TaskRunner(engine).run(order) for order in orders]
    shared = [await TaskRunner(engine, cache_key="one owner").run(order) for order in orders]
    assert [result.text for result in shared] == [result.text for result in apart] == ["Red.", "Blue."]
    assert [result.usage.cached_tokens for result in apart] == [0, 0]
    assert shared[0].usage.cached_tokens == 0
    # All that stands before the image, the token at its edge included, and no more: the images differ.
    instruction = "Instruction: Provide an answer to the question. Use the image to answer.\n"
    before = len(shipped.tokenizer(instruction, add_special_tokens=False).input_ids)
    assert shared[1].usage.cached_tokens == 1 + before + 1


async def test_of_a_task_no_more_is_kept_than_others_can_use(shipped: Any, running: Any, album: Any) -> None:
    engine = running(shipped)
    runner, kept = TaskRunner(engine, cache_key="one owner"), []
    for colour in ("red", "blue", "green"):
        await runner.run(Order(Question(album.add(colour), "What color is it?"), album.load))
        kept.append(engine.counters()["parked_device_bytes_now"])
    assert kept[0] > 0
    assert kept == kept[:1] * 3
    await runner.run(Order(Caption(album.add("red")), album.load))  # the beginning and the image's edge, two tokens
    token_bytes = family_of(shipped).cache_shape.token_bytes
    assert engine.counters()["parked_device_bytes_now"] == kept[0] + 2 * token_bytes
