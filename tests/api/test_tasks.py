"""The tasks from Python, with the shipped model: right answers about real pictures, in this process and by a server."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from idefics_chat import tasks
from idefics_chat.conversation.errors import InvalidImage, InvalidTask
from idefics_chat.inference.errors import InvalidSampling, ModelLoadError
from idefics_chat.server.errors import ApiError
from idefics_chat.tasks import aio
from tests.api.pictures import draw, png, save_pictures
from tests.end_to_end.server_process import ServerProcess


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    save_pictures(folder)
    return folder


@pytest.fixture(scope="module", params=["in process", "by a server"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tasks.Model]:
    """The shipped model, both ways."""
    if request.param == "in process":
        with tasks.load_model(device="cpu") as loaded:
            yield loaded
        return
    with ServerProcess(tmp_path_factory.mktemp("server") / "chat.db") as server, tasks.connect(server.url) as asked:
        yield asked


def test_the_model_says_its_name(model: tasks.Model) -> None:
    assert model.name == "idefics-shapes"


def test_a_caption_is_the_same_however_the_image_is_given(model: tasks.Model, pictures: Path) -> None:
    path = pictures / "photo.png"
    for image in (path, str(path), path.read_bytes(), Image.open(path)):
        result = tasks.caption(model, image)
        assert result.text == "A red circle on a white background."
        assert result.finish_reason == "stop"
        assert result.usage.output_tokens > 5
        assert result.usage.image_tokens == 1


def test_many_images_give_results_in_their_order(model: tasks.Model, pictures: Path) -> None:
    images = [pictures / f"{name}.png" for name in ("square", "photo", "triangle")] * 4
    answers = [result.text for result in tasks.ask(model, images, "What color is it?")]
    assert answers == ["Blue.", "Red.", "Green."] * 4


def test_a_prompted_caption_goes_on_from_its_lead_in(model: tasks.Model, pictures: Path) -> None:
    result = tasks.caption(model, pictures / "square.png", "This is an image of ")
    assert result.text == "a blue square on a white background."


def test_a_category_is_named_or_ranked(model: tasks.Model, pictures: Path) -> None:
    shapes = ["circle", "square", "triangle"]
    named = tasks.classify(model, pictures / "triangle.png", shapes)
    assert (named.text, named.category, named.scores) == ("triangle", "triangle", None)
    ranked = tasks.classify(model, [pictures / "square.png", pictures / "photo.png"], shapes, rank=True)
    assert [result.category for result in ranked] == ["square", "circle"]
    assert ranked[0].scores is not None
    assert sum(ranked[0].scores.values()) == pytest.approx(1)
    assert list(ranked[0].scores) == sorted(ranked[0].scores, key=lambda c: -ranked[0].scores[c])  # type: ignore[index]
    assert ranked[0].usage.input_tokens > 20
    assert ranked[0].usage.output_tokens == 0


def test_lengths_of_categories_can_be_made_to_count_for_nothing(model: tasks.Model, pictures: Path) -> None:
    categories = ["square", "a blue square on a white background"]
    by_sum = tasks.classify(model, pictures / "square.png", categories, rank=True).log_likelihoods
    by_token = tasks.classify(
        model, pictures / "square.png", categories, rank=True, normalization="tokens"
    ).log_likelihoods
    assert by_sum is not None
    assert by_token is not None
    long = categories[1]
    assert by_sum[long] < by_token[long] < 0
    assert (by_sum[long] / by_token[long]) == pytest.approx(round(by_sum[long] / by_token[long]), abs=1e-3)


def test_a_story_is_told_by_beams(model: tasks.Model, pictures: Path) -> None:
    told = tasks.story(model, pictures / "photo.png")
    assert told.text == "Once upon a time there was a red circle. It lived alone in a white land."
    assert tasks.story(model, pictures / "photo.png", num_beams=1).text == told.text


def test_examples_show_how_to_answer(model: tasks.Model, pictures: Path) -> None:
    examples = [(draw("blue", "square"), "A blue square on a white background.")]
    result = tasks.few_shot(model, examples, [pictures / "photo.png", pictures / "triangle.png"])
    assert [r.text for r in result] == [
        "A red circle on a white background.",
        "A green triangle on a black background.",
    ]


def test_texts_and_images_are_gone_on_from_in_any_order(model: tasks.Model, pictures: Path) -> None:
    result = tasks.go_on(model, [pictures / "photo.png", tasks.TextPart("This is an image of")])
    assert result.text == "a red circle on a white background."


def test_a_conversation_is_answered(model: tasks.Model, pictures: Path) -> None:
    chat = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is in this image?"},
                {"type": "image", "image": draw("red", "circle")},
            ],
        },
        {"role": "assistant", "content": "A red circle on a white background."},
        {"role": "user", "content": "What color is the circle?"},
    ]
    assert tasks.instruct(model, chat).text == "Red."


def test_settings_of_the_generation_are_heeded(model: tasks.Model, pictures: Path) -> None:
    photo = pictures / "photo.png"
    assert tasks.caption(model, photo, max_new_tokens=3).finish_reason == "length"
    assert tasks.caption(model, photo, stop=[" on"]).text == "A red circle"
    assert "red" not in tasks.caption(model, photo, bad_words=["red"]).text
    assert tasks.caption(model, photo, min_new_tokens=9, max_new_tokens=12).usage.output_tokens > 9
    drawn = [tasks.caption(model, photo, temperature=1.5, seed=7, max_new_tokens=20).text for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_a_batch_mixes_tasks_and_goes_on_past_what_fails(model: tasks.Model, pictures: Path) -> None:
    jobs = [
        {"task": "caption", "image": str(pictures / "photo.png")},
        {"task": "caption", "image": str(pictures / "bad.png")},
        {"task": "ask", "image": draw("blue", "square"), "question": "What color is it?"},
        {"task": "classify", "image": png(draw("red", "circle")), "categories": ["circle", "square"], "rank": True},
        {"task": "dance"},
    ]
    results = dict(tasks.batch(model, jobs))
    assert len(results) == 5
    first, second, third, fourth, fifth = (results[index] for index in range(5))
    assert isinstance(first, tasks.TaskResult)
    assert first.text == "A red circle on a white background."
    assert isinstance(second, InvalidImage)
    assert isinstance(third, tasks.TaskResult)
    assert third.text == "Blue."
    assert isinstance(fourth, tasks.TaskResult)
    assert fourth.category == "circle"
    assert isinstance(fifth, ApiError)


def test_a_batch_can_be_left_early(model: tasks.Model, pictures: Path) -> None:
    jobs = ({"task": "caption", "image": str(pictures / "photo.png")} for _ in range(10_000))
    results = tasks.batch(model, jobs)
    for _ in range(3):
        next(results)
    results.close()
    assert tasks.caption(model, pictures / "photo.png").text == "A red circle on a white background."


def test_what_is_wrong_is_said_in_a_sentence(model: tasks.Model, pictures: Path) -> None:
    with pytest.raises(tasks.ImageUnreadable, match=r"cannot be read .*; give the path of a file\."):
        tasks.caption(model, pictures / "missing.png")
    with pytest.raises(InvalidImage):
        tasks.caption(model, [pictures / "photo.png", pictures / "bad.png"])
    with pytest.raises(InvalidTask):
        tasks.ask(model, pictures / "photo.png", " ")
    with pytest.raises(InvalidSampling):
        tasks.caption(model, pictures / "photo.png", num_beams=0)


def test_a_link_goes_through_the_guarded_fetch(model: tasks.Model) -> None:
    """Which reaches nothing on this machine or its network, whatever the link says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        for link in (f"http://127.0.0.1:{port}/a.png", "http://localhost/a.png", "https://[::1]/a.png"):
            with pytest.raises(tasks.ImageUnreadable):
                tasks.caption(model, link)
        listener.settimeout(0.2)
        with pytest.raises(TimeoutError):
            listener.accept()


def test_a_link_in_a_text_is_text(model: tasks.Model, pictures: Path) -> None:
    assert tasks.ask(model, pictures / "photo.png", "http://127.0.0.1:9/x.png What color is it?").text


def test_a_model_that_cannot_be_loaded_is_an_error_with_a_sentence() -> None:
    with pytest.raises(ModelLoadError, match="folder"), tasks.load_model("/no/such/folder"):
        raise AssertionError("it was loaded")


def test_a_server_that_is_not_there_is_an_error_with_a_sentence() -> None:
    with pytest.raises(tasks.ServerError, match="Is the server running"), tasks.connect("http://127.0.0.1:9"):
        raise AssertionError("it was reached")


@pytest.mark.anyio
async def test_the_same_with_an_event_loop(pictures: Path) -> None:
    async with aio.load_model(device="cpu") as model:
        assert (await aio.caption(model, pictures / "photo.png")).text == "A red circle on a white background."
        answers = await aio.ask(model, [pictures / "photo.png", pictures / "square.png"], "What color is it?")
        assert [answer.text for answer in answers] == ["Red.", "Blue."]
