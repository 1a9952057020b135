"""A user's script, run by `test_processes.py` under each launcher: `stream_script.py ROOT STRATEGY [RANK WHERE]`.

Its method and callbacks are defined here and hold lambdas. With RANK and WHERE, that rank is killed there. With
`torchrun` in front, torchrun's agent starts two of it, as forks: they need not import everything again.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

from lightning_cil import Task
from lightning_cil.callbacks import ReplayBuffer, StreamCallback
from lightning_cil.data import SplitDigits
from lightning_cil.methods import ER
from tests.streams import fit, make, weights_hash


class Own(ER):
    def __init__(self, rate: float = 0.05, **options: Any) -> None:
        super().__init__(**options)
        self.optimizer = lambda p: torch.optim.SGD(p, lr=rate, momentum=0.9)


class Notes(StreamCallback):
    """Each rank writes its hashes after every task."""

    def __init__(self, root: Path) -> None:
        self.path = lambda rank: root / f"rank_{rank}"

    def on_task_scored(self, trainer: Any, module: Any, task: Task) -> None:
        buffer = next(c for c in trainer.callbacks if isinstance(c, ReplayBuffer))
        with self.path(trainer.global_rank).open("a") as file:
            file.write(f"{task.index} {weights_hash(module)} {buffer.digest()}\n")


class Kill(StreamCallback):
    def __init__(self, rank: int, where: str) -> None:
        self.rank, self.where = rank, where

    def at(self, where: str, trainer: Any) -> None:
        if where == self.where and trainer.global_rank == self.rank:
            (Path(trainer.default_root_dir).parent / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 5:
            self.at("stage", trainer)

    def on_task_end(self, trainer: Any, module: Any, task: Task) -> None:
        self.at("task end", trainer)

    def on_test_batch_start(self, trainer: Any, module: Any, *args: Any) -> None:
        if module.head.num_classes:
            self.at("evaluation", trainer)


def main(root: Path, strategy: str, *kill: str) -> None:
    callbacks = [ReplayBuffer(total=30), Notes(root)]
    if kill:
        callbacks.append(Kill(int(kill[0]), kill[1]))
    module = make(Own)
    trainer = fit(root / "runs", module, SplitDigits(num_tasks=2), callbacks, devices=2, strategy=strategy)
    if trainer.global_rank == 0:
        print(f"folder: {trainer.log_dir}\nweights: {module.head.num_classes} {weights_hash(module)}", flush=True)


def rank(root: str, *arguments: str) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # a new program has not the agent's handlers
    main(Path(root), *arguments)


def torchrun(*arguments: str) -> None:
    """`torchrun --standalone --nproc_per_node 2 stream_script.py ARGUMENTS`."""
    config = config_from_args(parse_args(["--standalone", "--nproc_per_node", "2", __file__]))[0]
    config.start_method = "fork"
    elastic_launch(config, entrypoint=rank)(*arguments)


if __name__ == "__main__":
    if sys.argv[1] == "torchrun":
        torchrun(*sys.argv[2:])
    else:
        main(Path(sys.argv[1]), *sys.argv[2:])
