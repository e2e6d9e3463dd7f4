"""The conversations service: the only holder of the conversation key."""
