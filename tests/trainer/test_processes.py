"""The launchers: popen (the command line), torchrun, spawn, fork, SLURM; and what happens when a rank dies."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest
import torch
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)

from lightning_cil import launch
from lightning_cil.callbacks import StreamCallback
from lightning_cil.data import SplitDigits
from lightning_cil.methods import FineTune
from tests.conftest import RunCli
from tests.ranks import all_well, run_ranks
from tests.resume.conftest import Runs, output
from tests.streams import fit, make
from tests.trainer import stream_script

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "trainer" / "stream_script.py"
GO_ON = "give the same command with `--ckpt_path last`"


def same_notes(root: Path) -> list[str]:
    """What the ranks noted after each task, once it is sure that it is the same."""
    first, second = ((root / f"rank_{rank}").read_text().splitlines() for rank in (0, 1))
    assert first == second
    return first


# ---------------------------------------------------------------------- launchers


def test_the_command_starts_its_processes_and_gives_the_matrix_of_one(
    runs: Runs, run_cli: RunCli, tmp_path: Path
) -> None:
    """popen: the quickstart with two processes of batch 16, and with one of batch 32."""
    options = ["--model.epochs", 2, "--data.num_tasks", 2]
    quickstart = ["fit", "--config", ROOT / "examples" / "quickstart.yaml", *options]
    assert run_cli(*quickstart, "--trainer.default_root_dir", tmp_path / "one").code == 0
    two = ["--trainer.default_root_dir", tmp_path / "two", "--data.init_args.batch_size", 16]
    two += ["--trainer.devices", 2, "--trainer.strategy", "ddp"]
    command = {"module": "lightning_cil", "argv": [*map(str, [*quickstart, *two])]}  # rank 1 is a new interpreter
    assert runs(None, tmp_path, **command) == 0, output(tmp_path)
    ours, theirs = (json.loads((tmp_path / n / "version_0/results.json").read_text()) for n in ("one", "two"))
    assert (ours["world_size"], theirs["world_size"]) == (1, 2)
    assert ours["matrix"] == theirs["matrix"]
    assert ours["before_training"] == theirs["before_training"]
    assert [p.name for p in tmp_path.glob("two/*")] == ["version_0"]  # one run folder for both ranks
    assert (tmp_path / "output.txt").read_text().count("Run folder:") == 1
    for k in range(2):
        files = [tmp_path / n / f"version_0/checkpoints/task_{k}.ckpt" for n in ("one", "two")]
        a, b = (torch.load(file, weights_only=True) for file in files)
        for name, value in a["state_dict"].items():
            assert torch.allclose(value, b["state_dict"][name], atol=1e-5, rtol=0), (k, name)
        stores = [c["lightning_cil.ReplayBuffer"]["store"] for c in (a, b)]
        assert all(stores[0][column].equal(stores[1][column]) for column in stores[0])  # one global buffer


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_a_script_with_lambdas_gets_the_weights_back(
    tmp_path: Path, strategy: str, capfd: pytest.CaptureFixture[str]
) -> None:
    stream_script.main(tmp_path, strategy)
    shown = capfd.readouterr().out
    task, weights, _ = same_notes(tmp_path)[-1].split()
    assert task == "1"
    assert f"weights: 10 {weights}" in shown
    folder = tmp_path / "runs" / "version_0"
    assert f"folder: {folder}" in shown
    assert json.loads((folder / "results.json").read_text())["status"] == "complete"


@pytest.mark.parametrize("cluster", ["torchrun", "slurm"])
def test_processes_of_a_cluster_join(tmp_path: Path, cluster: Any) -> None:
    def run() -> None:
        nodes = {"num_nodes": 2, "devices": 1} if cluster == "slurm" else {"devices": 2}
        notes = stream_script.Notes(tmp_path)
        buffer = stream_script.ReplayBuffer(total=30)
        trainer = fit(tmp_path / "runs", make(stream_script.Own), SplitDigits(num_tasks=2), [buffer, notes], **nodes)
        assert trainer.world_size == 2

    assert all_well(run_ranks(run, tmp_path, cluster=cluster))
    assert len(same_notes(tmp_path)) == 2
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["version_0"]


def test_what_cannot_be_sent_to_a_process_is_said(tmp_path: Path) -> None:
    class Holder(StreamCallback):
        def __init__(self, file: IO[str]) -> None:
            self.file = file

    with (tmp_path / "open").open("w") as file, pytest.raises(TypeError, match=r"cannot be sent: .*strategy='ddp'"):
        fit(tmp_path, make(FineTune), SplitDigits(), [Holder(file)], devices=2, strategy="ddp_spawn")


# ---------------------------------------------------------------------- a rank dies


@pytest.mark.parametrize("where", ["stage", "task end", "evaluation"])
def test_a_forked_or_spawned_run_ends_when_a_rank_dies(tmp_path: Path, where: str) -> None:
    start = time.monotonic()
    with pytest.raises(launch.ProcessDiedError, match=rf"rank 1 ended \(signal SIGKILL\).*{GO_ON}"):
        stream_script.main(tmp_path, "ddp_fork", "1", where)
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("rank", [0, 1])
def test_a_cluster_process_ends_when_another_dies(tmp_path: Path, rank: int) -> None:
    def run() -> None:
        callbacks = [stream_script.ReplayBuffer(total=30), stream_script.Kill(rank, "evaluation")]
        fit(tmp_path / "runs", make(stream_script.Own), SplitDigits(num_tasks=2), callbacks, devices=2)

    ended = run_ranks(run, tmp_path, timeout=60)
    assert ended[rank][0] == -signal.SIGKILL
    assert ended[1 - rank][0] == 1
    assert f"rank {1 - rank} lost its connection to another process" in ended[1 - rank][1]
    assert GO_ON in ended[1 - rank][1]


def test_a_popen_run_ends_when_a_rank_dies(runs: Runs, tmp_path: Path) -> None:
    assert runs(None, tmp_path, script=str(SCRIPT), argv=[str(tmp_path), "ddp", 1, "task end"]) == 1
    assert "rank 1 ended (signal SIGKILL)" in output(tmp_path)
    assert GO_ON in output(tmp_path)
    assert time.time() - (tmp_path / "killed").stat().st_mtime < 60


def test_a_torchrun_run_ends_when_a_rank_dies(runs: Runs, tmp_path: Path) -> None:
    assert runs(None, tmp_path, script=str(SCRIPT), argv=["torchrun", str(tmp_path), "ddp", 0, "stage"]) != 0
    assert "exitcode  : -9" in output(tmp_path)  # torchrun's own table, which names the rank
    assert time.time() - (tmp_path / "killed").stat().st_mtime < 60


def forked(action: Any, log: Path) -> int:
    """Fork; the child runs `action` with its errors in `log`, then hangs as in a collective that never ends."""
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    with contextlib.suppress(BaseException):
        action()
    os._exit(99)


def wait_for(text: str, log: Path) -> None:
    end = time.monotonic() + 60
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < end, "no message within 60 s: " + (log.read_text() if log.exists() else "")
        time.sleep(0.05)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "POLL", 0.1)
    monkeypatch.setattr(launch, "GRACE", 0.2)


@pytest.mark.usefixtures("impatient")
def test_rank_0_that_hangs_is_ended_when_another_rank_died(tmp_path: Path) -> None:
    def rank_0() -> None:
        dead = subprocess.Popen([sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 9)"])
        alive = subprocess.Popen(["sleep", "1000"])
        (tmp_path / "alive").write_text(str(alive.pid))
        launch._launchers[:] = [SimpleNamespace(procs=[alive, dead])]
        trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=None), world_size=3)
        with launch.launching(trainer):
            time.sleep(1000)

    child = forked(rank_0, tmp_path / "log")
    wait_for("rank 2 ended (signal SIGKILL); all processes of the run are ended.", tmp_path / "log")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    alive = Path("/proc") / (tmp_path / "alive").read_text()  # the third rank is ended too
    assert not alive.exists() or "zombie" in (alive / "status").read_text()


@pytest.mark.usefixtures("impatient")
def test_other_ranks_that_hang_end_when_rank_0_died(tmp_path: Path) -> None:
    def rank_0() -> None:
        os.environ |= {launch.LAUNCHER_PID: str(os.getpid()), "LOCAL_RANK": "1"}
        rank_1 = forked(hang, tmp_path / "log")
        (tmp_path / "rank_1").write_text(str(rank_1))
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGKILL)

    def hang() -> None:
        trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=None), world_size=2, global_rank=1)
        with launch.launching(trainer):
            time.sleep(1000)

    child = forked(rank_0, tmp_path / "log")
    os.waitpid(child, 0)
    wait_for(f"rank 0 (process {child}) ended, so that rank 1 ends too", tmp_path / "log")


# ---------------------------------------------------------------------- strategies


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_that_wrap_once_are_refused(tmp_path: Path, strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fit.__globals__["IncrementalTrainer"](accelerator="cpu", default_root_dir=tmp_path)
    monkeypatch.setattr(plain._accelerator_connector, "strategy", strategy.__new__(strategy))
    with pytest.raises(ValueError, match=rf"`strategy={strategy.__name__}`.*ModelParallelStrategy.*stop_after_task"):
        plain.fit(make(FineTune), SplitDigits())
    assert not list(tmp_path.iterdir())  # nothing ran


def test_layers_split_over_processes_are_refused() -> None:
    strategy = ModelParallelStrategy()  # its default: all processes of a node share one batch
    strategy.parallel_devices = [torch.device("cpu")] * 2
    with pytest.raises(ValueError, match=r"tensor_parallel_size=2.*`data_parallel_size: 2`"):
        launch.check_strategy(strategy)
    strategy = ModelParallelStrategy(2, 1)
    strategy.parallel_devices = [torch.device("cpu")] * 2
    launch.check_strategy(strategy)


def test_strategies_that_work_are_taken() -> None:
    for strategy in (SingleDeviceStrategy("cpu"), DDPStrategy()):
        launch.check_strategy(strategy)
