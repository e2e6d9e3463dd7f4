"""The cache: sealed values, and what is kept in it: embeddings and answers.

Callers import `store`, `embeddings` and `answers`; only `embeddings` knows the embedding model's client.
"""
