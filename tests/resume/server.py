"""Runs of streams that are killed: one process imports everything, each run is a fork of it, killed by SIGKILL.

A fork has the imports (10 s of a core) and nothing else: no thread, no trainer, no generator was used before it.
Reads jobs from stdin, a JSON object a line, until ``stop``, and answers with the exit status of each, negative for a
signal.
"""

import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import lightning as environment
from lightning.pytorch import Callback

from lightning_cil.callbacks import StreamCallback, checkpoint
from tests.ranks import free_port
from tests.resume import cases

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT, "usr1": signal.SIGUSR1}


class Events(StreamCallback):
    """Counts what happens in a run, and at one event sends this run a signal, or raises."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.at, self.how, self.ranks = job.get("at"), job.get("how", ""), job.get("ranks", [0])
        self.names: list[str] = []
        self.file = Path(job["root"]) / "events.json"

    def event(self, name: str, half: Path | None = None) -> None:
        if self.rank() not in self.ranks:
            return
        self.names.append(name)
        if len(self.names) - 1 != self.at:
            return
        if half is not None and half.is_file() and self.how == "kill":
            with half.open("r+b") as file:
                file.truncate(half.stat().st_size // 2)
        if self.how == "raise":
            raise OSError(f"power cut at {name}")
        if self.how == "kill":
            os.killpg(0, signal.SIGKILL)  # all ranks, decoding processes too
        name, *way = self.how.split()
        if way == ["group"]:
            os.killpg(0, SIGNALS[name])
        else:
            os.kill(os.getpid(), SIGNALS[name])
        if way == ["twice"]:
            time.sleep(0.6)
            os.kill(os.getpid(), SIGNALS[name])

    @staticmethod
    def rank() -> int:
        import torch

        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        return torch.distributed.get_rank() if there else 0

    def on_stream_end(self, trainer: Any, module: Any) -> None:
        if trainer.is_global_zero:
            self.file.write_text(json.dumps(self.names))

    def on_task_start(self, trainer: Any, module: Any, task: Any) -> None:
        self.event(f"task start {task.index}")

    def on_stage_start(self, trainer: Any, module: Any, task: Any, stage: Any) -> None:
        self.event(f"stage start {task.index} {stage.name}")

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.event(f"batch start {batch_idx}")

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self.event("optimizer step")

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.event(f"batch end {batch_idx}")

    def on_validation_batch_end(self, *args: Any) -> None:
        self.event("validation batch")

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.event(f"epoch end {trainer.current_epoch}")

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.event("train end")

    def on_stage_end(self, trainer: Any, module: Any, task: Any, stage: Any) -> None:
        self.event(f"stage end {task.index} {stage.name}")

    def on_task_end(self, trainer: Any, module: Any, task: Any) -> None:
        self.event(f"task end {task.index}")

    def on_test_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
        self.event(f"test batch after task {module._row}")

    def on_task_scored(self, trainer: Any, module: Any, task: Any) -> None:
        self.event(f"scored {task.index}")


class After(StreamCallback):
    """Events that come after the other callbacks'."""

    def __init__(self, events: Events) -> None:
        self.events = events

    def on_task_end(self, trainer: Any, module: Any, task: Any) -> None:
        self.events.event(f"task end {task.index}, exemplars stored")

    def on_task_scored(self, trainer: Any, module: Any, task: Any) -> None:
        self.events.event(f"scored {task.index}, results written")


def run(job: dict[str, Any]) -> None:
    """One run, or one script or module with its arguments, in this process, which ends with it."""
    root = Path(job["root"])
    os.environ.update(job.get("env", {}))
    if "script" in job or "module" in job:
        os.chdir(root)
        sys.argv = [job.get("script", job.get("module")), *map(str, job.get("argv", []))]
        if "module" in job:
            runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(job["script"]).parent)
            runpy.run_path(job["script"], run_name="__main__")
        return
    events = Events(job)
    replace = checkpoint.replace_durably

    def renamed(source: Path, target: Path) -> None:
        events.event(f"half of {target.name} written", half=source)
        events.event(f"{target.name} written, not named")
        replace(source, target)
        events.event(f"{target.name} named")

    checkpoint.replace_durably = renamed
    extra: list[Callback] = [events, After(events)]
    if job.get("on_exception"):
        from lightning.pytorch.callbacks import OnExceptionCheckpoint

        extra.append(OnExceptionCheckpoint(root))
    cases.fit(job["case"], root, job.get("ckpt_path"), extra)


def child(job: dict[str, Any]) -> None:
    import torch

    os.setsid()
    torch.set_num_threads(torch.get_num_threads())  # a fork's first call makes new threads, and not two at once
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    out = os.open(str(Path(job["root"]) / "output.txt"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 1
    try:
        run(job)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    import torch

    torch.set_num_threads(1)
    environment.find_free_network_port = free_port
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        if line == "stop\n":
            break
        job = json.loads(line)
        Path(job["root"]).mkdir(parents=True, exist_ok=True)
        pid = os.fork()
        if pid == 0:
            child(job)
        status = os.waitpid(pid, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
