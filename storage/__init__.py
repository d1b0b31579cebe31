"""The database: owners, conversations, their messages with images, responses with their event logs.

    store.py       what the rest of the house sees: every call by owner, acknowledged only once committed
    library.py     its calls beside talking: lists, search, titles, archive, deletion, files, limits
    interchange.py its calls for export and import
    opened.py      the database, opened: one writer, many readers
    writer.py      the one writer: units of work from many callers, committed together

    turns.py       units of work: a turn begun, its events, finished
    accounts.py    owners, keys and conversations
    lifecycle.py   conversations renamed, archived, deleted, taken back, purged; old logs removed
    deletion.py    single items and responses deleted
    files.py       uploaded files
    images.py      images and who uses them
    quotas.py      what an owner has and may have

    reads.py       statements that read; rows.py turns rows into values and back
    listing.py     lists in pages
    search_terms.py what a search asks for, and how texts are cut into words
    tree.py        where a message stands: depth, and jumps that find any ancestor in few steps

    archive.py     the format of exports, and how a stranger's is checked; exporting.py, importing.py
    openai_messages.py  a path as a chat completion's messages, and back
    maintenance.py backup, restore, vacuum, statistics of a file; verify.py proves that one holds together
    disk.py        files flushed, copied and given a second name

    models.py      the tables; migrations/ makes and changes them, schema.py runs it
    dialect/       what differs between kinds of databases, SQLite's so far; prepared.py runs small statements
    values.py, errors.py

It knows nothing of the model, of prompts or of the wire.
"""
