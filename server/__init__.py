"""The server: the wire, the chat service that ties store and engine together, and the settings."""
