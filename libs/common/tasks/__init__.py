"""Work by queue: messages, the publisher, replies, the worker and its pool, jobs and their dispatcher.

The only package that knows Celery's options. Callers import `publisher`, `replies` and `submission`; services import
`worker`.
"""
