"""What the engine's benchmarks share: a medium random Idefics3-like model, prompts with images, and timing.

Weights are random: speed does not depend on them, and answers never end early because no end token is set.
"""

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from transformers import Idefics3Config, Idefics3ForConditionalGeneration

from idefics_chat.inference.answer import Answer
from idefics_chat.inference.family import PreparedImage
from idefics_chat.inference.family_idefics3 import Idefics3
from idefics_chat.inference.job import Item, Job
from idefics_chat.inference.packed_linear import pack_linears
from idefics_chat.inference.prompt_encoder import EncodedPrompt
from idefics_chat.inference.requests import GenerationResult, TextDelta
from idefics_chat.inference.sampling import Sampler
from idefics_chat.inference.sampling_params import SamplingParams
from idefics_chat.inference.scheduler import Scheduler, SchedulerLimits

IMAGE_ID = 3
IMAGE_TOKENS = 64
VOCABULARY = 8192
FIRST_WORD = 10


def medium_model(
    layers: int = 8, hidden: int = 512, context: int = 4096, vocabulary: int = VOCABULARY, image_id: int = IMAGE_ID
) -> Any:
    """An Idefics3 of about 40 million parameters, images of 64 tokens, in fp32 on the CPU."""
    torch.manual_seed(0)
    config = Idefics3Config(
        image_token_id=image_id,
        pad_token_id=0,
        scale_factor=2,
        vision_config={
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": 256,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": vocabulary,
            "hidden_size": hidden,
            "intermediate_size": 4 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "max_position_embeddings": context,
            "pad_token_id": 0,
        },
    )
    return Idefics3ForConditionalGeneration(config).eval()


def image(seed: int) -> PreparedImage:
    """A random image that is ready for the model."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(1, 1, 3, 256, 256, generator=generator)
    mask = torch.ones(1, 1, 256, 256, dtype=torch.bool)
    return PreparedImage({"pixel_values": pixels, "pixel_attention_mask": mask}, (IMAGE_ID,) * IMAGE_TOKENS)


def words(count: int, seed: int) -> list[int]:
    """Random ids of text."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_WORD, VOCABULARY, (count,), generator=generator).tolist()


class Clock:
    """A sink that notes when each token came."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self.times_s: list[float] = []
        self.result: GenerationResult | None = None

    def put(self, item: Item) -> None:
        if isinstance(item, TextDelta):
            self.times_s.append(time.perf_counter())
        elif isinstance(item, GenerationResult):
            self.result = item


class _Words:
    """A decoder that gives one character a token, so that every token is a piece."""

    def get_added_tokens_decoder(self) -> dict[int, Any]:
        return {}

    def id_to_token(self, index: int) -> str:
        return "x"

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "x" * len(ids)


class Bench:
    """A model under the scheduler, with its weights packed as `create_engine` packs them, and under stock
    transformers, as it is."""

    def __init__(self, model: Any, max_running: int = 16) -> None:
        self.model = model
        self.packed = deepcopy(model)
        pack_linears(self.packed)
        self.family = Idefics3(self.packed, None, lambda runs: (), frozenset())
        self.scheduler = Scheduler(self.family, SchedulerLimits(max_running=max_running), 4096)

    def job(
        self,
        ids: Sequence[int],
        images: Sequence[str | None],
        shown: dict[str, PreparedImage],
        tokens: int,
        group: str | None = None,
    ) -> Job:
        backend: Any = _Words()
        job = Job(
            prompt=EncodedPrompt(tuple(ids), tuple(images), (len(ids),)),
            places=self.family.places(images),
            images=dict(shown),
            answers=[Answer(backend, frozenset(), tokens)],
            samplers=[Sampler(SamplingParams(), ids, [IMAGE_ID])],
            sink=Clock(),
            max_tokens=tokens,
            group=group,
        )
        self.scheduler.submit(job)
        return job

    def run(self) -> None:
        """Step until all is done."""
        while not self.scheduler.is_idle:
            self.scheduler.step()

    @torch.inference_mode()
    def stock(self, ids: Sequence[int], shown: Sequence[PreparedImage], tokens: int) -> list[int]:
        """Stock `generate`, cold."""
        inputs = {
            name: torch.cat([item.inputs[name] for item in shown], dim=1) for name in (shown[0].inputs if shown else ())
        }
        out = self.model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
            **inputs,
        )
        return out[0, len(ids) :].tolist()


def one_image_prompt(seed: int, text: int = 60) -> tuple[list[int], list[str | None], dict[str, PreparedImage]]:
    """A prompt of text and one image: ids, the image at each, and the image."""
    digest = f"{seed:064x}"
    ids = [*words(text // 2, seed), *[IMAGE_ID] * IMAGE_TOKENS, *words(text - text // 2, seed + 1000)]
    return ids, [digest if index == IMAGE_ID else None for index in ids], {digest: image(seed)}


def median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
