"""The conversation itself: messages and their tree, prompts, the context window, image checking.

Pure: no event loop, no model, no database, no socket. Everything here is a value or a function of values.
"""
