"""The chat service: retrieval and completion."""
