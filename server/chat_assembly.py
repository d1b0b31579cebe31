"""Puts the chat service together from the settings: its image workers, the guarded fetch, the preparation of turns."""

import contextlib
import functools
import time
from collections.abc import AsyncIterator

from idefics_chat.conversation.ids import IdMaker
from idefics_chat.conversation.images import ImageLimits
from idefics_chat.inference.requests import Engine
from idefics_chat.server.chat import ChatService
from idefics_chat.server.fetch_policy import read_policy
from idefics_chat.server.guarded_fetch import FetchLimits, GuardedFetch
from idefics_chat.server.image_intake import Fetch, ImageIntake
from idefics_chat.server.image_workers import ImageWorkers
from idefics_chat.server.settings import Settings
from idefics_chat.server.turn_preparation import TurnPreparation
from idefics_chat.server.uploads import find_image
from idefics_chat.storage.store import Store


@contextlib.asynccontextmanager
async def open_chat(store: Store, engine: Engine, settings: Settings) -> AsyncIterator[ChatService]:
    """The service, entered; left, it has ended what ran, and the image workers are gone."""
    make_id = IdMaker(time.time)
    workers = ImageWorkers(
        ImageLimits(settings.max_image_bytes, settings.max_image_pixels),
        count=settings.image_workers,
        time_s=settings.image_check_timeout_s,
    )
    preparation = TurnPreparation(
        store,
        engine,
        clock=time.time,
        make_id=make_id,
        images=ImageIntake(workers.check, functools.partial(find_image, store), image_fetch(settings)),
        max_images=settings.max_images_per_turn,
        max_text=settings.max_text_characters,
        max_items=settings.max_items_per_turn,
        default_max_output_tokens=settings.default_max_output_tokens,
    )
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(workers.aclose)
        chat = ChatService(
            store,
            engine,
            preparation,
            clock=time.time,
            make_id=make_id,
            on_disconnect=settings.on_disconnect,
            most_waiting_bytes=settings.max_frame_bytes,
        )
        yield await stack.enter_async_context(chat)


def image_fetch(settings: Settings) -> Fetch | None:
    """How images are fetched by link; None where they are not."""
    policy = read_policy(settings.image_links)
    if policy is None:
        return None
    return GuardedFetch(policy, FetchLimits(settings.max_image_bytes, settings.image_link_timeout_s)).image
