"""Qdrant's engine behind the part of Qdrant's REST API that the platform uses, for one machine without Qdrant.

An unmodified `qdrant_client.AsyncQdrantClient` talks to it. What it cannot do it refuses with status 400; it never
ignores an option that would change an answer. It has no authentication: keep it on the loopback interface.
"""
