"""The batch service: validates, shards and finalises batches."""
