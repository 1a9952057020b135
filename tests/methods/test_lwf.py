"""`LwF`: distillation sees the old classes only, has no gradient at equality, and keeps what fine-tuning forgets."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_cil.callbacks import Teacher
from lightning_cil.data import SplitDigits
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import FineTune, LwF
from tests.conftest import RunCli
from tests.streams import fit, make, results


def second_task(**options: Any) -> LwF:
    module = make(LwF, **options)
    tasks = make_tasks([2, 2, 3])
    module.begin_stream(tasks, 0)
    module.grow_to(tasks[2])
    module.log_terms = lambda **terms: None
    return module


def slow_kd(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> float:
    total = 0.0
    for z, h in zip(student.double(), teacher.double(), strict=True):
        q = [torch.exp(v / temperature) for v in z]
        p = [torch.exp(v / temperature) for v in h]
        total -= sum(float(a / sum(p)) * float(torch.log(b / sum(q))) for a, b in zip(p, q, strict=True))
    return total / len(student)


@pytest.mark.parametrize(("scenario", "weight"), [("class_il", 3.0), ("task_il", 1.0)])
def test_the_loss_is_the_papers(scenario: str, weight: float) -> None:
    torch.manual_seed(0)
    module = second_task(scenario=scenario)
    image, target = torch.randn(5, 1, 8, 8), torch.tensor([4, 5, 6, 4, 5])
    teacher = 3 * torch.randn(5, 4)
    logits = module(image).detach()
    new = torch.nn.functional.cross_entropy(logits[:, 4:], target - 4)
    blocks = [slice(0, 4)] if scenario == "class_il" else [slice(0, 2), slice(2, 4)]
    old = sum(slow_kd(logits[:, b], teacher[:, b], 2.0) for b in blocks)
    found = module.training_step({"image": image, "target": target, "teacher_logits": teacher}, 0)
    assert float(found.detach()) == pytest.approx(weight * old + float(new), rel=1e-5)


def test_distillation_has_no_gradient_at_equality_and_none_for_new_outputs() -> None:
    module = second_task()
    image = torch.randn(5, 1, 8, 8)
    teacher = module(image).detach()[:, :4]
    module._distillation(module(image)[:, :4], teacher).backward()
    assert module.head.weight.grad.abs().max() < 1e-6
    module.zero_grad()
    module._distillation(module(image)[:, :4], teacher + torch.randn(5, 4)).backward()
    assert module.head.weight.grad[:4].abs().max() > 1e-3
    assert module.head.weight.grad[4:].abs().max() == 0


def test_the_first_task_is_plain_training(tmp_path: Path) -> None:
    lwf, plain = make(LwF), make(FineTune)
    data = {"sizes": [4, 6]}
    ours = fit(tmp_path / "lwf", lwf, SplitDigits(**data), stop_after_task=0)
    theirs = fit(tmp_path / "plain", plain, SplitDigits(**data), stop_after_task=0)
    assert results(ours)["matrix"] == results(theirs)["matrix"]


def test_the_teacher_is_added_when_missing_and_is_the_old_model(tmp_path: Path) -> None:
    class Look(Callback):
        def __init__(self) -> None:
            self.gap: list[float] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if "teacher_logits" in batch and trainer.fit_loop.total_batch_idx >= 0:
                with torch.no_grad():
                    student = pl_module.eval()(batch["image"])[:, : batch["teacher_logits"].shape[1]]
                pl_module.train()
                self.gap.append(float((student - batch["teacher_logits"]).abs().max()))

    look = Look()
    # the callback list is read in order: the Teacher that LwF adds comes after this one, so give it first
    trainer = fit(tmp_path, make(LwF), SplitDigits(num_tasks=2), [Teacher(), look], limit_train_batches=3)
    assert len(look.gap) == 3  # the second task only
    assert look.gap[0] < 1e-5  # before the first step, student and teacher agree
    assert look.gap[2] > 1e-4
    assert sum(isinstance(c, Teacher) for c in trainer.callbacks) == 1
    alone = fit(tmp_path, make(LwF), SplitDigits(num_tasks=2), limit_train_batches=3)
    assert sum(isinstance(c, Teacher) for c in alone.callbacks) == 1


def test_it_keeps_what_fine_tuning_forgets(tmp_path: Path) -> None:
    options = {"epochs": 3, "scenario": "task_il"}
    lwf = results(fit(tmp_path / "lwf", make(LwF, **options), SplitDigits(num_tasks=5)))
    plain = results(fit(tmp_path / "plain", make(FineTune, **options), SplitDigits(num_tasks=5)))
    assert lwf["scores"]["task_il"]["ACC"] > plain["scores"]["task_il"]["ACC"]
    assert lwf["scores"]["task_il"]["AF"] < plain["scores"]["task_il"]["AF"]


def test_the_warm_up_trains_the_new_head_only(tmp_path: Path) -> None:
    seen: list[tuple[str, list[str]]] = []

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append((pl_module.stage.name, [n for n, p in pl_module.named_parameters() if p.requires_grad]))

    fit(tmp_path, make(LwF, head="multi", warmup_epochs=1), SplitDigits(num_tasks=2), [Look()], limit_train_batches=1)
    assert [name for name, _ in seen] == ["train", "warm-up", "train"]
    assert seen[1][1] == ["head.blocks.1.weight", "head.blocks.1.bias"]
    assert "backbone.conv1.weight" in seen[2][1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "`temperature=0.0`"),
        ({"distillation_weight": -1.0}, "`distillation_weight=-1.0`"),
        ({"warmup_epochs": 1}, "`head='multi'`"),
        ({"kd_scope": "all"}, "kd_scope='all'"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(LwF, **options)


def test_a_run_from_the_command_line_does_not_copy_the_trainer_into_the_teacher(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_cil.trainer import IncrementalTrainer

    def refuse(self: IncrementalTrainer, memo: object) -> None:
        raise AssertionError("the trainer was copied")

    monkeypatch.setattr(IncrementalTrainer, "__deepcopy__", refuse, raising=False)
    code, out, err = run_cli(
        "fit", "--config", "examples/baselines/methods/lwf.yaml",
        "--config", "examples/baselines/protocols/digits.yaml",
        "--model.init_args.epochs", "1", "--trainer.default_root_dir", tmp_path, "--stop_after_task", "1",
    )  # fmt: skip
    assert code == 0, out + err
