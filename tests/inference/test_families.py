"""The families whose images stand in the sequence: their prompts beside their own processors, and whole answers."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Idefics2Processor, Idefics3Processor

from idefics_chat.conversation.layouts import layout_named
from idefics_chat.conversation.messages import ImagePart, Message, TextPart
from idefics_chat.conversation.prompt import Prompt
from idefics_chat.conversation.tasks import Caption, Classify, Example, FewShot, Question, Story, Task, task_prompt
from idefics_chat.inference.families import family_of
from idefics_chat.inference.loader import load_model
from idefics_chat.inference.prompt_encoder import PromptEncoder
from idefics_chat.inference.requests import GenerationRequest
from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits

TEMPLATE = (
    "{bos}{% for message in messages %}{{message['role'].capitalize()}}"
    "{% if message['content'][0]['type'] == 'image' %}"
    "{{':'}}{% else %}{{': '}}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}"
    "{{line['text']}}{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{{ 'Assistant:' }}"
)
LAYOUTS = {"idefics2": "idefics2-chat", "idefics3": "idefics3-chat", "smolvlm": "idefics3-chat"}
CASES = [("idefics2", False), ("idefics2", True), ("idefics3", False), ("idefics3", True), ("smolvlm", True)]


class Case:
    """One small checkpoint, its family, and its own processor."""

    def __init__(self, folder: Path, name: str) -> None:
        self.loaded = load_model(str(folder), dtype="float32", device="cpu")
        self.family = family_of(self.loaded)
        self.layout_name = LAYOUTS[name]
        self.layout = layout_named(self.layout_name)
        template = TEMPLATE.replace("{bos}", "" if name == "idefics2" else "<s>")
        parts = (self.loaded.image_processor, self.loaded.tokenizer)
        if name == "idefics2":
            self.processor: Any = Idefics2Processor(*parts, image_seq_len=3, chat_template=template)
        else:
            # SmolVLM's own wants torchvision and num2words; on images it does the same.
            self.processor = Idefics3Processor(*parts, image_seq_len=4, chat_template=template)
        self.bos = "<s>" if name == "idefics2" else ""

    def processor_inputs(self, messages: list[Message], album: Any, begun: str = "") -> dict[str, Any]:
        """What the processor makes of the messages, the answer begun with `begun`."""
        content = [{"role": message.role, "content": [_item(part) for part in message.parts]} for message in messages]
        text = self.bos + self.processor.apply_chat_template(content) + begun
        images = [album.image(digest) for message in messages for digest in message.digests]
        return dict(self.processor(text=text, images=images or None, add_special_tokens=False, return_tensors="pt"))

    def encode(self, prompt: Prompt, album: Any) -> Any:
        encoder = PromptEncoder(self.loaded.facts, self.family.image_token, self.family.shared_boundary)
        return encoder.encode(prompt, lambda digest: self.family.prepare(album.image(digest)).token_ids)


def _item(part: TextPart | ImagePart) -> dict[str, str]:
    return {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0] + (", cut" if case[1] else ""))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_in_sequence: Any) -> Case:
    name, cut = request.param
    return Case(make_in_sequence(tmp_path_factory.mktemp("family"), name, cut=cut), name)


@pytest.fixture(scope="module")
def pictures(new_album: Any) -> tuple[Any, list[str]]:
    album = new_album()
    return album, [album.add("red"), album.add("blue", "rectangle", 40), album.add("green", "ellipse", 30)]


harmless = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: "<" not in text and text.strip() and "\ue000" not in text
)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_ids_are_those_of_the_models_own_processor(case: Case, pictures: Any, data: Any) -> None:
    album, digests = pictures
    part = harmless.map(TextPart) | st.sampled_from(digests).map(ImagePart)
    question = st.lists(part, min_size=1, max_size=3).map(lambda parts: Message("", "user", tuple(parts)))
    answer = harmless.map(lambda text: Message("", "assistant", (TextPart(text),)))
    turns = data.draw(st.lists(st.tuples(question, answer), max_size=2))
    messages = [*(message for turn in turns for message in turn), data.draw(question)]
    encoded = case.encode(case.layout(messages), album)
    assert list(encoded.ids) == case.processor_inputs(messages, album)["input_ids"][0].tolist()


DESCRIBE = "Describe this image."
EIFFEL = "An image of the Eiffel Tower at night."


def guide_tasks(one: str, other: str) -> list[tuple[Task, list[tuple[str | None, str]], str]]:
    """Tasks of the guide, each as the turns that a user of the processor would write (an image and a text, or an
    answer), and what the answer is begun with."""
    return [
        (Caption(one), [(one, DESCRIBE)], ""),
        (Caption(one, "This is an image of "), [(one, DESCRIBE)], " This is an image of"),
        (
            FewShot(other, (Example(one, EIFFEL),)),
            [(one, DESCRIBE), (None, EIFFEL), (other, DESCRIBE)],
            "",
        ),
        (
            Question(one, "Where are these people?"),
            [(one, "Provide an answer to the question. Use the image to answer.\nWhere are these people?")],
            "",
        ),
        (
            Classify(one, ("animals", "cars")),
            [
                (
                    one,
                    "Classify the following image into a single category from the following list: ['animals', 'cars'].",
                )
            ],
            "",
        ),
        (Story(one), [(one, "Use the image to write a story.")], ""),
    ]


@pytest.mark.parametrize("which", range(6))
def test_task_ids_are_those_of_the_models_own_processor(case: Case, pictures: Any, which: int) -> None:
    album, (red, blue, _) = pictures
    task, turns, begun = guide_tasks(red, blue)[which]
    messages = [
        Message("", "assistant", (TextPart(text),))
        if digest is None
        else Message("", "user", (ImagePart(digest), TextPart(text)))
        for digest, text in turns
    ]
    expected = case.processor_inputs(messages, album, begun)["input_ids"][0].tolist()
    assert list(case.encode(task_prompt(task, case.layout_name), album).ids) == expected


@pytest.mark.anyio
async def test_answers_in_fp32_are_token_equal_to_stock_generate(
    case: Case, pictures: Any, running: Any, answer: Any
) -> None:
    album, (red, blue, green) = pictures
    engine = running(case.loaded, prefill_tokens=11)
    questions = [
        [TextPart("Hello")],
        [ImagePart(red), TextPart("What is this?")],
        [TextPart("Two:"), ImagePart(blue), ImagePart(green), TextPart("which?")],
        [ImagePart(red), ImagePart(red)],
    ]
    for parts in questions:
        messages = [Message("", "user", tuple(parts))]
        prompt = case.layout(messages)
        _, result = await answer(engine, GenerationRequest(prompt, album.load, max_output_tokens=12))
        inputs = case.processor_inputs(messages, album)
        banned = [[case.loaded.facts.control_ids[token]] for token in case.family.banned_tokens]
        ends = sorted(case.loaded.end_ids)
        out = case.loaded.model.generate(
            **inputs, max_new_tokens=12, do_sample=False, bad_words_ids=banned, eos_token_id=ends, pad_token_id=0
        )
        expected = out[0, inputs["input_ids"].shape[1] :].tolist()
        assert list(result.token_ids) == [index for index in expected if index not in ends]
        assert sum(await engine.count_tokens(prompt)) == result.usage.input_tokens


@pytest.mark.anyio
async def test_an_image_that_was_never_seen_is_counted_with_its_bytes(case: Case, running: Any, new_album: Any) -> None:
    album = new_album()
    prompt = case.layout([Message("", "user", (ImagePart(album.add("black", size=50)),))])
    engine = running(case.loaded)
    if case.family.fixed_image_tokens is None:
        with pytest.raises(ValueError, match="needs its bytes"):
            await engine.count_tokens(prompt)
    counted = await engine.count_tokens(prompt, album.load)
    assert counted == await engine.count_tokens(prompt)


def test_a_model_whose_weights_wait_in_main_memory_answers_as_a_whole_one(kit: Any) -> None:
    """accelerate leaves such weights on no device until they are used, as where a GPU is too small for them."""
    waiting = accelerate.cpu_offload(deepcopy(kit.loaded.model), torch.device("cpu"))
    assert next(waiting.parameters()).device.type == "meta"
    family = family_of(replace(kit.loaded, model=waiting))
    scheduler = Scheduler(family, SchedulerLimits(max_running=4), 200)
    prompts = [[*kit.text(range(seed, seed + 5)), *kit.image(digest * 64)] for seed, digest in enumerate("ab")]
    jobs = [kit.job(tokens, 6) for tokens in prompts]
    for job in jobs:
        scheduler.submit(job)
    while not scheduler.is_idle:
        scheduler.step()
    assert [list(job.sink.results[0].token_ids) for job in jobs] == [kit.reference(tokens, 6) for tokens in prompts]
