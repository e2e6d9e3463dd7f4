"""The one-machine stack from the command line: `python -m libs.local up`, and `--help` for the rest."""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table

from libs.local.child import State
from libs.local.control import NotRunningError, Refused, StackStatus
from libs.local.ports import Ports
from libs.local.rotation import rotate
from libs.local.running import Stack, StackFailedError, launch, wait_until_up
from libs.local.stack import programs
from libs.local.supervisor import supervise

_COLOURS: Final[Mapping[str, str]] = {
    State.READY: "green",
    State.STARTING: "yellow",
    State.RESTARTING: "red",
    State.STOPPING: "yellow",
    State.STOPPED: "dim",
}
_SHOWN_LINES: Final = "100"
_console = Console()


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says; the exit status."""
    options = _parser().parse_args(arguments)
    options.state_dir = options.state_dir.resolve()
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except (NotRunningError, Refused, StackFailedError, OSError, ValueError) as error:
        Console(stderr=True).print(str(error), markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        return 130  # what shells report for SIGINT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m libs.local", description="Run the whole platform here.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--state-dir", type=Path, default=Path(".local"), help="where all state lies (.local)")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, parents=[common])
        added.set_defaults(run=run)
        return added

    up = command("up", _up, "start everything; returns when all is ready")
    up.add_argument("--foreground", action="store_true", help="stay, and stop everything on SIGTERM or Ctrl-C")
    up.add_argument("--only", action="append", default=[], metavar="NAME", help="run this program; may be repeated")
    command("down", _down, "stop everything")
    command("status", _status, "show what runs")
    logs = command("logs", _logs, "show the end of the logs")
    logs.add_argument("name", nargs="?", help="of one program only")
    logs.add_argument("-f", "--follow", action="store_true")
    for verb, text in (("start", "start one program"), ("stop", "stop one"), ("restart", "stop and start one")):
        command(verb, _one, text).set_defaults(verb=verb)
        commands.choices[verb].add_argument("name")
    command("rotate-keys", _rotate_keys, "bring a new master key into use while everything is served")
    env = command("env", _env, "print a program's environment as shell exports, to start it by hand")
    env.add_argument("name", nargs="?", default="gateway")
    return parser


def _up(options: argparse.Namespace) -> int:
    if options.foreground:
        return supervise(options.state_dir, os.environ, options.only)
    stack = Stack(options.state_dir)
    process = launch(stack, os.environ, options.only)
    try:
        with Live(console=_console, refresh_per_second=8) as live:
            wait_until_up(stack, process, lambda status: live.update(_table(status)))
    except KeyboardInterrupt:
        process.terminate()  # it stops what it has started; no effect on a stack that was up before
        raise
    if not _console.is_terminal:
        _console.print()  # a live table ends its line on terminals only
    key_file = stack.state_dir / "api-key"
    if key_file.exists():
        _console.print(f"Docent answers at {stack.url}/v1; the first API key is in {key_file}", highlight=False)
    return 0


def _down(options: argparse.Namespace) -> int:
    with _console.status("Stopping"):
        Stack(options.state_dir).down()
    return 0


def _status(options: argparse.Namespace) -> int:
    status = Stack(options.state_dir).status()
    _console.print(_table(status))
    return 0 if status.state == State.READY else 1


def _logs(options: argparse.Namespace) -> int:
    logs = sorted((options.state_dir / "logs").glob(f"{options.name or '*'}.log"))
    if not logs:
        raise ValueError(f"There is no log of '{options.name}'." if options.name else "There are no logs yet.")
    command = ["tail", "-n", _SHOWN_LINES, *(["-F"] if options.follow else []), *map(str, logs)]
    try:
        return subprocess.run(command, check=False).returncode
    except KeyboardInterrupt:
        return 0


def _one(options: argparse.Namespace) -> int:
    stack = Stack(options.state_dir)
    actions: dict[str, Callable[[str], None]] = {"start": stack.start, "stop": stack.stop, "restart": stack.restart}
    with _console.status(f"{options.verb} {options.name}"):
        actions[options.verb](options.name)
        if options.verb != "stop":
            stack.wait_ready(options.name)
    return 0


def _rotate_keys(options: argparse.Namespace) -> int:
    rotate(Stack(options.state_dir), lambda line: _console.print(line, highlight=False))
    return 0


def _env(options: argparse.Namespace) -> int:
    """The environment of the running stack's program, else the one it would get now."""
    try:
        environment: Mapping[str, str] = Stack(options.state_dir).environment(options.name)
    except NotRunningError:
        described = programs(options.state_dir, Ports.from_environment(os.environ), os.environ)
        found = [program.environment for program in described if program.name == options.name]
        if not found:
            raise ValueError(f"There is no program '{options.name}'.") from None
        environment = found[0]
    for name, value in sorted(environment.items()):
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    return 0


def _table(status: StackStatus) -> Table:
    table = Table(title=f"Docent: {status.state}", title_justify="left")
    for heading in ("program", "pid", "state", "uptime", "url"):
        table.add_column(heading, justify="right" if heading in {"pid", "uptime"} else "left")
    for program in status.programs:
        colour = _COLOURS.get(program.state, "")
        uptime = _duration(program.uptime_seconds) if program.pid else ""
        state = f"[{colour}]{program.state}[/]"
        table.add_row(program.name, str(program.pid or ""), state, uptime, program.url)
    return table


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


if __name__ == "__main__":
    sys.exit(main())
