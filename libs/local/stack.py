"""The one-machine stack described: its programs, the steps before they start, and the environment each one gets."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import libs
from libs.common.keyring import Keyring
from libs.local.ports import LOOPBACK, Ports, free_port
from libs.local.redis_servers import redis_command

ROOT: Final = Path(libs.__file__).resolve().parents[1]
STORES: Final = 0
WORKERS: Final = 1
# Started beside the workers but stopped before them: the requests it still has to answer need them.
GATEWAY: Final = 2

# All that passes from the caller's environment, so that no secret of theirs does by accident.
_PASSED_TO_ALL: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LOG_LEVEL")
_PASSED_TO_SERVICES: Final = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CHAT_MODELS", "CHAT_FALLBACK_MODELS", "GATEWAY_HOST"),
    *("SUMMARIES", "HISTORY_TOKENS"),
    *("MODERATION", "MODERATION_MODEL"),
    *("REWRITE_QUESTIONS", "MIN_RELEVANCE", "CONTEXT_TOKENS", "PASSAGE_TOKENS", "UPSTREAM_HINTS", "OCR_PAGES"),
)
_PASSED_PREFIXES: Final = ("OTEL_", "OPENAI_", "EMBEDDING_", "ANSWER_CACHE", "SEMANTIC_CACHE_", "IMPORT_", "RERANK_")
# A database of the caller's instead of SQLite; DATABASE_URL itself often means another project's.
DATABASE_VARIABLE: Final = "DOCENT_DATABASE_URL"
# Reading and embedding many files is the one work here that one process cannot do on several cores.
INGEST_PROCESSES_VARIABLE: Final = "INGEST_PROCESSES"
_MOST_INGEST_PROCESSES: Final = 16
_OPENAI_URL: Final = "https://api.openai.com/v1"


@dataclass(frozen=True, slots=True)
class Program:
    """A program that the supervisor keeps running.

    Args:
        ready: where to ask whether it is, as `libs.local.probes.answers` takes it.
        stage: stage 0 is ready before any other starts; the higher stages stop first.
    """

    name: str
    argv: tuple[str, ...]
    ready: str
    environment: Mapping[str, str] = field(repr=False)
    stage: int = STORES

    @property
    def url(self) -> str:
        """Where it listens."""
        parts = urlsplit(self.ready)
        return f"{parts.scheme}://{parts.netloc}"


@dataclass(frozen=True, slots=True)
class Step:
    """A program that runs to its end, once the stores are ready and before anything else starts."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)


def programs(state_dir: Path, ports: Ports, environ: Mapping[str, str]) -> list[Program]:
    """The stack's programs in the order of their start.

    Args:
        state_dir: where everything is kept, an absolute path.
        environ: the caller's environment, of which each program gets only what it may.
    """
    return [*_stores(state_dir, ports, environ), *_services(state_dir, ports, environ)]


def steps(state_dir: Path, ports: Ports, environ: Mapping[str, str]) -> list[Step]:
    """What makes the records ready for the services, each harmless to repeat."""
    environment = service_environment(state_dir, ports, environ)
    key_file = ("--key-file", str(state_dir / "api-key"))
    return [
        Step("migrate", _python("libs.common.records.migrate"), {**environment, "SERVICE_NAME": "migrate"}),
        Step(
            "bootstrap",
            _python("services.gateway.bootstrap", *key_file),
            {**environment, "SERVICE_NAME": "bootstrap"},
        ),
    ]


def prepare(state_dir: Path) -> None:
    """Make the directories and the keyring of a new stack, for this user alone; what is there stays."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("broker", "cache", "vectors", "blobs", "logs", "run"):
        (state_dir / name).mkdir(mode=0o700, exist_ok=True)
    keyring = state_dir / "keyring.json"
    if keyring.exists():
        return
    # Under another name first: half a keyring would make a stack that never starts again.
    fresh = state_dir / f"keyring.{os.getpid()}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(Keyring.generate() + "\n")
    # Linked, not renamed: should two start at once, neither may replace the keyring of the other.
    with suppress(FileExistsError):
        keyring.hardlink_to(fresh)
    fresh.unlink()


def service_environment(state_dir: Path, ports: Ports, environ: Mapping[str, str]) -> dict[str, str]:
    """What every service is told, beside its own name and port."""
    passed = {name: value for name, value in environ.items() if value and _passes(name)}
    return {
        **_base_environment(environ),
        **_model_environment(f"http://{LOOPBACK}:{ports.models}/v1", passed),
        # By choice alone: the extra is here for the tests, and a page takes seconds of a core.
        "OCR_PAGES": "0",
        **passed,
        # A proxy is for the models' hosts, never for this machine.
        **dict.fromkeys(("NO_PROXY", "no_proxy"), _no_proxy(environ)),
        "BROKER_URL": f"redis://{LOOPBACK}:{ports.broker}/0",
        "CACHE_URL": f"redis://{LOOPBACK}:{ports.cache}/0",
        "DATABASE_URL": environ.get(DATABASE_VARIABLE) or f"sqlite:///{state_dir}/docent.db",
        "BLOBS_URL": (state_dir / "blobs").as_uri(),
        "KEYRING_FILE": str(state_dir / "keyring.json"),
        "QDRANT_URL": f"http://{LOOPBACK}:{ports.vectors}",
    }


def _stores(state_dir: Path, ports: Ports, environ: Mapping[str, str]) -> list[Program]:
    base = _base_environment(environ)
    broker = redis_command(state_dir / "broker", ports.broker, persistent=True)
    cache = redis_command(state_dir / "cache", ports.cache, persistent=False)
    vectors = _listening("libs.local.vector_server", ports.vectors, "--path", str(state_dir / "vectors"))
    models = _listening("libs.local.model_server", ports.models)
    return [
        Program("broker", tuple(broker), f"redis://{LOOPBACK}:{ports.broker}", base),
        Program("cache", tuple(cache), f"redis://{LOOPBACK}:{ports.cache}", base),
        Program("vectors", vectors, f"http://{LOOPBACK}:{ports.vectors}/readyz", base),
        Program("models", models, f"http://{LOOPBACK}:{ports.models}/healthz", base),
    ]


def _services(state_dir: Path, ports: Ports, environ: Mapping[str, str]) -> list[Program]:
    environment = service_environment(state_dir, ports, environ)
    health_ports = {
        "chat": ports.chat_health,
        "ingest": ports.ingest_health,
        "batch": ports.batch_health,
        "conversations": ports.conversations_health,
    }
    workers = [
        _service(name, port, {**environment, "HEALTH_PORT": str(port)}, WORKERS) for name, port in health_ports.items()
    ]
    ingest = next(worker for worker in workers if worker.name == "ingest")
    more = [another(ingest, "HEALTH_PORT", number) for number in range(2, _ingest_processes(environ) + 1)]
    gateway = {"GATEWAY_HOST": LOOPBACK, **environment, "GATEWAY_PORT": str(ports.gateway)}
    return [*workers, *more, _service("gateway", ports.gateway, gateway, GATEWAY)]


def another(program: Program, port_variable: str, number: int) -> Program:
    """One more process of a service, on a free port of its own."""
    port = free_port()
    environment = {**program.environment, port_variable: str(port)}
    ready = f"http://{LOOPBACK}:{port}/readyz"
    return replace(program, name=f"{program.name}-{number}", environment=environment, ready=ready)


def _ingest_processes(environ: Mapping[str, str]) -> int:
    text = environ.get(INGEST_PROCESSES_VARIABLE) or "1"
    if text not in map(str, range(1, _MOST_INGEST_PROCESSES + 1)):
        raise ValueError(f"{INGEST_PROCESSES_VARIABLE} must be a number between 1 and {_MOST_INGEST_PROCESSES}.")
    return int(text)


def _service(name: str, port: int, environment: Mapping[str, str], stage: int) -> Program:
    ready = f"http://{LOOPBACK}:{port}/readyz"
    return Program(name, _python(f"services.{name}.main"), ready, {**environment, "SERVICE_NAME": name}, stage)


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)


def _listening(module: str, port: int, *arguments: str) -> tuple[str, ...]:
    return _python(module, "--host", LOOPBACK, "--port", str(port), *arguments)


def _passes(name: str) -> bool:
    return name in _PASSED_TO_SERVICES or name.startswith(_PASSED_PREFIXES)


def _base_environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        "LOG_LEVEL": "INFO",
        **{name: environ[name] for name in _PASSED_TO_ALL if environ.get(name)},
        "PYTHONUNBUFFERED": "1",  # the last words of a program that dies must reach its log
    }


def _model_environment(local_url: str, passed: Mapping[str, str]) -> dict[str, str]:
    """Defaults for where models are: on this machine unless the caller names a place or has a key for OpenAI's."""
    defaults: dict[str, str] = {}
    if "OPENAI_BASE_URL" in passed:
        defaults |= {"OPENAI_API_KEY": "local", "CHAT_MODELS": "*"}
    elif "OPENAI_API_KEY" in passed:
        defaults |= {"OPENAI_BASE_URL": _OPENAI_URL, "CHAT_MODELS": "*"}
    else:
        defaults |= {"OPENAI_BASE_URL": local_url, "OPENAI_API_KEY": "local", "CHAT_MODELS": "docent-extractive"}
    defaults |= {"EMBEDDING_API_KEY": "local"}
    if "EMBEDDING_BASE_URL" not in passed:
        defaults |= {"EMBEDDING_BASE_URL": local_url, "EMBEDDING_MODEL": "all-minilm-l6-v2"}
    return defaults


def _no_proxy(environ: Mapping[str, str]) -> str:
    theirs = environ.get("NO_PROXY") or environ.get("no_proxy") or ""
    return ",".join(dict.fromkeys([*filter(None, theirs.split(",")), LOOPBACK, "localhost"]))
