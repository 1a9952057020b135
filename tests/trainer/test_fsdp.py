"""`ModelParallelStrategy` (FSDP2) trains a stream on two gloo ranks as one process does."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lightning_cil import Stage, Task
from lightning_cil.callbacks import ReplayBuffer, StreamCallback, StreamCheckpoint
from lightning_cil.data import SplitDigits
from lightning_cil.methods import ER, NFL, FineTune, LwF, NFLPlus
from lightning_cil.networks.sharding import is_sharded
from tests.ranks import all_well, run_ranks
from tests.streams import ROUND, fit, make, results

pytestmark = pytest.mark.filterwarnings("ignore")


class Staged(FineTune):
    """Head, a part of the body, everything: each stage trains other parameters."""

    def stages(self, task: Task) -> list[Stage]:
        return [Stage("head", 1, train=["head.*"]), Stage("part", 1, train=["backbone.conv2.*"]), Stage("all", 1)]


class Weights(StreamCallback):
    """Whole weights of each rank after every stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)

    def on_stage_end(self, trainer: Any, module: Any, task: Task, stage: Stage) -> None:
        if trainer.world_size > 1:
            assert is_sharded(module.backbone)
            assert is_sharded(module.head)
        whole = {n: t.full_tensor() if hasattr(t, "full_tensor") else t for n, t in module.state_dict().items()}
        torch.save(whole, self.folder / f"{task.index} {stage.name} {trainer.global_rank}")


CASES: dict[str, tuple[Any, Any]] = {
    "ER, herding": (ER, lambda: [ReplayBuffer(per_class=5, selection="herding")]),
    "LwF": (LwF, list),
    "NFL": (partial(NFL, **ROUND), list),
    "staged": (Staged, list),
}


@pytest.mark.parametrize("case", CASES)
def test_fsdp2_trains_what_one_process_trains(tmp_path: Path, case: str) -> None:
    method, callbacks = CASES[case]

    def train(name: str, size: int, **options: Any) -> Any:
        watch = Weights(tmp_path / name / "weights")
        data = SplitDigits(sizes=[4, 3, 3], batch_size=size)
        return fit(tmp_path / name, make(method), data, [*callbacks(), watch], **options)

    def sharded() -> None:
        train("two" + os.environ["RANK"], 16, devices=2, strategy=ModelParallelStrategy(2, 1))

    train("one", 32)
    assert all_well(run_ranks(sharded, tmp_path))
    for path in (tmp_path / "one/weights").iterdir():
        ours = torch.load(path)
        name = path.name.removesuffix(" 0")
        theirs = [torch.load(tmp_path / f"two{rank}/weights/{name} {rank}") for rank in (0, 1)]
        for key, value in ours.items():
            assert torch.equal(theirs[0][key], theirs[1][key]), (name, key)
            assert torch.allclose(value, theirs[0][key], atol=1e-5, rtol=0), (name, key)


def test_nfl_plus_is_refused_with_the_way_out(tmp_path: Path) -> None:
    def sharded() -> None:
        with pytest.raises(ValueError, match=r"shards its encoders; expected whole ones. Use `strategy='ddp'`"):
            fit(tmp_path, make(NFLPlus, **ROUND), SplitDigits(), [], devices=2, strategy=ModelParallelStrategy(2, 1))

    assert all_well(run_ranks(sharded, tmp_path))


def kill_between_renames(count: int) -> None:
    """Kill this process when a folder is to take the place of `last.ckpt`, whose own name it has lost already."""
    rename, seen = os.rename, []

    def renamed(source: Any, target: Any) -> None:
        if Path(target).name == "last.ckpt" and Path(f"{target}.old").exists():
            seen.append(source)
            if len(seen) == count:
                os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)

    os.rename = renamed


@pytest.mark.parametrize("folder", [True, False], ids=["sharded, killed in a stage", "whole, after a task"])
def test_an_fsdp2_run_goes_on_from_its_checkpoint(tmp_path: Path, folder: bool) -> None:
    def train(root: str, name: str, **options: Any) -> Any:
        data = SplitDigits(sizes=[4, 3, 3], batch_size=32)
        watch = Weights(tmp_path / name)
        strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=folder)
        given = [StreamCheckpoint(3), watch]
        return fit(tmp_path / root, make(LwF), data, given, devices=2, strategy=strategy, **options)

    def straight() -> None:
        train("straight", "straight" + os.environ["RANK"])

    def broken() -> None:
        if folder and os.environ["RANK"] == "0":
            kill_between_renames(5)
        train("broken", "first" + os.environ["RANK"], stop_after_task=None if folder else 0)

    def resumed() -> None:
        trainer = train("broken", "resumed" + os.environ["RANK"], ckpt_path="last")
        path = Path(trainer.log_dir or "") / "checkpoints/task_2.ckpt"
        assert path.is_dir() == folder
        found = results(trainer)
        module = make(LwF)
        scores = trainer.test(module, SplitDigits(sizes=[4, 3, 3]), ckpt_path=path, verbose=False)[0]
        assert scores["test/class_il"] == pytest.approx(sum(found["matrix"]["class_il"][2]) / 3)

    def names() -> list[str]:
        return sorted(p.name for p in (tmp_path / "broken/version_0/checkpoints").iterdir())

    assert all_well(run_ranks(straight, tmp_path))
    first, second = run_ranks(broken, tmp_path)
    if folder:
        assert first[0] == -signal.SIGKILL, first[1] + second[1]
        assert second[0] not in (0, None), second[1]  # it noticed
        assert names() == ["last.ckpt.old", "last.ckpt.part", "task_0.ckpt"]
    else:
        assert all_well([first, second])
    assert all_well(run_ranks(resumed, tmp_path))
    assert names() == ["last.ckpt", "task_0.ckpt", "task_1.ckpt", "task_2.ckpt"]
    for path in (tmp_path / "resumed0").iterdir():
        ours, theirs = torch.load(path), torch.load(tmp_path / "straight0" / path.name)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    ours, theirs = (json.loads((tmp_path / n / "version_0/results.json").read_text()) for n in ("straight", "broken"))
    assert ours["matrix"] == theirs["matrix"]
