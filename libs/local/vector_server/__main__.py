"""Run the vector server: `python -m libs.local.vector_server --path DIR`."""

import argparse
import logging
from pathlib import Path

import uvicorn

from libs.local.vector_server.app import create_app


def main() -> None:
    """Serve until SIGTERM or SIGINT, then flush and close every collection."""
    parser = argparse.ArgumentParser(prog="vector_server", description="Part of Qdrant's REST API over qdrant-edge.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; there is no authentication")
    parser.add_argument("--port", type=int, default=6333)
    parser.add_argument("--path", type=Path, required=True, help="directory of the collections, made if missing")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    options = parser.parse_args()
    logging.basicConfig(level=options.log_level.upper())
    uvicorn.run(
        create_app(options.path),
        host=options.host,
        port=options.port,
        log_level=options.log_level,
        access_log=False,
        timeout_graceful_shutdown=10,
    )


if __name__ == "__main__":
    main()
