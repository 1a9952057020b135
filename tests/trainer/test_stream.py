"""The stream driver: order of hooks, per-stage behaviour, resume, branching, evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_cil import IncrementalTrainer, Stage, Task, fit_stream
from lightning_cil.callbacks import (
    EarlyStopping,
    ReplayBuffer,
    StagedFreezing,
    StreamCallback,
    StreamCheckpoint,
    StreamState,
    Teacher,
)
from lightning_cil.data import SplitDigits
from lightning_cil.methods import ER, FineTune, IncrementalModule, Joint, LwF
from tests.streams import TINY, fit, make, results, sgd, weights_hash


class Recorder(StreamCallback):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def on_task_start(self, trainer: Any, module: Any, task: Task) -> None:
        self.calls.append(("task start", task.index, module.head.num_classes))

    def setup_stage(self, trainer: Any, module: Any, task: Task, stage: Stage) -> None:
        self.calls.append(("setup", task.index, stage.name, module.head.num_classes))

    def on_stage_start(self, trainer: Any, module: Any, task: Task, stage: Stage) -> None:
        self.calls.append(("stage start", task.index, stage.name))

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        trained = sorted(n for n, p in pl_module.named_parameters() if p.requires_grad)
        held = {id(p) for g in trainer.optimizers[0].param_groups for p in g["params"]}
        in_optimizer = sorted(n for n, p in pl_module.named_parameters() if id(p) in held)
        self.calls.append(("fit", trained == in_optimizer, trainer.estimated_stepping_batches, trained[0]))

    def on_stage_end(self, trainer: Any, module: Any, task: Task, stage: Stage) -> None:
        self.calls.append(("stage end", task.index, stage.name, trainer.current_epoch))

    def on_task_end(self, trainer: Any, module: Any, task: Task) -> None:
        self.calls.append(("task end", task.index))

    def on_task_scored(self, trainer: Any, module: Any, task: Task) -> None:
        state = next(c for c in trainer.callbacks if isinstance(c, StreamState))
        self.calls.append(("scored", task.index, state.counts["class_il"].matrix()[task.index][0] is not None))


class TwoStages(FineTune):
    def stages(self, task: Task) -> list[Stage]:
        slow = Stage("head", 2, train=["head.*"], optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
        return [slow, Stage("all", 1)] if task.index else [Stage("all", 1)]


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[IncrementalTrainer, Recorder, IncrementalModule]:
    recorder, module = Recorder(), make(TwoStages)
    data = SplitDigits(sizes=[4, 6], batch_size=64)
    return fit(tmp_path_factory.mktemp("two"), module, data, [recorder]), recorder, module


def test_hooks_come_in_order_and_every_stage_has_its_own_optimizer_and_length(two_stages: Any) -> None:
    _, recorder, _ = two_stages
    steps = [571 // 64, 867 // 64]  # incomplete last batches are left out
    assert [c for c in recorder.calls if c[0] != "fit"] == [
        ("task start", 0, 0),
        ("setup", 0, "all", 4),
        ("stage start", 0, "all"),
        ("stage end", 0, "all", 1),
        ("task end", 0),
        ("scored", 0, True),
        ("task start", 1, 4),
        ("setup", 1, "head", 10),
        ("stage start", 1, "head"),
        ("stage end", 1, "head", 2),
        ("setup", 1, "all", 10),
        ("stage start", 1, "all"),
        ("stage end", 1, "all", 1),
        ("task end", 1),
        ("scored", 1, True),
    ]
    fits = [c for c in recorder.calls if c[0] == "fit"]
    assert [c[1] for c in fits] == [True, True, True]
    assert [c[2] for c in fits] == [steps[0], 2 * steps[1], steps[1]]
    assert [c[3] for c in fits] == ["backbone.conv1.bias", "head.bias", "backbone.conv1.bias"]


def test_global_step_goes_on_while_epochs_restart(two_stages: Any) -> None:
    trainer, _, _ = two_stages
    assert trainer.global_step == 8 + 3 * 13
    assert trainer.current_epoch == 1


def test_uneven_tasks_fill_the_whole_matrix(two_stages: Any) -> None:
    trainer, _, _ = two_stages
    found = results(trainer)
    assert found["status"] == "complete"
    assert found["task_sizes"] == [4, 6]
    assert all(v is not None for row in found["matrix"]["task_il"] for v in row)
    assert found["matrix"]["class_il"][0][1] == 0  # unseen classes cannot be predicted
    assert [s["stage"] for s in found["seconds"] if s["task"] == 1] == ["head", "all", "task end", "evaluation"]


def test_a_stage_that_freezes_the_body_leaves_it_bit_equal(tmp_path: Path) -> None:
    class HeadOnly(FineTune):
        def stages(self, task: Task) -> list[Stage]:
            return [Stage("head", 1, train=["head.*"])]

    module = make(HeadOnly)
    before = {n: p.clone() for n, p in module.backbone.state_dict().items()}
    fit(tmp_path, module, SplitDigits(num_tasks=2), limit_train_batches=3)
    assert all(p.equal(before[n]) for n, p in module.backbone.state_dict().items())


@pytest.mark.parametrize("method", [ER, LwF])
@pytest.mark.parametrize("step", [3, 8, 16, 20])  # mid-epoch, last of an epoch, last of a task, in task 1
def test_a_run_that_broke_off_goes_on_exactly(tmp_path: Path, method: type[IncrementalModule], step: int) -> None:
    class Break(Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == step:
                raise OSError("power cut")

    data = {"sizes": [4, 3, 3], "batch_size": 64}

    def extra() -> list[Callback]:
        return [ReplayBuffer(total=50)] if method is ER else []

    straight = make(method, epochs=2)
    whole = fit(tmp_path / "straight", straight, SplitDigits(**data), [StreamCheckpoint(2), *extra()])
    with pytest.raises(OSError, match="power cut"):
        fit(tmp_path / "broken", make(method, epochs=2), SplitDigits(**data), [StreamCheckpoint(2), Break(), *extra()])
    resumed = make(method, epochs=2)
    other = fit(tmp_path / "broken", resumed, SplitDigits(**data), [StreamCheckpoint(2), *extra()], ckpt_path="last")
    assert weights_hash(straight) == weights_hash(resumed)
    assert other.global_step == whole.global_step
    assert Path(other.log_dir or "").name == "version_0"  # the same run folder
    ours, theirs = results(whole), results(other)
    logs = [(Path(t.log_dir or "") / "metrics.csv").read_text() for t in (whole, other)]
    assert logs[0] == logs[1]
    for key in ("matrix", "before_training", "scores", "class_order", "footprint"):
        assert ours[key] == theirs[key], key


class BreakOnce(StreamCallback):
    """Raises in a hook, as a power cut would end the run there."""

    def __init__(self, hook: str, task: int) -> None:
        def fail(trainer: Any, module: Any, at: Task, *rest: Any) -> None:
            if at.index == task:
                raise OSError("power cut")

        setattr(self, hook, fail)


@pytest.mark.parametrize("hook", ["on_task_end", "on_task_scored", "on_stage_end"])
@pytest.mark.parametrize("method", [ER, LwF])
def test_a_run_that_broke_off_between_stages_goes_on_exactly(
    tmp_path: Path, hook: str, method: type[IncrementalModule]
) -> None:
    data = {"sizes": [4, 3, 3], "batch_size": 64}

    def extra() -> list[Callback]:
        return [ReplayBuffer(total=50)] if method is ER else []

    straight = make(method)
    whole = fit(tmp_path / "straight", straight, SplitDigits(**data), extra())
    with pytest.raises(OSError, match="power cut"):
        fit(tmp_path / "broken", make(method), SplitDigits(**data), [*extra(), BreakOnce(hook, 1)])
    resumed = make(method)
    other = fit(tmp_path / "broken", resumed, SplitDigits(**data), extra(), ckpt_path="last")
    assert weights_hash(straight) == weights_hash(resumed)
    ours, theirs = results(whole), results(other)
    for key in ("matrix", "before_training", "scores", "footprint"):
        assert ours[key] == theirs[key], key


def test_a_checkpoint_from_the_evaluation_does_not_offer_the_task_again(tmp_path: Path) -> None:
    class SaveAndBreak(Callback):
        def on_test_start(self, trainer: Any, pl_module: Any) -> None:
            if pl_module._row == 1:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")
                raise OSError("power cut")

    data = {"sizes": [4, 3, 3], "batch_size": 64}
    straight, resumed = make(ER), make(ER)
    whole, buffers = ReplayBuffer(total=50), ReplayBuffer(total=50)
    fit(tmp_path / "straight", straight, SplitDigits(**data), [whole])
    with pytest.raises(OSError, match="power cut"):
        fit(tmp_path / "broken", make(ER), SplitDigits(**data), [ReplayBuffer(total=50), SaveAndBreak()])
    fit(tmp_path / "broken", resumed, SplitDigits(**data), [buffers], ckpt_path=str(tmp_path / "middle.ckpt"))
    assert buffers.num_offered == whole.num_offered == 1438
    assert buffers.digest() == whole.digest()
    assert weights_hash(straight) == weights_hash(resumed)


def test_a_resumed_cumulative_joint_run_starts_from_the_same_network(tmp_path: Path) -> None:
    data = {"sizes": [4, 3, 3], "batch_size": 64}
    straight = make(Joint, joint_mode="cumulative")
    fit(tmp_path / "straight", straight, SplitDigits(**data))
    first = fit(tmp_path / "parts", make(Joint, joint_mode="cumulative"), SplitDigits(**data), stop_after_task=0)
    torch.manual_seed(77)
    other = Joint(backbone=TINY, epochs=1, optimizer=sgd, joint_mode="cumulative")  # another initial network
    fit(tmp_path / "parts", other, SplitDigits(**data), ckpt_path=str(Path(first.log_dir) / "checkpoints/task_0.ckpt"))
    assert weights_hash(straight) == weights_hash(other)


def test_max_steps_holds_for_every_stage(tmp_path: Path) -> None:
    trainer = fit(tmp_path, make(FineTune, epochs=3), SplitDigits(num_tasks=5), max_steps=4)
    assert trainer.global_step == 5 * 4


def test_a_test_after_the_stream_logs_what_it_finds(tmp_path: Path) -> None:
    module, data = make(FineTune), SplitDigits(num_tasks=5)
    trainer = fit(tmp_path, module, data, limit_train_batches=3)
    assert module.class_names == data.class_names
    found = trainer.test(module, data, verbose=False)[0]
    assert found["test/task_il"] == pytest.approx(results(trainer)["scores"]["task_il"]["ACC"])


def test_a_module_that_has_learned_is_not_started_again_in_silence(tmp_path: Path) -> None:
    module = make(FineTune)
    fit(tmp_path, module, SplitDigits(num_tasks=2), fast_dev_run=True)
    with pytest.raises(ValueError, match="has learned 10 classes already"):
        fit(tmp_path, module, SplitDigits(num_tasks=2))


def test_staged_freezing_does_not_replace_a_methods_own_stages(tmp_path: Path) -> None:
    freezing = StagedFreezing([Stage("head", 1, ["head.*"])])
    with pytest.raises(ValueError, match="Joint has its own"):
        fit(tmp_path, make(Joint), SplitDigits(num_tasks=2), [freezing])


def test_the_teacher_looks_at_exemplars_whatever_the_order_of_callbacks(tmp_path: Path) -> None:
    given: list[Callback] = [Teacher(), ReplayBuffer(total=20)]
    trainer = fit(tmp_path, make(ER), SplitDigits(num_tasks=2), given, fast_dev_run=True)
    kinds = [type(c) for c in trainer.callbacks]
    assert kinds.index(ReplayBuffer) < kinds.index(Teacher)
    trainer = fit(tmp_path, make(ER), SplitDigits(num_tasks=2), [Teacher()], fast_dev_run=True)
    kinds = [type(c) for c in trainer.callbacks]
    assert kinds.index(ReplayBuffer) < kinds.index(Teacher)


def test_stop_after_task_then_branch_with_other_settings(tmp_path: Path) -> None:
    data = {"sizes": [4, 3, 3], "batch_size": 64}
    straight = make(FineTune)
    fit(tmp_path / "straight", straight, SplitDigits(**data))
    first = fit(tmp_path / "parts", make(FineTune), SplitDigits(**data), stop_after_task=0)
    assert results(first)["status"] == "partial"
    assert results(first)["tasks_done"] == 1
    ckpt = Path(first.log_dir or "") / "checkpoints" / "task_0.ckpt"
    rest = make(FineTune)
    second = fit(tmp_path / "parts", rest, SplitDigits(**data), ckpt_path=str(ckpt))
    assert weights_hash(rest) == weights_hash(straight)
    assert results(second)["matrix"]["class_il"][0] == results(first)["matrix"]["class_il"][0]
    assert Path(second.log_dir or "").name == "version_1"  # a branch has a folder of its own
    other = make(FineTune, optimizer=lambda p: torch.optim.SGD(p, lr=0.001))
    third = fit(tmp_path / "parts", other, SplitDigits(**data), ckpt_path=str(ckpt))
    assert weights_hash(other) != weights_hash(straight)
    assert results(third)["matrix"]["class_il"][0] == results(first)["matrix"]["class_il"][0]


def test_fit_stream_on_a_stock_trainer_gives_the_same_weights(tmp_path: Path) -> None:
    from lightning.pytorch import seed_everything

    data = {"sizes": [4, 6], "batch_size": 64}
    ours = make(TwoStages)
    fit(tmp_path / "ours", ours, SplitDigits(**data))
    stock = make(TwoStages)
    seed_everything(3, verbose=False)
    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path / "stock", enable_progress_bar=False, log_every_n_steps=5,
        enable_model_summary=False, num_sanity_val_steps=0, logger=False,
    )  # fmt: skip
    fit_stream(trainer, stock, SplitDigits(**data))
    assert weights_hash(ours) == weights_hash(stock)


@pytest.mark.parametrize("enabled", [False, True])
def test_fit_stream_writes_checkpoints_where_the_trainer_does(tmp_path: Path, enabled: bool) -> None:
    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False, log_every_n_steps=1, logger=False,
        enable_model_summary=False, num_sanity_val_steps=0, enable_checkpointing=enabled, limit_train_batches=1,
    )  # fmt: skip
    fit_stream(trainer, make(FineTune), SplitDigits(num_tasks=2))
    assert bool(list(tmp_path.rglob("last.ckpt"))) is enabled
    assert bool(list(tmp_path.rglob("*.ckpt"))) is enabled


def test_without_a_stream_it_is_a_stock_trainer(tmp_path: Path) -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    module = BoringModel()
    before = module.layer.weight.clone()
    trainer = IncrementalTrainer(
        accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False, max_epochs=1, limit_train_batches=2,
        limit_val_batches=1, logger=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module)
    assert trainer.global_step == 2
    assert not module.layer.weight.equal(before)
    assert not (tmp_path / "results.json").exists()


def test_a_module_that_knows_no_tasks_is_refused(tmp_path: Path) -> None:
    from lightning.pytorch.demos.boring_classes import BoringModel

    with pytest.raises(TypeError, match="IncrementalModule"):
        fit(tmp_path, BoringModel())  # type: ignore[arg-type]


def test_early_stopping_ends_its_stage_only(tmp_path: Path) -> None:
    class Count(Callback):
        def __init__(self) -> None:
            self.epochs: list[int] = []

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.epochs.append(trainer.current_epoch)

    count = Count()
    stop = EarlyStopping("val/class_il", mode="max", patience=1, min_delta=1.0)  # nothing improves by 1: 2 epochs
    module = make(FineTune, epochs=4)
    fit(tmp_path, module, SplitDigits(num_tasks=2, val_fraction=0.1), [count, stop], limit_train_batches=2)
    assert count.epochs == [2, 2]


def test_stock_early_stopping_is_warned_of(tmp_path: Path) -> None:
    from lightning.pytorch import callbacks as stock

    with pytest.warns(UserWarning, match=r"keeps its best score.*lightning_cil\.callbacks\.EarlyStopping"):
        fit(
            tmp_path, make(FineTune), SplitDigits(num_tasks=2, val_fraction=0.1), fast_dev_run=True,
            callbacks=[stock.EarlyStopping("val/class_il", mode="max")],
        )  # fmt: skip


def test_fast_dev_run_takes_one_step_in_every_stage(tmp_path: Path) -> None:
    trainer = fit(tmp_path, make(FineTune, epochs=3), SplitDigits(), fast_dev_run=True)
    assert trainer.global_step == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not a readable checkpoint"), (b"PK\x03\x04 torn", "not a readable checkpoint"), (None, "no such file")],
)
def test_damaged_checkpoints_are_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "bad.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fit(tmp_path, make(FineTune), ckpt_path=str(path))


@pytest.mark.parametrize(("path", "message"), [("best", "expected a file or 'last'"), ("", "`ckpt_path` is empty")])
def test_words_that_name_no_checkpoint_are_refused(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(tmp_path, make(FineTune), ckpt_path=path)
    stock = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=message):
        fit_stream(stock, make(FineTune), SplitDigits(), ckpt_path=path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_class_order_is_refused(tmp_path: Path) -> None:
    first = fit(tmp_path, make(FineTune), stop_after_task=0, limit_train_batches=1)
    ckpt = Path(first.log_dir or "") / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="another class order"):
        fit(tmp_path, make(FineTune), SplitDigits(class_order="sorted"), ckpt_path=str(ckpt))


def test_everything_a_run_writes_loads_with_weights_only(tmp_path: Path) -> None:
    module = make(ER, epochs=2)
    callbacks: list[Callback] = [ReplayBuffer(total=20), StreamCheckpoint(every_n_train_steps=3)]
    fit(tmp_path, module, SplitDigits(num_tasks=2, batch_size=128), callbacks)
    written = sorted(tmp_path.rglob("*.ckpt"))
    assert [p.name for p in written] == ["last.ckpt", "task_0.ckpt", "task_1.ckpt"]
    for path in written:
        assert torch.load(path, weights_only=True)["lightning_cil"]["method"] == "ER"
    assert not list(tmp_path.rglob("*.part"))


def test_a_grown_checkpoint_works_everywhere(tmp_path: Path) -> None:
    module = make(FineTune)
    trainer = fit(tmp_path, module, SplitDigits(num_tasks=5), limit_train_batches=4)
    path = Path(trainer.log_dir or "") / "checkpoints" / "last.ckpt"
    loaded = FineTune.load_from_checkpoint(path)
    assert loaded.head.num_classes == 10
    assert loaded.class_names == [str(c) for c in SplitDigits().class_order]
    assert weights_hash(loaded) == weights_hash(module)
    fresh = IncrementalTrainer(accelerator="cpu", enable_progress_bar=False, logger=False, default_root_dir=tmp_path)
    tested = fresh.test(loaded, SplitDigits(num_tasks=5), verbose=False)[0]
    last = results(trainer)["matrix"]["class_il"][-1]
    assert tested["test/class_il"] == pytest.approx(sum(last) / 5)
    assert tested["test/class_il/task_2"] == pytest.approx(last[2])


def test_stop_after_a_task_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the tasks 0 to 4"):
        fit(tmp_path, make(FineTune), stop_after_task=7)
