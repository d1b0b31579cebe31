"""Search: by word, prefix and phrase, in any language, whatever the query holds, and only the owner's own."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import text as sql

from idefics_chat.storage import turns
from idefics_chat.storage.dialect.full_text import match_expression
from idefics_chat.storage.search_terms import segmented, terms_of, unmarked
from idefics_chat.storage.values import FinishedResponse
from idefics_chat.storage.verify import verify

pytestmark = pytest.mark.anyio


async def say(store, owner, talk, *texts: str) -> None:
    await store.get_or_create_conversation(owner.id, "talk", id=f"conv_{owner.name}")
    for text in texts:
        conversation = await store.get_or_create_conversation(owner.id, "talk", id="unused")
        row = await store.begin_response(owner.id, talk.new(conversation.id, conversation.tip_id, text), [])
        await store.finish_response(talk.finished(row, "ok"), [])


async def found(store, owner, query: str) -> list[str]:
    return [hit.snippet for hit in await store.search(owner.id, query)]


async def test_words_are_found_whatever_their_case_and_accents(store, owner, talk):
    await say(store, owner, talk, "Der grüne Würfel liegt links", "A red cube, a blue ball")
    assert (
        await found(store, owner, "würfel") == await found(store, owner, "WURFEL") == ["Der grüne Würfel liegt links"]
    )
    assert await found(store, owner, "cube red") == ["A red cube, a blue ball"]
    assert await found(store, owner, "cube green") == []


async def test_a_star_asks_for_a_beginning_and_quotes_for_a_phrase(store, owner, talk):
    await say(store, owner, talk, "the photographer left", "left the photographer")
    assert await found(store, owner, "photog") == []
    assert len(await found(store, owner, "photog*")) == 2
    assert await found(store, owner, '"photographer left"') == ["the photographer left"]
    assert await found(store, owner, '"photographer le"*') == ["the photographer left"]


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("我喜欢这张图片里的小猫", "图片"),
        ("この写真には猫がいます", "猫"),
        ("การสนทนาเกี่ยวกับรูปภาพ", "รูปภาพ"),
        ("이 사진에는 고양이가 있다", "사진에는"),
        ("هذه صورة لقطة صغيرة", "صورة"),
        ("यह एक छोटी बिल्ली है", "बिल्ली"),
        ("Это маленькая кошка", "кошка"),
        ("a cat 🐈 sleeps", "🐈"),
    ],
)
async def test_any_language_is_found_and_shown_as_it_was_written(store, owner, talk, text, query):
    await say(store, owner, talk, text, "something else")
    (hit,) = await store.search(owner.id, query)
    assert hit.snippet == text
    assert [hit.snippet[start:end] for start, end in hit.marks] == [query]


async def test_letters_of_unspaced_scripts_are_found_only_side_by_side(store, owner, talk):
    await say(store, owner, talk, "图书馆的照片")
    assert await found(store, owner, "图片") == []


async def test_better_matches_come_first_and_pages_go_on(store, owner, talk):
    await say(store, owner, talk, *(f"cat {'filler ' * n}" for n in (30, 0, 10)))
    lengths = [len(hit.snippet) for hit in await store.search(owner.id, "cat")]
    assert lengths == sorted(lengths)
    first = await store.search(owner.id, "cat", limit=2)
    second = await store.search(owner.id, "cat", limit=2, offset=2)
    assert [*first, *second] == await store.search(owner.id, "cat")


async def test_only_the_owners_own_messages_are_found(store, owner, talk):
    bob = await store.owner("bob")
    await say(store, owner, talk, "secret plan")
    await say(store, bob, talk, "secret garden")
    assert await found(store, owner, "secret") == ["secret plan"]
    assert await found(store, bob, "secret") == ["secret garden"]
    assert await found(store, bob, "own") == await found(store, bob, bob.id) == []


async def test_what_a_failed_turn_said_is_not_found(store, owner, talk):
    await store.create_conversation(owner.id, id="conv_1")
    row = await store.begin_response(owner.id, talk.new("conv_1", text="unsayable"), [])
    assert len(await store.search(owner.id, "unsayable")) == 1
    await store.finish_response(FinishedResponse(row.id, "failed", None, 1.0), [])
    assert await store.search(owner.id, "unsayable") == []


async def test_what_comes_and_goes_within_one_commit_is_found_or_not_as_it_stands_then(store, owner, talk, database):
    await store.create_conversation(owner.id, id="conv_1")
    first = talk.new("conv_1", text="unsayable")
    second = talk.new("conv_1", text="sayable")
    third = talk.new("conv_1", text="sayable too")

    def unit(connection):  # the first's place among the parts is the second's then
        turns.begin_response(connection, owner.id, first, [])
        turns.finish_response(connection, FinishedResponse(first.id, "failed", None, 1.0), [])
        turns.begin_response(connection, owner.id, second, [])
        turns.finish_response(connection, FinishedResponse(second.id, "completed", None, 1.0), [])

    await asyncio.gather(store._writer.run(unit), store.owner("bob"))
    await store.begin_response(owner.id, third, [])
    assert await store.search(owner.id, "unsayable") == []
    found = {hit.message_id for hit in await store.search(owner.id, "sayable")}
    assert found == {second.messages[0].id, third.messages[0].id}
    assert verify(database).problems == ()


HOSTILE = [
    "", " ", '"', '""', '"a', "*", "a*b", "NEAR(a b)", "a AND", "OR", "NOT a", "text:a", "owner:own", "^a", "a-b", "(",
    "a)", "{a b}:c", "a + b", "'; DROP TABLE messages; --", "\\", "\x00", "%", "_", "-", "...", '" OR owner : "x',
    "a" * 10_000, "a " * 5_000, '"a" *', "🤷", "\u0301", "e\u0301", "\u200d", "\x1f", "\x02\x03",
]  # fmt: skip


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
async def test_no_query_is_wrong(store, owner, talk, query):
    await say(store, owner, talk, "a b c")
    assert isinstance(await store.search(owner.id, query), list)


async def test_any_text_searches_without_an_error_and_finds_itself(store, owner, talk):
    @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
    def collect(text):
        queries.append(text)

    queries: list[str] = []
    collect()
    await say(store, owner, talk, *queries[:40])
    async with store._read() as connection:
        for query in queries:
            if terms := terms_of(query):
                expression = match_expression(owner.id, terms)
                statement = sql("SELECT count(*) FROM message_search WHERE message_search MATCH :e")
                count = (await connection.execute(statement, {"e": expression})).scalar_one()
                assert count >= (query in queries[:40] and '"' not in query and "*" not in query)


@given(st.text())
def test_segmenting_only_adds_separators(text):
    assert segmented(text).replace("\x1f", "") == text.replace("\0", "\x1f").replace("\x1f", "")


def test_marks_are_given_as_places_in_the_text():
    assert unmarked("a \x02red\x03 cube and \x02a\x1fb\x03") == ("a red cube and ab", ((2, 5), (15, 17)))
