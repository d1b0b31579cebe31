"""The model: loading it, turning prompts into ids, encoding images, generating answers.

Imports torch, transformers, pillow and numpy, and of ours only the conversation package. Knows nothing of the wire or
the database.
"""
