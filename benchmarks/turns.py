"""Contestants in processes of their own that take turns, a block of steps each, so that noise meets all alike.

A contestant's program calls `Turns.tick()` after every step. The referee (`race`) lets one contestant run one block at
a time. What is compared is the median of the rounds' ratios. Only the standard library is used, so that a contestant
can live in another environment.
"""

import contextlib
import ctypes
import importlib
import io
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

MARK = "@turn "
"""Begins a line of a contestant that is meant for the referee."""


@dataclass
class Block:
    """One turn: wall and processor seconds of its steps."""

    wall: float
    cpu: float


@dataclass
class Turns:
    """A contestant's side.

    Args:
        steps: Steps in a block.
        warmup: Steps before the first block.
        pipe: Standard input and output when there is a referee; `None`: the blocks follow one another.
    """

    steps: int
    warmup: int
    pipe: tuple[TextIO, TextIO] | None = None
    blocks: list[Block] = field(default_factory=list)
    _count: int = 0
    _begin: tuple[float, float] | None = None

    def tick(self) -> None:
        """A step is over."""
        self._count += 1
        if self._begin is None:
            if self._count >= self.warmup:
                self._next({"ready": True})
        elif self._count == self.steps:
            block = Block(time.perf_counter() - self._begin[0], time.process_time() - self._begin[1])
            self.blocks.append(block)
            self._next({"wall": block.wall, "cpu": block.cpu})

    def begin(self) -> None:
        """Wait for one's turn; for contestants whose blocks are not of equal steps, with `end`."""
        self._next({"ready": True})

    def end(self, **facts: float) -> None:
        """The block is over; wait until the others have had theirs."""
        assert self._begin is not None
        block = Block(time.perf_counter() - self._begin[0], time.process_time() - self._begin[1])
        self.blocks.append(block)
        self._next({"wall": block.wall, "cpu": block.cpu, **facts})

    def _next(self, message: dict[str, Any]) -> None:
        self.send(message)
        if self.pipe is not None and not self.pipe[0].readline():
            raise SystemExit("the referee is gone")
        self._count = 0
        self._begin = (time.perf_counter(), time.process_time())

    def send(self, message: dict[str, Any]) -> None:
        """Tell the referee something."""
        if self.pipe is not None:
            print(MARK + json.dumps(message), file=self.pipe[1], flush=True)

    @property
    def needed(self) -> Callable[[int], int]:
        """Steps to run for so many rounds."""
        return lambda rounds: self.warmup + rounds * self.steps


class Contestant:
    """The referee's side of one process.

    Args:
        name: What tables call it.
        command: How it is started.
        environment: Its environment variables.
    """

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str]) -> None:
        self.name = name
        self.blocks: list[Block] = []
        self.facts: dict[str, Any] = {}
        self._log: list[str] = []
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True, bufsize=1
        )

    def read(self) -> dict[str, Any]:
        """The next message.

        Raises:
            RuntimeError: When the process has ended.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                message: dict[str, Any] = json.loads(line[len(MARK) :])
                return message
            self._log.append(line)
        raise RuntimeError(f"{self.name} ended early:\n{''.join(self._log[-30:])}")

    def go(self) -> None:
        """Let it run until its next message."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def turn(self) -> Block:
        """Run one block."""
        self.go()
        message = self.read()
        self.blocks.append(Block(message["wall"], message["cpu"]))
        return self.blocks[-1]

    def finish(self) -> None:
        """Read what it has to say in the end (`facts`), let it go on."""
        self.go()
        self.facts.update(self.read())

    def close(self) -> None:
        """Wait for its end."""
        self._process.communicate()

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.communicate()


def child_turns(steps: int, warmup: int) -> Turns:
    """Turns of a process that `Contestant` started; the true streams, whatever `quiet` does."""
    assert sys.__stdin__ is not None
    assert sys.__stdout__ is not None
    return Turns(steps, warmup, (sys.__stdin__, sys.__stdout__))


@dataclass
class Ratio:
    """How many times as long one contestant takes as the other: median over rounds, and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def ratio(ours: Sequence[Block], theirs: Sequence[Block], kind: str = "wall") -> Ratio:
    """Compare blocks of the same rounds; `kind` is `wall` or `cpu`."""
    ratios = [getattr(a, kind) / getattr(b, kind) for a, b in zip(ours, theirs, strict=True)]
    if len(ratios) < 2:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(median, low, high)


def seconds(blocks: Sequence[Block], steps: int, kind: str = "wall") -> float:
    """Median seconds of a step."""
    return statistics.median(getattr(b, kind) for b in blocks) / steps


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def memory(name: str) -> int:
    """Bytes of this process: `VmRSS` (now) or `VmHWM` (highest since `forget_peak`); 0 where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)


def forget_peak() -> None:
    """Start `VmHWM` anew."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Return memory that was freed to the system, so that what is left is in use (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hold back what runs print."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    with contextlib.suppress(ImportError):  # sets its logger's level
        importlib.import_module("lightning.pytorch")
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def machine(threads: int) -> str:
    """Versions, hardware and date in a line."""
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    names = ("torch", "torchvision", "lightning", "avalanche-lib")
    versions = " ".join(f"{n} {v}" for n in names if (v := version(n)))
    date = time.strftime("%Y-%m-%d")
    return (
        f"{date}; Python {platform.python_version()} {versions}; {model}, {os.cpu_count()} cores, {threads} thread(s)"
    )


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def version(package: str) -> str | None:
    """The installed version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
