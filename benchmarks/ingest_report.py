"""Where the time of an ingest benchmark went: CPU and memory by process, seconds by stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from benchmarks.processes import children, cpu_seconds, ended_children_cpu_seconds, peak_memory_bytes
from libs.local.running import Stack

# Histograms of the gateway and of ingest, with the label that tells their rows apart.
_HISTOGRAMS: Final = {
    "docent_http_request_seconds": "route",
    "docent_queue_wait_seconds": "queue",
    "docent_handler_seconds": "task",
    "docent_stage_seconds": "stage",
}

# Seconds and count by name of the row.
Stages = dict[str, tuple[float, float]]


class Usage:
    """What a stack's processes used from here until `end`.

    Attributes:
        cpu_seconds: by process; those of ended children count for their parent.
        memory_bytes: the peak of each process since its start.
        stages: time that passed in each stage, summed over all that went through it side by side.
    """

    def __init__(self, stack: Stack) -> None:
        programs = [program for program in stack.status().programs if program.pid is not None]
        self._urls = [program.url for program in programs if program.name.startswith(("gateway", "ingest"))]
        self._pids = {program.name: program.pid for program in programs if program.pid is not None}
        self._find_parsers()
        self._cpu = {name: _tree_cpu_seconds(pid) for name, pid in self._pids.items()}
        self._before = _stages(self._urls)
        self.cpu_seconds: dict[str, float] = {}
        self.memory_bytes: dict[str, int] = {}
        self.stages: Stages = {}

    def end(self) -> None:
        """Take the figures."""
        self._find_parsers()  # they begin with the first file
        for name, pid in self._pids.items():
            self.cpu_seconds[name] = _tree_cpu_seconds(pid) - self._cpu.get(name, 0.0)
            family = [pid, *children(pid)] if name.startswith("parser") else [pid]
            self.memory_bytes[name] = max(map(peak_memory_bytes, family))
        for name, (seconds, count) in _stages(self._urls).items():
            seconds_before, count_before = self._before.get(name, (0.0, 0.0))
            if count > count_before:
                self.stages[name] = (seconds - seconds_before, count - count_before)

    def _find_parsers(self) -> None:
        for name, pid in list(self._pids.items()):
            for parser in children(pid) if name.startswith("ingest") else ():
                self._pids.setdefault(name.replace("ingest", "parser"), parser)


def _tree_cpu_seconds(pid: int) -> float:
    """Of a process and, where it is the parser, of the processes that it forked."""
    own = cpu_seconds(pid) + ended_children_cpu_seconds(pid)
    return own + sum(cpu_seconds(child) for child in children(pid) if not list(children(child)))


def _stages(urls: Sequence[str]) -> Stages:
    values: dict[str, list[float]] = {}
    for url in urls:
        for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", trust_env=False).text):
            label = _HISTOGRAMS.get(family.name, "")
            for sample in family.samples:
                if label and sample.name.endswith(("_sum", "_count")):
                    row = f"{family.name.split('_')[1]} {sample.labels[label]}"
                    kind = sample.name.endswith("_count")
                    values.setdefault(row, [0.0, 0.0])[kind] += sample.value
    return {row: (seconds, count) for row, (seconds, count) in values.items()}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One measured load of files."""

    name: str
    files: int
    chunks: int
    seconds: float
    usage: Usage


def print_runs(console: Console, outcomes: Sequence[Outcome]) -> None:
    """One line for each run of a load."""
    table = Table(title=outcomes[0].name, title_justify="left")
    for column in ("run", "seconds", "files/s", "chunks/s", "CPU seconds", "largest process, MB"):
        table.add_column(column, justify="right")
    for number, each in enumerate(outcomes):
        memory = max(each.usage.memory_bytes.values()) / 1e6
        cpu = sum(each.usage.cpu_seconds.values())
        pace = (f"{each.files / each.seconds:.0f}", f"{each.chunks / each.seconds:.0f}")
        table.add_row(str(number + 1), f"{each.seconds:.2f}", *pace, f"{cpu:.2f}", f"{memory:.0f}")
    console.print(table)


def print_stages(console: Console, outcome: Outcome) -> None:
    """CPU, memory and stages of one run."""
    usage = outcome.usage
    processes = Table(title=f"{outcome.name}: {outcome.files} files, {outcome.chunks} chunks", title_justify="left")
    for column in ("process", "CPU seconds", "peak memory, MB"):
        processes.add_column(column, justify="right")
    for name, seconds in sorted(usage.cpu_seconds.items(), key=lambda item: -item[1]):
        processes.add_row(name, f"{seconds:.2f}", f"{usage.memory_bytes[name] / 1e6:.0f}")
    console.print(processes)
    stages = Table(title="stages, waiting included", title_justify="left")
    for column in ("stage", "times", "seconds in all", "ms each"):
        stages.add_column(column, justify="left" if column == "stage" else "right")
    for name, (seconds, count) in sorted(usage.stages.items()):
        stages.add_row(name, f"{count:.0f}", f"{seconds:.2f}", f"{seconds / count * 1000:.2f}")
    console.print(stages)
