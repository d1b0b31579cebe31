"""Images and who uses them, as units of work.

An image's bytes are stored once, under their hash. A use is a message's part that shows the image, or a file that was
uploaded; who has a use of an image has the image, and one that nobody uses is removed.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from idefics_chat.conversation.messages import Message
from idefics_chat.storage.errors import ImageNotFound
from idefics_chat.storage.models import ImageDataRecord, ImageRecord, OwnerImageRecord
from idefics_chat.storage.prepared import Prepared
from idefics_chat.storage.values import StoredImage

USES = Prepared(
    select(OwnerImageRecord.uses).where(
        OwnerImageRecord.owner_id == bindparam("owner_id"), OwnerImageRecord.digest == bindparam("digest")
    )
)
ANY_USE = Prepared(select(OwnerImageRecord.uses).where(OwnerImageRecord.digest == bindparam("digest")).limit(1))
_SIZE = Prepared(select(ImageRecord.size_bytes).where(ImageRecord.digest == bindparam("digest")))
_ADD_IMAGE = Prepared(insert(ImageRecord))
_ADD_IMAGE_DATA = Prepared(insert(ImageDataRecord))
_ADD_USES = Prepared(insert(OwnerImageRecord))
_SET_USES = Prepared(
    update(OwnerImageRecord)
    .where(OwnerImageRecord.owner_id == bindparam("of"), OwnerImageRecord.digest == bindparam("image"))
    .values(uses=bindparam("count"))
)
_END_USES = Prepared(
    delete(OwnerImageRecord).where(
        OwnerImageRecord.owner_id == bindparam("owner_id"), OwnerImageRecord.digest == bindparam("digest")
    )
)
_REMOVE_IMAGE = Prepared(delete(ImageRecord).where(ImageRecord.digest == bindparam("digest")))


def add_images(
    connection: Connection,
    owner_id: str,
    images: Iterable[StoredImage],
    messages: Sequence[Message],
    created_at: float,
) -> int:
    """Store those images that the messages show and that are not there yet; the bytes that are new to the owner.

    Raises ImageNotFound for one that the messages show and that was neither sent now nor the owner's before.
    """
    uses = Counter(digest for message in messages for digest in message.digests)
    sent: set[str] = set()
    for image in images:
        if image.digest in uses and image.digest not in sent:
            sent.add(image.digest)
            _add_image(connection, image, created_at)
    return _use_images(connection, owner_id, uses, sent)


def add_use(connection: Connection, owner_id: str, image: StoredImage, created_at: float) -> int:
    """Store an image that something else than a message uses; the bytes that are new to the owner."""
    _add_image(connection, image, created_at)
    return _use_images(connection, owner_id, {image.digest: 1}, {image.digest})


def end_uses(connection: Connection, owner_id: str, uses: Mapping[str, int]) -> tuple[int, int, int]:
    """Take back uses of images by what is gone; remove the images that nobody uses any more.

    Gives the bytes that the owner no longer has, the number of images removed and their bytes.
    """
    freed = removed = removed_bytes = 0
    for digest, fewer in uses.items():
        known = USES.one(connection, {"owner_id": owner_id, "digest": digest})
        size = _SIZE.one(connection, {"digest": digest}).size_bytes
        if known.uses > fewer:
            _SET_USES.run(connection, {"of": owner_id, "image": digest, "count": known.uses - fewer})
            continue
        _END_USES.run(connection, {"owner_id": owner_id, "digest": digest})
        freed += size
        if ANY_USE.one(connection, {"digest": digest}) is None:
            _REMOVE_IMAGE.run(connection, {"digest": digest})
            removed, removed_bytes = removed + 1, removed_bytes + size
    return freed, removed, removed_bytes


def _add_image(connection: Connection, image: StoredImage, created_at: float) -> None:
    if _SIZE.one(connection, {"digest": image.digest}) is not None:
        return
    about = {
        "digest": image.digest,
        "media_type": image.media_type,
        "width": image.width,
        "height": image.height,
        "size_bytes": len(image.data),
        "created_at": created_at,
    }
    _ADD_IMAGE.run(connection, about)
    _ADD_IMAGE_DATA.run(connection, {"digest": image.digest, "data": image.data})


def _use_images(connection: Connection, owner_id: str, uses: Mapping[str, int], sent: Collection[str]) -> int:
    """Count uses, and give the bytes of the images that are new to the owner.

    Raises ImageNotFound for one that is neither among `sent` nor the owner's already.
    """
    new_bytes = 0
    for digest, more in uses.items():
        known = USES.one(connection, {"owner_id": owner_id, "digest": digest})
        if known is not None:
            _SET_USES.run(connection, {"of": owner_id, "image": digest, "count": known.uses + more})
            continue
        size = _SIZE.one(connection, {"digest": digest}) if digest in sent else None
        if size is None:
            raise ImageNotFound(digest)
        _ADD_USES.run(connection, {"owner_id": owner_id, "digest": digest, "uses": more})
        new_bytes += size.size_bytes
    return new_bytes
