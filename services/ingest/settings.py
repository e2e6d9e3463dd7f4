"""The ingest service's settings."""

from libs.common.settings import ImportSettings, RetrievalSettings, WorkerSettings


class IngestSettings(RetrievalSettings, ImportSettings, WorkerSettings):
    """What the ingest service reads from the environment."""

    service_name: str = "ingest"

    # Jobs under way at once; most of their time they wait for the embedding model.
    worker_concurrency: int = 16
    # Files read at once, each in a process of its own that may use a whole core and a GiB of memory.
    parse_children: int = 2
    # Of one file so many pages that are pictures have their text recognised, where the extra `ocr` is installed.
    ocr_pages: int = 500
    # Parsed documents and their vectors; the children that read files are limited apart.
    worker_memory_bytes: int = 1536 << 20
    # Requests to the embedding model under way at once, over all jobs.
    embedding_concurrency: int = 2
    # Nobody waits here, and a miss costs an embedding: parsing may keep this process from looking for long.
    cache_timeout_seconds: float = 1.0
    # Of one import: its bytes, and its time from the first to the last.
    import_max_bytes: int = 512 << 20
    import_seconds: float = 1800.0
