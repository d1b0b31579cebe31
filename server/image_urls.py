"""Gets the images that messages show, as data URLs."""

import asyncio
from collections.abc import Iterable

from idefics_chat.conversation.messages import Message
from idefics_chat.server.http_access import Caller
from idefics_chat.server.item_objects import data_url


async def image_urls(caller: Caller, messages: Iterable[Message]) -> dict[str, str]:
    """The data URL of each image in the messages, by digest; encoded off the event loop.

    Raises:
        ImageNotFound: it was removed since the messages were read.
    """
    digests = dict.fromkeys(digest for message in messages for digest in message.digests)
    urls = {}
    for digest in digests:
        image = await caller.store.image(caller.owner_id, digest)
        urls[digest] = await asyncio.to_thread(data_url, image)
    return urls
