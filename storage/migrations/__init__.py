"""The schema's history; schema.py runs it."""
