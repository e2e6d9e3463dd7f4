"""The ingest service: files to searchable chunks."""
