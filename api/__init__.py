"""What `import idefics_chat` gives to those who embed the server: a few public names, loaded when first used.

Nothing heavy is imported here, so that a client may use the package without torch.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
