"""About how many tokens a text takes, where the model's own tokenizer is not known."""

from typing import Final

CHARACTERS_PER_TOKEN: Final = 4  # a common estimate for Latin text; the upstream counts exactly
TOKENS_PER_MESSAGE: Final = 4  # role and separators


def estimate_text_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return -(-len(text) // CHARACTERS_PER_TOKEN)
