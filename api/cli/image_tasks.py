"""`idefics-chat caption, ask, classify, story, few-shot`: one task on one image or many."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from idefics_chat.cli.common import fail, run_to_end
from idefics_chat.cli.task_inputs import NamedImage, find_images, names_an_image
from idefics_chat.cli.task_options import (
    ANSWER_FLAGS,
    MODEL_FLAGS,
    OUTPUT_FLAGS,
    TaskFlags,
    check_job,
    opened_model,
    task_command,
)
from idefics_chat.cli.task_output import ImageResults
from idefics_chat.cli.task_progress import progress_bar, results_of, run_until_interrupted
from idefics_chat.conversation.tasks import DESCRIBE
from idefics_chat.inference.task_runner import TaskResult
from idefics_chat.tasks.images import ImageShelf
from idefics_chat.tasks.jobs import job_order
from idefics_chat.tasks.models import AsyncModel

Images = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE...", help="Files, folders, patterns, links; - for standard input.", show_default=False
    ),
]
Job = dict[str, Any]
ASK_EXAMPLE = 'idefics-chat ask photo.png "What colour is it?"'


@task_command(MODEL_FLAGS, ANSWER_FLAGS, OUTPUT_FLAGS)
def caption(
    images: Images,
    prompt: Annotated[str, typer.Option(help='Go on from this, as "This is an image of".', show_default=False)] = "",
    *,
    flags: TaskFlags,
) -> None:
    """Describe images.

    Examples:

        idefics-chat caption photo.png

        idefics-chat caption holiday/ --prompt "This is an image of" --json

        cat photo.png | idefics-chat caption -
    """
    _run(flags, images, {"task": "caption", "prompt": prompt})


@task_command(MODEL_FLAGS, ANSWER_FLAGS, OUTPUT_FLAGS)
def ask(
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE", help="Files, folders, patterns, links; - for standard input."),
    ] = None,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What you want to know of each.")] = "",
    *,
    flags: TaskFlags,
) -> None:
    """Ask a question about images.

    Examples:

        idefics-chat ask photo.png "What colour is it?"

        idefics-chat ask "holiday/*.jpg" "How many people are there?" --server http://127.0.0.1:8000
    """
    # Of one word alone nobody knows which of the two it is.
    if not images or names_an_image(question):
        fail(f"Give the images first, then the question: {ASK_EXAMPLE}", 2)
    _run(flags, images, {"task": "ask", "question": question})


@task_command(MODEL_FLAGS, ANSWER_FLAGS, OUTPUT_FLAGS)
def classify(
    images: Images,
    categories: Annotated[str, typer.Option(help="What to choose from, with commas.", show_default=False)],
    rank: Annotated[bool, typer.Option("--rank", help="Give the probability of every category.")] = False,
    normalization: Annotated[
        str | None,
        typer.Option(help="With --rank: none, or tokens for the mean of a category's log-likelihood over its tokens."),
    ] = None,
    *,
    flags: TaskFlags,
) -> None:
    """Sort images into categories.

    Examples:

        idefics-chat classify photo.png --categories circle,square,triangle

        idefics-chat classify photos/ --categories indoors,outdoors --rank --json
    """
    names = [name.strip() for name in categories.split(",") if name.strip()]
    job: Job = {"task": "classify", "categories": names, "rank": rank}
    if normalization is not None:
        if not rank:
            fail("--normalization is of ranked categories; give --rank too, or leave it out.", 2)
        job["normalization"] = normalization
    _run(flags, images, job)


@task_command(MODEL_FLAGS, ANSWER_FLAGS, OUTPUT_FLAGS)
def story(images: Images, *, flags: TaskFlags) -> None:
    """Write stories that images suggest.

    Examples:

        idefics-chat story photo.png --beams 2

        idefics-chat story photo.png --temperature 0.8 --seed 1 --repetition-penalty 1.1
    """
    _run(flags, images, {"task": "story"})


@task_command(MODEL_FLAGS, ANSWER_FLAGS, OUTPUT_FLAGS)
def few_shot(
    examples: Annotated[
        Path,
        typer.Argument(
            help='JSON lines: {"image": "a.png", "answer": "..."}; paths from the file.', show_default=False
        ),
    ],
    images: Images,
    instruction: Annotated[str, typer.Option(help="What is asked of every image.")] = DESCRIBE,
    *,
    flags: TaskFlags,
) -> None:
    """Answer for images as examples do.

    Examples:

        idefics-chat few-shot examples.jsonl photo.png

        idefics-chat few-shot examples.jsonl photos/ --instruction "Name the bird."
    """
    _run(flags, images, {"task": "few-shot", "examples": _examples(examples), "instruction": instruction})


COMMANDS = (caption, ask, classify, story, few_shot)


def _examples(path: Path) -> list[dict[str, str]]:
    """The examples in a file, their images by paths that can be read from here."""
    try:
        lines = [line for line in path.read_text("utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        fail(f"The examples {path} cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'}).")
    examples = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            examples.append({"image": str(path.parent / value["image"]), "answer": str(value["answer"])})
        except (ValueError, KeyError, TypeError):
            fail(f'Line {number} of {path} is no example; write {{"image": "a.png", "answer": "..."}}.')
    if not examples:
        fail(f"There are no examples in {path}.")
    return examples


def _run(flags: TaskFlags, words: list[str], job: Job) -> None:
    job |= flags.options
    check_job(job | {"image": "any"})
    images = find_images(words)
    results = ImageResults([image.name for image in images], str(job["task"]), flags.json)

    def how_to_go_on() -> str:
        results.finish()
        return f"{results.shown} of {len(images)} images are done; give the others again to go on."

    run_until_interrupted(lambda: run_to_end(_show(flags, images, job, results)), how_to_go_on)
    results.finish()
    if results.failures:
        raise typer.Exit(1)


async def _show(flags: TaskFlags, images: list[NamedImage], job: Job, results: ImageResults) -> None:
    async with opened_model(flags) as model:
        jobs = ((index, partial(_answer, model, job | {"image": image.source})) for index, image in enumerate(images))
        with progress_bar(str(job["task"]), len(images)) as advance:
            async for index, result in results_of(jobs, advance):
                results.add(index, result)


async def _answer(model: AsyncModel, job: Job) -> TaskResult:
    shelf = ImageShelf(model.limits)
    return await model.runner.run(await job_order(job, shelf), patient=True)
