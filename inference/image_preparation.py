"""Makes the images of requests ready, beside the event loop and before they are queued.

An image is taken encoded where it is known, from memory or from disk; else its bytes are asked for, decoded and made
the model's pixels of. How many tokens stand for an image is remembered, since a prompt needs that to be counted.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from idefics_chat.conversation.images import ImageLimits, decode_image
from idefics_chat.conversation.prompt import Prompt
from idefics_chat.inference.devices import usable_cpus
from idefics_chat.inference.errors import EngineStopped
from idefics_chat.inference.family import EncodedImage, Family, PreparedImage
from idefics_chat.inference.feature_files import FeatureStore
from idefics_chat.inference.requests import ImageLoader

KNOWN_IMAGES = 100_000
"""Images whose place in a prompt is remembered, about a hundred bytes each: those that are divided alike share their
ids."""

ReadyImages = dict[str, PreparedImage | EncodedImage]
"""Images by digest, encoded or ready to be."""


class ImagePreparation:
    """For one model. `stored` are features on disk, if there are any; `known` gives those in memory. An image of more
    than `max_pixels` is not decoded."""

    def __init__(
        self,
        family: Family,
        stored: FeatureStore | None,
        known: Callable[[str], EncodedImage | None],
        max_pixels: int,
    ) -> None:
        self._family = family
        self._stored = stored
        self._known = known
        self._limits = ImageLimits(max_pixels=max_pixels)
        self._token_ids: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._shared_ids: dict[tuple[int, ...], tuple[int, ...]] = {}
        # As many as there are cores: more would only take the interpreter's lock from one another.
        self._workers = ThreadPoolExecutor(usable_cpus(), "idefics-chat images")
        self._is_closed = False

    def token_ids(self, digest: str) -> tuple[int, ...]:
        """The ids that stand for an image of a prompt that was made countable."""
        fixed = self._family.fixed_image_tokens
        return self._token_ids[digest] if fixed is None else fixed

    async def made_countable(self, prompt: Prompt, load: ImageLoader | None) -> ReadyImages:
        """Make those images of the prompt ready whose ids are not known yet; the others are not touched.

        Raises:
            EngineStopped: it was closed. What `load` raises, and what is wrong with an image.
        """
        unknown = [digest for digest in dict.fromkeys(prompt.digests) if digest not in self._token_ids]
        if not unknown or self._family.fixed_image_tokens is not None:
            return {}
        return {digest: await self._made_ready(digest, load) for digest in unknown}

    async def images(self, prompt: Prompt, load: ImageLoader, ready: ReadyImages) -> ReadyImages:
        """All the prompt's images; `ready` are those that `made_countable` gave. Raises as that."""
        images: ReadyImages = {}
        for digest in dict.fromkeys(prompt.digests):
            images[digest] = self._known(digest) or ready.get(digest) or await self._made_ready(digest, load)
        return images

    def close(self) -> None:
        """Take no more work; what is under way goes on. Idempotent."""
        self._is_closed = True
        self._workers.shutdown(wait=False)

    async def _made_ready(self, digest: str, load: ImageLoader | None) -> PreparedImage | EncodedImage:
        """An image's features from disk if they are there, else its pixels from its bytes."""
        if self._stored is not None and (found := await asyncio.to_thread(self._stored.find, digest)) is not None:
            self._remember(digest, found[0])
            return found[1]
        if load is None:
            raise ValueError("this model's images differ in length; counting one that was never seen needs its bytes")
        work = partial(_prepared, self._family, self._limits, await load(digest))
        if self._is_closed:
            raise EngineStopped
        image = await asyncio.get_running_loop().run_in_executor(self._workers, work)
        self._remember(digest, image.token_ids)
        return image

    def _remember(self, digest: str, token_ids: tuple[int, ...]) -> None:
        self._token_ids[digest] = self._shared_ids.setdefault(token_ids, token_ids)
        while len(self._token_ids) > KNOWN_IMAGES:
            self._token_ids.popitem(last=False)


def _prepared(family: Family, limits: ImageLimits, data: bytes) -> PreparedImage:
    return family.prepare(decode_image(data, limits))
