"""Ranks as forked processes with the environment that torchrun or SLURM gives them: no second import of Lightning."""

import contextlib
import multiprocessing
import os
import random
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Cluster = Literal["torchrun", "slurm"]


def environment(cluster: Cluster, rank: int, world: int, port: int) -> dict[str, str]:
    """`torchrun`: one node; `slurm`: one task on each of `world` nodes."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if cluster == "torchrun":
        counts = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "GROUP_RANK": 0, "TORCHELASTIC_RUN_ID": "test"}
        own = {"RANK": rank, "LOCAL_RANK": rank}
    else:
        counts = {"SLURM_NTASKS": world, "SLURM_NTASKS_PER_NODE": 1, "SLURM_NNODES": world, "SLURM_JOB_ID": 7}
        own = {"SLURM_PROCID": rank, "SLURM_LOCALID": 0, "SLURM_NODEID": rank, "SLURM_JOB_NAME": "cil"}
    return address | {name: str(value) for name, value in {**counts, **own}.items()}


def free_port() -> int:
    """A port below those that systems give to connections, one of which may take a port between a look and its use."""
    source = random.SystemRandom()
    while True:
        port = source.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def _run(function: Callable[[], None], variables: dict[str, str], log: Path) -> None:
    import torch  # by conftest.py after this file

    torch.set_num_threads(torch.get_num_threads())  # a fork's first call makes new threads, and not two at once
    os.environ.update(variables)
    try:
        function()
    except BaseException:
        log.write_text(traceback.format_exc())
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


def run_ranks(
    function: Callable[[], None], folder: Path, world: int = 2, cluster: Cluster = "torchrun", timeout: float = 120
) -> list[tuple[int | None, str]]:
    """Run a function on every rank; exit code (`None`: it hung and was killed) and traceback of each."""
    port = free_port()
    context = multiprocessing.get_context("fork")
    logs = [folder / f"rank_{rank}.log" for rank in range(world)]
    for log in logs:
        log.unlink(missing_ok=True)
    ranks = [
        context.Process(target=_run, args=(function, environment(cluster, r, world, port), logs[r]))
        for r in range(world)
    ]
    for rank in ranks:
        rank.start()
    end = time.monotonic() + timeout
    for rank in ranks:
        rank.join(max(0.0, end - time.monotonic()))
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
        rank.join()
    return [(code, log.read_text() if log.exists() else "") for code, log in zip(codes, logs, strict=True)]


def all_well(ended: list[tuple[int | None, str]]) -> bool:
    """Whether every rank ended well; else their tracebacks are the assertion's message."""
    assert [code for code, _ in ended] == [0] * len(ended), "\n".join(text for _, text in ended)
    return True
