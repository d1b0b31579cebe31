"""`/asyncapi.json`: the document of the websockets. That of HTTP, `/openapi.json`, is served by the framework."""

from typing import Any

from fastapi import APIRouter

from idefics_chat.server.asyncapi_document import asyncapi_document

router = APIRouter(include_in_schema=False)


@router.get("/asyncapi.json")
async def asyncapi() -> dict[str, Any]:
    """The AsyncAPI document."""
    return asyncapi_document()
