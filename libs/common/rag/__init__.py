"""Embedding and retrieval: what the chat and ingest services share, and nobody else imports."""
