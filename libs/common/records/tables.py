"""Every SQL table, for SQLite and PostgreSQL alike.

Times are Unix seconds as floats on the database's own clock. Columns named `sealed_*` hold ciphertext only. Every row
of a tenant carries `tenant_id`, and every query on such a table names it.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    # How long unused conversations and stored responses are kept, unless they say otherwise; NULL: for ever.
    Column("retention_seconds", Float),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),  # HMAC-SHA256 of the whole key under the pepper
    Column("scopes", JSON, nullable=False),
    Column("requests_per_minute", Integer, nullable=False),
    Column("parallel_streams", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
)

files = Table(
    "files",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), ForeignKey("tenants.id"), nullable=False),
    Column("filename", Text, nullable=False),  # sanitised for display; never part of a path
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("blob_id", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Index("ix_files_tenant_id_created_at", "tenant_id", "created_at", "id"),
    Index("ix_files_expires_at", "expires_at"),
    Index("ix_files_tenant_id_sha256", "tenant_id", "sha256"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), ForeignKey("tenants.id"), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("bytes", BigInteger, nullable=False),  # as announced
    Column("status", String(16), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float, nullable=False),
    Column("file_expires_after_seconds", Integer),
    Column("file_id", String(64)),
    Index("ix_uploads_status_expires_at", "status", "expires_at"),
)

upload_parts = Table(
    "upload_parts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), ForeignKey("tenants.id"), nullable=False),
    Column("upload_id", String(64), ForeignKey("uploads.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("blob_id", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
)

vector_stores = Table(
    "vector_stores",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), ForeignKey("tenants.id"), nullable=False),
    Column("name", Text, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("instructions", Text),  # to the model, with every answer that searches the store
    Column("expires_after", JSON),
    Column("expires_at", Float),
    Column("revision", Integer, nullable=False),  # grows with every change of what the store would answer
    Column("created_at", Float, nullable=False),
    Column("last_active_at", Float, nullable=False),
    Column("embedding_model", String(128), nullable=False),  # with the generation: where its chunks are
    Column("generation", Integer, nullable=False),
    Column("reindex_job_id", String(64)),  # the job that builds it anew elsewhere; NULL: none does
    Index("ix_vector_stores_tenant_id_created_at", "tenant_id", "created_at", "id"),
)

vector_store_files = Table(
    "vector_store_files",
    metadata,
    Column("vector_store_id", String(64), ForeignKey("vector_stores.id", ondelete="CASCADE"), nullable=False),
    Column("file_id", String(64), ForeignKey("files.id", ondelete="CASCADE"), nullable=False),
    Column("tenant_id", String(64), nullable=False),
    Column("filename", Text, nullable=False),
    Column("status", String(16), nullable=False),  # in_progress, completed, failed, cancelled
    Column("error_code", String(32)),
    Column("error_message", Text),
    Column("attributes", JSON, nullable=False),
    Column("chunking", JSON, nullable=False),
    Column("usage_bytes", BigInteger, nullable=False),
    Column("live_version", Integer, nullable=False),  # 0: nothing searchable yet
    Column("latest_version", Integer, nullable=False),  # the version the newest job is making
    Column("job_id", String(64)),
    Column("file_batch_id", String(64), index=True),
    Column("replaced_by", String(64), index=True),  # the file that takes this one's place as soon as it is searchable
    # What the reindex under way has built anew: the live version it found (0: nothing yet), its chunks and their bytes.
    Column("reindexed_version", Integer, nullable=False),
    Column("reindexed_chunks", Integer, nullable=False),
    Column("reindexed_bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    PrimaryKeyConstraint("vector_store_id", "file_id"),
    Index("ix_vector_store_files_file_id", "file_id"),
    Index("ix_vector_store_files_page", "vector_store_id", "created_at", "file_id"),
)

file_batches = Table(
    "file_batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("vector_store_id", String(64), ForeignKey("vector_stores.id", ondelete="CASCADE"), nullable=False),
    Column("cancelled", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), ForeignKey("tenants.id"), nullable=False),
    Column("endpoint", String(64), nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("completion_window", String(16), nullable=False),
    Column("status", String(16), nullable=False),
    Column("errors", JSON),
    Column("metadata", JSON),
    Column("output_expires_after", JSON),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    Column("total", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("in_progress_at", Float),
    Column("finalizing_at", Float),
    Column("completed_at", Float),
    Column("failed_at", Float),
    Column("expired_at", Float),
    Column("cancelling_at", Float),
    Column("cancelled_at", Float),
    Column("expires_at", Float, nullable=False),
    Index("ix_batches_tenant_id_created_at", "tenant_id", "created_at", "id"),
)

batch_items = Table(
    "batch_items",
    metadata,
    Column("batch_id", String(64), ForeignKey("batches.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("tenant_id", String(64), nullable=False),
    Column("custom_id", Text, nullable=False),
    Column("status", String(16), nullable=False),  # pending, succeeded, failed, cancelled, expired
    Column("sealed_request", LargeBinary, nullable=False),
    Column("sealed_result", LargeBinary),  # one line of the output or error file
    PrimaryKeyConstraint("batch_id", "position"),
)

conversations = Table(
    "conversations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), ForeignKey("tenants.id"), nullable=False),
    Column("wrapped_key", LargeBinary, nullable=False),  # destroying it destroys the conversation
    Column("sealed_metadata", LargeBinary, nullable=False),
    Column("next_position", Integer, nullable=False),
    Column("turn_token", BigInteger, nullable=False),  # fences writers: grows each time a turn is taken
    Column("turn_holder", String(64)),  # the request that has the turn; NULL: no turn is open
    Column("turn_expires_at", Float),
    Column("revision", Integer, nullable=False),  # grows with every change that clients can see; their ETag
    Column("sealed_summary", LargeBinary),  # of the items before `summary_position`
    Column("summary_position", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("last_active_at", Float, nullable=False),
    Column("expires_after_seconds", Float),  # its own retention; NULL: the tenant's
    Column("expires_at", Float),
    Index("ix_conversations_tenant_id_created_at", "tenant_id", "created_at", "id"),
    Index("ix_conversations_expires_at", "expires_at"),
)

conversation_items = Table(
    "conversation_items",
    metadata,
    Column("conversation_id", String(64), ForeignKey("conversations.id", ondelete="CASCADE"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("id", String(64), nullable=False),
    Column("tenant_id", String(64), nullable=False),
    Column("sealed_item", LargeBinary, nullable=False),
    PrimaryKeyConstraint("conversation_id", "position"),
    UniqueConstraint("conversation_id", "id"),
)

responses = Table(
    "responses",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), ForeignKey("tenants.id"), nullable=False),
    Column("shape", String(32), nullable=False),  # response or chat.completion
    Column("conversation_id", String(64)),
    Column("previous_response_id", String(64)),
    Column("wrapped_key", LargeBinary, nullable=False),
    Column("sealed_body", LargeBinary, nullable=False),
    Column("sealed_input", LargeBinary, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),  # NULL also within a conversation, with which it goes
    Index("ix_responses_expires_at", "expires_at"),
    Index("ix_responses_tenant_id_shape_created_at", "tenant_id", "shape", "created_at", "id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant_id", String(64), nullable=False),
    Column("name", String(64), nullable=False),  # the task's name
    Column("queue", String(32), nullable=False),
    Column("state", String(16), nullable=False),  # queued, running, succeeded, failed, cancelled
    Column("resource_id", String(64), nullable=False),  # what the job works on: a file, a batch
    Column("sealed_request", LargeBinary, nullable=False),
    Column("attempt", Integer, nullable=False),  # fencing token: grows with every claim
    Column("failures", Integer, nullable=False),  # failures of its own; at max_attempts it is dead
    Column("suspect", Boolean, nullable=False),  # a worker died while it ran: its next attempt runs alone
    Column("alone", Boolean, nullable=False),  # the current attempt runs with no other job in its process
    Column("due_at", Float, nullable=False),
    Column("dispatched_at", Float),  # NULL: no message of it is in the queue
    Column("worker", Text),
    Column("lease_expires_at", Float),
    Column("cancel_requested", Boolean, nullable=False),
    Column("progress_done", Integer, nullable=False),
    Column("progress_total", Integer, nullable=False),
    Column("error_code", String(64)),
    Column("error_message", Text),
    Column("traceparent", String(64)),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    # Tenant before time: dispatchers step from tenant to tenant.
    Index("ix_jobs_dispatch", "queue", "state", "dispatched_at", "tenant_id", "due_at", "id"),
    Index("ix_jobs_tenant_id_created_at", "tenant_id", "created_at", "id"),
    Index("ix_jobs_resource_id", "resource_id"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", Text, nullable=False),
    Column("expires_at", Float, nullable=False),
)

canaries = Table(
    "canaries",
    metadata,
    Column("purpose", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("sealed", LargeBinary, nullable=False),  # a known text, sealed for the purpose by the key
    PrimaryKeyConstraint("purpose", "key_id"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", String(64), nullable=False),
    Column("key", String(255), nullable=False),  # the client's key, or the fingerprint of a repeated request
    Column("fingerprint", String(64), nullable=False),  # SHA-256 of route and body
    Column("seed", String(32), nullable=False),  # the ids of what the request makes follow from it
    Column("attempt", Integer, nullable=False),  # fencing token: grows each time the request is run again
    Column("lease_expires_at", Float, nullable=False),  # until then nobody else runs the request
    Column("status", Integer),  # NULL: no reply is kept (yet)
    Column("sealed_reply", LargeBinary),
    Column("expires_at", Float, nullable=False),
    PrimaryKeyConstraint("tenant_id", "key"),
    Index("ix_idempotency_expires_at", "expires_at"),
)

usage = Table(
    "usage",
    metadata,
    Column("tenant_id", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("model", String(128), nullable=False),
    Column("day", String(10), nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "key_id", "model", "day"),
)
