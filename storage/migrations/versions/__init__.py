"""One module a revision, numbered upwards."""
