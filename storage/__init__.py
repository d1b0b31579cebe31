"""The database: owners, conversations, their messages with images, responses with their event logs.

    store.py       what the rest of the house sees: every call by owner, acknowledged only once committed
    writer.py      the one writer: units of work from many callers, committed together
    turns.py       a turn's writes: begun, its events, finished
    accounts.py    owners, keys and conversations
    tree.py        where a message stands: depth, and jumps that find any ancestor in few steps
    reads.py       rows back into values
    models.py      the tables; migrations/ makes and changes them, schema.py runs it
    dialect.py     what only SQLite has: pragmas, upserts, what its error codes mean
    values.py, errors.py

It knows nothing of the model, of prompts or of the wire.
"""
