"""What the scheduler's tests work with: a family, images that are ready, jobs, and a cold stock `generate`.

Loaded by the conftest of this folder; there are no tests in it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from idefics_chat.inference.answer import Answer
from idefics_chat.inference.beam_search import BeamSearch
from idefics_chat.inference.errors import InferenceError
from idefics_chat.inference.family import EncodedImage, Family, PreparedImage
from idefics_chat.inference.job import Item, Job
from idefics_chat.inference.loader import LoadedModel
from idefics_chat.inference.prompt_encoder import EncodedPrompt
from idefics_chat.inference.requests import GenerationResult
from idefics_chat.inference.sampling import Sampler, seed_of
from idefics_chat.inference.sampling_params import SamplingParams

Token = tuple[int, str | None]
"""An id and the digest of the image it stands for."""


@dataclass(eq=False)
class Listener:
    """A sink that remembers."""

    items: list[Item] = field(default_factory=list)
    is_cancelled: bool = False

    def put(self, item: Item) -> None:
        self.items.append(item)

    @property
    def results(self) -> list[GenerationResult]:
        return [item for item in self.items if isinstance(item, GenerationResult)]

    @property
    def errors(self) -> list[InferenceError]:
        return [item for item in self.items if isinstance(item, InferenceError)]


class Kit:
    """One loaded model, its family, and three images that are ready for it."""

    def __init__(
        self, loaded: LoadedModel, family: Family, images: dict[str, PreparedImage], reference: Callable[..., list[int]]
    ) -> None:
        self.loaded = loaded
        self.family = family
        self.images = images
        self._reference = reference
        control = set(loaded.facts.control_ids.values())
        self.words = [index for index in range(loaded.facts.vocabulary_size) if index not in control]
        self.banned = [loaded.facts.control_ids[token] for token in family.banned_tokens]
        self._known: dict[tuple[Any, ...], list[int]] = {}

    def text(self, seeds: Sequence[int]) -> list[Token]:
        """Tokens of text, by number."""
        return [(self.words[seed % len(self.words)], None) for seed in seeds]

    def image(self, digest: str) -> list[Token]:
        """Tokens that stand for an image."""
        image_id = self.loaded.facts.control_ids[self.family.image_token]
        return [(index, digest if index == image_id else None) for index in self.images[digest].token_ids]

    def job(
        self,
        tokens: Sequence[Token],
        max_tokens: int,
        group: str | None = None,
        known: Mapping[str, EncodedImage] | None = None,
        kept_tokens: int | None = None,
        **sampling: Any,
    ) -> Job:
        """A job for a prompt, with a listener that remembers; `known` images are encoded already."""
        ready: dict[str, Any] = {**self.images, **(known or {})}
        ids, images = tuple(token[0] for token in tokens), tuple(token[1] for token in tokens)
        params = SamplingParams(**sampling)
        backend = self.loaded.facts.backend
        return Job(
            prompt=EncodedPrompt(ids, images, (len(ids),)),
            places=self.family.places(images),
            images={digest: ready[digest] for digest in dict.fromkeys(images) if digest is not None},
            answers=[Answer(backend, self.loaded.end_ids, max_tokens) for _ in range(params.n)],
            samplers=[
                Sampler(replace(params, seed=seed_of(params.seed, index)), ids, self.banned, (), self.loaded.end_ids)
                for index in range(1 if params.num_beams > 1 else params.n)
            ],
            beams=self._beams(params, max_tokens) if params.num_beams > 1 else None,
            sink=Listener(),
            max_tokens=max_tokens,
            group=group,
            kept_tokens=kept_tokens,
        )

    def _beams(self, params: SamplingParams, max_tokens: int) -> BeamSearch[Any]:
        end_ids = self.loaded.end_ids
        return BeamSearch(params.num_beams, end_ids, max_tokens, params.length_penalty, params.early_stopping)

    def reference(self, tokens: Sequence[Token], max_tokens: int, **options: Any) -> list[int]:
        """What a cold stock `generate` answers, the end token left out."""
        return self.references(tokens, max_tokens, **options)[0]

    def references(self, tokens: Sequence[Token], max_tokens: int, **options: Any) -> list[list[int]]:
        """All that a cold stock `generate` answers, end tokens left out; `options` as `SamplingParams` has them."""
        key = (tuple(tokens), max_tokens, tuple(sorted(options.items())))
        if key not in self._known:
            self._known[key] = self._reference(self, tokens, max_tokens, **options)
        return self._known[key]

    def pixels_in_order(self, tokens: Sequence[Token]) -> list[PreparedImage]:
        """The images of a prompt, in the order in which they stand there, repetitions included."""
        found, index = [], 0
        while index < len(tokens):
            digest = tokens[index][1]
            if digest is None:
                index += 1
                continue
            found.append(self.images[digest])
            ahead = sum(token[1] is not None for token in self.image(digest))
            while ahead:
                ahead -= tokens[index][1] is not None
                index += 1
        return found

    def generate(
        self, tokens: Sequence[Token], max_tokens: int, options: dict[str, Any], inputs: dict[str, Any]
    ) -> list[list[int]]:
        """Run stock `generate` on ids and whatever else the family's model takes."""
        ids = torch.tensor([[token[0] for token in tokens]])
        options = dict(options)
        answers = options.pop("n", 1)
        if "min_new_tokens" in options:  # stock warns of a least length above the greatest
            options["min_new_tokens"] = min(max_tokens, options["min_new_tokens"])
        # What is drawn apart is alike where nothing is drawn; stock refuses to do so.
        alike = answers if options.get("num_beams", 1) == 1 else 1
        out = self.loaded.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_tokens,
            do_sample=False,
            num_return_sequences=answers // alike,
            bad_words_ids=[[index] for index in self.banned],
            eos_token_id=sorted(self.loaded.end_ids),
            pad_token_id=0,
            **{"num_beams": 1, **options},
            **inputs,
        )
        return [self._until_end(row) for row in out[:, ids.shape[1] :].tolist()] * alike

    def _until_end(self, ids: list[int]) -> list[int]:
        ends = (place for place, token_id in enumerate(ids) if token_id in self.loaded.end_ids)
        return ids[: next(ends, len(ids))]


def idefics_reference(kit: Kit, tokens: Sequence[Token], max_tokens: int, **options: Any) -> list[list[int]]:
    """Stock IDEFICS-1, with the image attention mask that its processor makes: the last image before each token."""
    images = [image.inputs["pixel_values"] for image in kit.pixels_in_order(tokens)]
    blank = torch.zeros_like(next(iter(kit.images.values())).inputs["pixel_values"])
    pixels = torch.cat(images or [blank])[None]
    sees = torch.zeros(1, len(tokens), pixels.shape[1], dtype=torch.long)
    count = 0
    for index, (_, digest) in enumerate(tokens):
        count += digest is not None
        if count:
            sees[0, index, count - 1] = 1
    return kit.generate(tokens, max_tokens, options, {"pixel_values": pixels, "image_attention_mask": sees})


def in_sequence_reference(kit: Kit, tokens: Sequence[Token], max_tokens: int, **options: Any) -> list[list[int]]:
    """Stock Idefics2, Idefics3 or SmolVLM. Images of unlike sizes are padded to the largest, as their processors do."""
    images = [image.inputs for image in kit.pixels_in_order(tokens)]
    if not images:
        return kit.generate(tokens, max_tokens, options, {})
    size = [max(image["pixel_values"].shape[axis] for image in images) for axis in (-2, -1)]
    inputs = {name: torch.cat([_padded(image[name], size) for image in images], dim=1) for name in images[0]}
    return kit.generate(tokens, max_tokens, options, inputs)


def _padded(pixels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    height, width = pixels.shape[-2:]
    return torch.nn.functional.pad(pixels, (0, size[1] - width, 0, size[0] - height))
