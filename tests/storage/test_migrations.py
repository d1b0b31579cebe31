"""From every earlier revision, with data in it, to this one: all of it is still there and works."""

import hashlib
import sqlite3

import pytest

from idefics_chat.conversation.messages import ImagePart, Message, TextPart, TokenRecord
from idefics_chat.storage import maintenance, schema
from idefics_chat.storage.dialect import database_url
from idefics_chat.storage.dialect.connections import write_engine
from idefics_chat.storage.errors import DatabaseTooOld, UnknownRevision
from idefics_chat.storage.store import Store
from idefics_chat.storage.values import Event
from idefics_chat.storage.verify import verify

pytestmark = pytest.mark.anyio

IMAGE = b"an image of revision one"
DIGEST = hashlib.sha256(IMAGE).hexdigest()
UNSHOWN = hashlib.sha256(b"nobody shows me").hexdigest()

AT_0001 = f"""
INSERT INTO owners VALUES ('own_1', 'ada', 1.0), ('own_2', 'bob', 2.0);
INSERT INTO api_keys VALUES ('hash', 'own_1', 'laptop', NULL, 1.0, NULL, NULL);
INSERT INTO conversations VALUES ('conv_1', 'own_1', 'telegram:42', '{{"a":"1"}}', 1.0, 5.0, NULL),
                                 ('conv_2', 'own_2', NULL, '{{}}', 2.0, 2.0, NULL);
INSERT INTO images VALUES ('{DIGEST}', 'image/png', 8, 6, {len(IMAGE)}, 1.0), ('{UNSHOWN}', 'image/png', 1, 1, 3, 1.0);
INSERT INTO image_data VALUES ('{DIGEST}', x'{IMAGE.hex()}'), ('{UNSHOWN}', x'616263');
INSERT INTO messages VALUES ('msg_1', 'conv_1', NULL, 'msg_1', 0, 'user', 'completed', 3.0, NULL, NULL),
                            ('msg_2', 'conv_1', 'msg_1', 'msg_1', 1, 'assistant', 'completed', 4.0, 't', x'05000000');
INSERT INTO message_parts VALUES (1, 'msg_1', 0, NULL, 'What is this?'), (2, 'msg_1', 1, '{DIGEST}', NULL),
                                 (3, 'msg_2', 0, NULL, 'Ein grüner Würfel.');
INSERT INTO responses VALUES ('resp_1', 'own_1', 'conv_1', NULL, NULL, '["msg_1"]', 'msg_2', 1, 'msg_1', 1, 'completed',
                              3.0, 5.0, '{{"model":"m"}}', '{{"output_tokens":1}}', NULL, NULL, 'key', 'h', NULL);
INSERT INTO response_events VALUES ('resp_1', 0, 'response.created', '{{}}'),
                                   ('resp_1', 1, 'response.completed', '{{}}');
UPDATE conversations SET tip_id = 'msg_2' WHERE id = 'conv_1';
"""
AT_0002 = f"""
INSERT INTO owners VALUES ('own_1', 'ada', 1.0), ('own_2', 'bob', 2.0);
INSERT INTO owner_usage VALUES ('own_1', 1, 2, {len(IMAGE)}, NULL, 100, NULL), ('own_2', 1, 0, 0, NULL, NULL, NULL);
INSERT INTO api_keys VALUES ('hash', 'own_1', 'laptop', NULL, 1.0, NULL, NULL);
INSERT INTO conversations VALUES
  ('conv_1', 'own_1', 'telegram:42', '{{"a":"1"}}', 1.0, 5.0, NULL, 'Würfel', 'active', NULL, NULL, NULL),
  ('conv_2', 'own_2', NULL, '{{}}', 2.0, 2.0, NULL, NULL, 'active', NULL, NULL, NULL);
INSERT INTO images VALUES ('{DIGEST}', 'image/png', 8, 6, {len(IMAGE)}, 1.0);
INSERT INTO image_data VALUES ('{DIGEST}', x'{IMAGE.hex()}');
INSERT INTO owner_images VALUES ('own_1', '{DIGEST}', 1);
INSERT INTO messages VALUES ('msg_1', 'conv_1', NULL, 'msg_1', 0, 'user', 'completed', 3.0, NULL, NULL),
                            ('msg_2', 'conv_1', 'msg_1', 'msg_1', 1, 'assistant', 'completed', 4.0, 't', x'05000000');
INSERT INTO message_parts VALUES (1, 'msg_1', 0, NULL, 'What is this?'), (2, 'msg_1', 1, '{DIGEST}', NULL),
                                 (3, 'msg_2', 0, NULL, 'Ein grüner Würfel.');
INSERT INTO message_search (rowid, owner, text) VALUES (1, 'own_1', 'What is this?'),
                                                        (3, 'own_1', 'Ein grüner Würfel.');
INSERT INTO responses VALUES ('resp_1', 'own_1', 'conv_1', NULL, NULL, '["msg_1"]', 'msg_2', 1, 'msg_1', 1, 'completed',
                              3.0, 5.0, '{{"model":"m"}}', '{{"output_tokens":1}}', NULL, NULL, 'key', 'h', NULL, NULL);
INSERT INTO response_events VALUES ('resp_1', 0, 'response.created', '{{}}'),
                                   ('resp_1', 1, 'response.completed', '{{}}');
UPDATE conversations SET tip_id = 'msg_2' WHERE id = 'conv_1';
"""
AT_0003 = f"""{AT_0002}
INSERT INTO files VALUES ('file_1', 'own_1', '{DIGEST}', 'a.png', 'vision', 6.0, NULL);
UPDATE owner_images SET uses = 2;
"""
DATA = {"0001": AT_0001, "0002": AT_0002, "0003": AT_0003}


def database_at(file, revision: str) -> None:
    """A database of that revision with data in it. The revisions before it, and only they, made it."""
    engine = write_engine(database_url(str(file)))
    schema.upgrade(engine, revision)
    engine.dispose()
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA foreign_keys=ON")
    connection.executescript(DATA[revision])
    connection.close()


async def test_there_is_data_for_every_earlier_revision():
    assert sorted(DATA) == schema.revisions()[:-1]


@pytest.mark.parametrize("revision", DATA)
async def test_everything_of_an_earlier_revision_is_there_and_goes_on(database, talk, revision):
    database_at(database, revision)
    store = await Store.open(str(database))
    try:
        ada, bob = await store.owner("ada"), await store.owner("bob")
        assert await store.owner_of_key("hash") == ada
        conversation = await store.get_or_create_conversation(ada.id, "telegram:42", id="conv_new")
        assert (conversation.id, conversation.tip_id, conversation.metadata) == ("conv_1", "msg_2", {"a": "1"})
        question = Message("msg_1", "user", (TextPart("What is this?"), ImagePart(DIGEST)), None, "completed", 3.0)
        record = TokenRecord((5,), "t")
        answer = Message("msg_2", "assistant", (TextPart("Ein grüner Würfel."),), "msg_1", "completed", 4.0, record)
        assert await store.path("conv_1", "msg_2") == [question, answer]
        assert (await store.items(ada.id, "conv_1", order="asc")).items == (question, answer)
        assert (await store.image(ada.id, DIGEST)).data == IMAGE
        assert (await store.response(ada.id, "resp_1")).usage == {"output_tokens": 1}
        assert await store.events("resp_1") == [
            Event(0, "response.created", "{}"),
            Event(1, "response.completed", "{}"),
        ]
        assert [c.id for c in (await store.conversations(bob.id)).items] == ["conv_2"]
        assert [hit.message_id for hit in await store.search(ada.id, "wurfel")] == ["msg_2"]
        usage = await store.usage(ada.id)
        assert (usage.conversations, usage.messages, usage.image_bytes) == (1, 2, len(IMAGE))
        assert [file.id for file in (await store.files(ada.id)).items] == ["file_1"] * (revision >= "0003")
        assert await store.batches(ada.id) == []
        assert verify(database).problems == ()
        await talk.turn(store, ada, "conv_1", "msg_2")
        for file in (await store.files(ada.id)).items:
            await store.delete_file(ada.id, file.id)
        assert (await store.purge_conversation(ada.id, "conv_1")).image_bytes == len(IMAGE)
    finally:
        await store.close()


async def test_a_database_that_is_not_upgraded_is_neither_checked_nor_counted_by_the_newest_rules(database):
    database_at(database, "0002")
    for look in (verify, maintenance.stats):
        with pytest.raises(DatabaseTooOld, match=r"revision 0002.*db upgrade"):
            look(database)
    assert maintenance.upgrade(str(database)).after == schema.revisions()[-1]
    assert verify(database).problems == ()
    assert maintenance.stats(database).rows["files"] == 0


async def test_a_migration_that_would_break_references_changes_nothing(database):
    database_at(database, "0001")
    connection = sqlite3.connect(database)
    connection.execute("INSERT INTO message_parts VALUES (9, 'msg_gone', 0, NULL, 'lost')")
    connection.commit()
    connection.close()
    with pytest.raises(UnknownRevision, match="refer to missing"):
        await Store.open(str(database))
    connection = sqlite3.connect(database)
    assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == ("0001",)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'message_search'").fetchone() == (0,)
    connection.close()
