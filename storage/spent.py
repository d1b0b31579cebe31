"""What owners used of the model lately, for limits that outlive a restart."""

import json

from sqlalchemy import bindparam, select
from sqlalchemy.ext.asyncio import AsyncConnection

from idefics_chat.storage.models import ResponseRecord

# Ids sort by the time they were made, and are the primary key: only the rows that are wanted are read.
SINCE = select(ResponseRecord.owner_id, ResponseRecord.usage).where(
    ResponseRecord.id >= bindparam("first_id"), ResponseRecord.usage.is_not(None)
)


async def tokens_since(connection: AsyncConnection, first_id: str) -> dict[str, int]:
    """Tokens, input and output, of each owner's responses with that id and later ones."""
    spent: dict[str, int] = {}
    for owner_id, usage in await connection.execute(SINCE, {"first_id": first_id}):
        spent[owner_id] = spent.get(owner_id, 0) + json.loads(usage or "{}").get("total_tokens", 0)
    return spent
