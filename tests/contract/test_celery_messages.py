"""The messages we build are Celery's own: a stock worker understands them, and their form is written down."""

import base64
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import redis

from libs.common.tasks.wire import celery_message

_GOLDEN = Path(__file__).parent / "golden" / "v1" / "stored" / "celery_message.json"
_APP = """
import os, redis
from celery import Celery
app = Celery("stock", broker=os.environ["BROKER_URL"])
app.conf.update(task_default_queue="stock", broker_connection_retry_on_startup=True, task_ignore_result=True)
notes = redis.Redis.from_url(os.environ["BROKER_URL"])

@app.task(name="stock.note", bind=True)
def note(self, payload):
    notes.rpush("noted", f"{self.request.id} {payload}")
"""


def test_a_stock_worker_runs_our_message(broker_url: str, tmp_path: Path) -> None:
    (tmp_path / "stock_app.py").write_text(_APP)
    with redis.Redis.from_url(broker_url) as client, (tmp_path / "worker.log").open("wb") as log:
        client.lpush("stock", celery_message("stock", "stock.note", "id_1", "the payload"))
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "stock_app", "worker", "-P", "threads", "-c", "2", "-Q", "stock"],
            cwd=tmp_path,
            env={"PATH": "/usr/bin:/bin", "BROKER_URL": broker_url},
            stdout=log,
            stderr=log,
        )
        try:
            noted: Any = client.blpop(["noted"], timeout=20)
        finally:
            process.kill()
            process.wait()
    assert noted is not None, (tmp_path / "worker.log").read_text()
    assert noted[1] == b"id_1 the payload"


def test_the_message_s_form_is_the_golden_one() -> None:
    """Workers of the version before read these: a change here needs a rolling update in mind."""
    message = orjson.loads(celery_message("chat", "chat.answer", "id_1", "payload"))
    message["properties"]["delivery_tag"] = "masked"
    message["body"] = orjson.loads(base64.b64decode(message["body"]))
    assert message == orjson.loads(_GOLDEN.read_bytes()), "if this is meant: write the message into the golden file"
