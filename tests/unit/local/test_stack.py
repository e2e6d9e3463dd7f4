"""The one-machine stack's description: ports, environments, and the files it starts from."""

import stat
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from libs.common.keyring import load_keyring
from libs.local.ports import Ports, free_ports
from libs.local.processes import last_lines, rotate_log
from libs.local.stack import GATEWAY, STORES, WORKERS, Program, prepare, programs, service_environment, steps

PORTS = Ports()
STATE = Path("/var/docent")


def _programs(environ: dict[str, str]) -> dict[str, Program]:
    return {program.name: program for program in programs(STATE, PORTS, environ)}


def _environment(environ: dict[str, str]) -> dict[str, str]:
    return service_environment(STATE, PORTS, environ)


def test_ports_come_from_the_environment_and_go_back_into_it() -> None:
    chosen = Ports.from_environment({"GATEWAY_PORT": "80", "CHAT_HEALTH_PORT": "81", "BROKER_PORT": ""})
    assert (chosen.gateway, chosen.chat_health, chosen.broker) == (80, 81, 6390)
    assert Ports.from_environment(chosen.as_environment()) == chosen


@pytest.mark.parametrize("text", ["0", "65536", "http", "-1", "8 0", "٣"])
def test_what_is_no_port_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="GATEWAY_PORT"):
        Ports.from_environment({"GATEWAY_PORT": text})


def test_two_programs_cannot_have_one_port() -> None:
    with pytest.raises(ValueError, match="same port"):
        Ports.from_environment({"GATEWAY_PORT": "6390"})


@pytest.mark.enable_socket  # it looks for ports by binding to them
def test_free_ports_are_all_different() -> None:
    ports = free_ports()
    assert Ports.from_environment(ports.as_environment()) == ports


def test_every_program_is_asked_for_readiness_where_it_is_told_to_listen() -> None:
    for program in _programs({}).values():
        port = str(urlsplit(program.ready).port)
        told = (*program.argv, program.environment.get("HEALTH_PORT"), program.environment.get("GATEWAY_PORT"))
        assert port in told, program.name
        assert urlsplit(program.ready).hostname == "127.0.0.1"


def test_stores_come_first_and_the_gateway_is_a_stage_of_its_own() -> None:
    stages = {name: program.stage for name, program in _programs({}).items()}
    assert {name for name, stage in stages.items() if stage == STORES} == {"broker", "cache", "vectors", "models"}
    assert {name for name, stage in stages.items() if stage == WORKERS} == {"chat", "ingest", "batch", "conversations"}
    assert {name for name, stage in stages.items() if stage == GATEWAY} == {"gateway"}


@pytest.mark.enable_socket  # it looks for a port by binding to it
def test_ingest_may_have_several_processes() -> None:
    programs = _programs({"INGEST_PROCESSES": "3"})
    ingest = [programs[name] for name in ("ingest", "ingest-2", "ingest-3")]
    assert len({program.environment["HEALTH_PORT"] for program in ingest}) == 3
    assert {program.stage for program in ingest} == {WORKERS}
    assert len(programs) == len(_programs({})) + 2


@pytest.mark.parametrize("text", ["0", "-1", "two", "17", "1.0"])
def test_a_number_of_processes_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="INGEST_PROCESSES must be a number"):
        _programs({"INGEST_PROCESSES": text})


def test_services_are_told_where_everything_is() -> None:
    chat = _programs({})["chat"].environment
    assert chat["BROKER_URL"] == "redis://127.0.0.1:6390/0"
    assert chat["CACHE_URL"] == "redis://127.0.0.1:6391/0"
    assert chat["DATABASE_URL"] == "sqlite:////var/docent/docent.db"
    assert chat["BLOBS_URL"] == "file:///var/docent/blobs"
    assert chat["KEYRING_FILE"] == "/var/docent/keyring.json"
    assert chat["QDRANT_URL"] == "http://127.0.0.1:6343"
    assert (chat["SERVICE_NAME"], chat["HEALTH_PORT"], chat["LOG_LEVEL"]) == ("chat", "9101", "INFO")


def test_only_the_listed_variables_of_the_caller_pass() -> None:
    theirs = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "s", "DATABASE_URL": "d", "OTEL_SERVICE_VERSION": "1"}
    chat = _programs({**theirs, "OPENAI_API_KEY": "k"})["chat"].environment
    assert (chat["PATH"], chat["OTEL_SERVICE_VERSION"], chat["OPENAI_API_KEY"]) == ("/bin", "1", "k")
    assert "AWS_SECRET_ACCESS_KEY" not in chat
    assert chat["DATABASE_URL"] != "d"


def test_the_stores_get_no_key_at_all() -> None:
    found = _programs({"OPENAI_API_KEY": "k", "EMBEDDING_API_KEY": "e", "PATH": "/bin"})
    for name in ("broker", "cache", "vectors", "models"):
        assert set(found[name].environment) == {"PATH", "LOG_LEVEL", "PYTHONUNBUFFERED"}


def test_models_are_on_this_machine_by_default() -> None:
    environment = _environment({"OPENAI_API_KEY": ""})
    assert environment["OPENAI_BASE_URL"] == environment["EMBEDDING_BASE_URL"] == "http://127.0.0.1:8091/v1"
    assert environment["OPENAI_API_KEY"] == environment["EMBEDDING_API_KEY"] == "local"
    assert environment["CHAT_MODELS"] == "docent-extractive"
    assert environment["EMBEDDING_MODEL"] == "all-minilm-l6-v2"


def test_a_chosen_model_is_kept_on_this_machine_too() -> None:
    assert _environment({"CHAT_MODELS": "other"})["CHAT_MODELS"] == "other"


def test_a_key_alone_means_openai_and_leaves_embeddings_here() -> None:
    environment = _environment({"OPENAI_API_KEY": "k"})
    assert environment["OPENAI_BASE_URL"] == "https://api.openai.com/v1"
    assert environment["EMBEDDING_BASE_URL"] == "http://127.0.0.1:8091/v1"
    assert environment["EMBEDDING_API_KEY"] == "local"
    assert environment["CHAT_MODELS"] == "*"


def test_a_url_alone_means_a_server_that_asks_for_no_key() -> None:
    environment = _environment({"OPENAI_BASE_URL": "http://llm:1/v1", "EMBEDDING_BASE_URL": "http://emb:1/v1"})
    assert (environment["OPENAI_BASE_URL"], environment["OPENAI_API_KEY"]) == ("http://llm:1/v1", "local")
    assert environment["EMBEDDING_BASE_URL"] == "http://emb:1/v1"
    assert environment["CHAT_MODELS"] == "*"
    assert "EMBEDDING_MODEL" not in environment


def test_a_proxy_is_never_used_for_this_machine() -> None:
    environment = _environment({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "intranet,localhost"})
    assert environment["HTTPS_PROXY"] == "http://proxy:1"
    assert environment["NO_PROXY"] == environment["no_proxy"] == "intranet,localhost,127.0.0.1"


def test_secrets_are_not_shown_when_a_program_is() -> None:
    assert "hidden" not in repr(programs(STATE, PORTS, {"OPENAI_API_KEY": "hidden"}))
    assert "hidden" not in repr(steps(STATE, PORTS, {"OPENAI_API_KEY": "hidden"}))


def test_the_first_key_is_written_into_the_state_directory() -> None:
    migrate, bootstrap = steps(STATE, PORTS, {})
    assert migrate.argv[-1] == "libs.common.records.migrate"
    assert bootstrap.argv[-2:] == ("--key-file", "/var/docent/api-key")


def test_a_new_stack_gets_a_keyring_that_only_its_owner_reads_and_keeps_it(tmp_path: Path) -> None:
    state = tmp_path / "state"
    prepare(state)
    keyring = state / "keyring.json"
    first = load_keyring(text=None, file=keyring)
    assert stat.S_IMODE(keyring.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    prepare(state)
    assert load_keyring(text=None, file=keyring) == first
    assert not list(state.glob("keyring.[0-9]*"))


def test_a_log_past_its_limit_starts_anew_for_the_program_that_holds_it_open(tmp_path: Path) -> None:
    log = tmp_path / "chat.log"
    with log.open("a") as held:
        held.write("old\n" * 10)
        held.flush()
        rotate_log(log, limit_bytes=100)
        assert log.read_text() == "old\n" * 10
        rotate_log(log, limit_bytes=30)
        held.write("new\n")
    assert log.read_text() == "new\n"
    assert (tmp_path / "chat.log.1").read_text() == "old\n" * 10


def test_the_end_of_a_log_and_of_none(tmp_path: Path) -> None:
    log = tmp_path / "chat.log"
    log.write_bytes(b"1\n2\n\xff3\n")
    assert last_lines(log, 2) == ["2", "\ufffd3"]
    assert last_lines(tmp_path / "none.log", 2) == []


def test_scans_are_read_by_choice_alone() -> None:
    assert (_environment({})["OCR_PAGES"], _environment({"OCR_PAGES": "20"})["OCR_PAGES"]) == ("0", "20")
