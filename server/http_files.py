"""`/v1/files`: images sent once and shown in any number of turns, and the bytes of every image that was sent."""

from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.responses import Response

from idefics_chat.server.errors import ApiError
from idefics_chat.server.file_objects import FileUpload, Purpose, deleted_file, file_object, read_form
from idefics_chat.server.http_access import Admitted
from idefics_chat.server.item_objects import Json, list_object
from idefics_chat.server.state import ServerState

MAX_PAGE = 200
FORM_BYTES = 64 * 2**10
"""What a form may have besides its file."""

CONTENT_HEADERS = {
    "cache-control": "private, no-cache",
    "content-security-policy": "default-src 'none'; sandbox",
    "x-content-type-options": "nosniff",
}
"""A stranger's file, sent from our origin, must never run as a page of ours."""

router = APIRouter(prefix="/v1/files", tags=["files"])


@router.post("")
async def upload_file(request: Request, caller: Admitted) -> Json:
    """Keep an image: a form of `multipart/form-data` with `file` and `purpose`."""
    upload = await _read_upload(request)
    return file_object(
        await caller.chat.uploads.add(
            caller.owner_id, upload.data, upload.filename, upload.purpose, upload.expires_after_s
        )
    )


@router.get("")
async def list_files(
    caller: Admitted,
    limit: Annotated[int, Query(ge=1, le=10_000)] = MAX_PAGE,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
    purpose: Purpose | None = None,
) -> Json:
    """The owner's uploads; at most 200 at once, whatever the limit."""
    page = await caller.store.files(
        caller.owner_id, purpose=purpose, limit=min(limit, MAX_PAGE), order=order, after=after
    )
    return list_object([file_object(file) for file in page.items], page.has_more)


@router.get("/{file_id}")
async def retrieve_file(file_id: str, caller: Admitted) -> Json:
    """What is known of a file."""
    return file_object(await caller.chat.uploads.file(caller.owner_id, file_id))


@router.get("/{file_id}/content")
async def retrieve_content(file_id: str, caller: Admitted) -> Response:
    """The file's bytes, exactly as they were sent; also those of an image in an item, by its `file_id` there."""
    image = await caller.chat.uploads.content(caller.owner_id, file_id)
    return Response(image.data, media_type=image.media_type, headers=CONTENT_HEADERS)


@router.delete("/{file_id}")
async def delete_file(file_id: str, caller: Admitted) -> Json:
    """Forget a file. Messages that show it keep its image."""
    await caller.chat.uploads.delete(caller.owner_id, file_id)
    return deleted_file(file_id)


async def _read_upload(request: Request) -> FileUpload:
    """The form in the body. Raises ApiError, `image_too_large` as soon as there is too much of it."""
    state: ServerState = request.app.state.server
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError("invalid_value", "Send the file as a form: multipart/form-data with file and purpose.", "file")
    parser = MultiPartParser(
        request.headers, _bounded(request, state.settings.max_image_bytes + FORM_BYTES), max_files=1, max_fields=8
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ApiError("invalid_value", f"The form cannot be read: {error.message}", "file") from None
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError("missing_required_parameter", "file is missing; add it to the form.", "file")
        data = await file.read()
        fields = {name: value for name, value in form.multi_items() if isinstance(value, str)}
        return read_form(fields, file.filename or "", data)
    finally:
        await form.close()


async def _bounded(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise ApiError("image_too_large", f"This form has more than {limit} bytes; send a smaller image.", "file")
        yield chunk
