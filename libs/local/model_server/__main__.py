"""Run the model server: `python -m libs.local.model_server --host 127.0.0.1 --port 8090`."""

import argparse
import logging

import uvicorn

from libs.local.model_server.app import create_app


def main() -> None:
    """Serve until SIGTERM or SIGINT, then finish what is under way."""
    parser = argparse.ArgumentParser(prog="model_server", description="A local OpenAI-compatible model upstream.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; there is no authentication")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    options = parser.parse_args()
    logging.basicConfig(level=options.log_level.upper())
    uvicorn.run(
        create_app(),
        host=options.host,
        port=options.port,
        log_level=options.log_level,
        access_log=False,
        timeout_graceful_shutdown=10,
    )


if __name__ == "__main__":
    main()
