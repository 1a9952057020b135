"""`DERPlusPlus`: the loss, the logits of the augmented view before the step, two draws, outputs of classes to come."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

from lightning_cil import IncrementalTrainer
from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.data import SplitDigits
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import DERPlusPlus, FineTune, IncrementalModule
from tests.callbacks.conftest import TinyTasks
from tests.losses import reference as slow
from tests.resume.cases import PlainNet
from tests.streams import TINY, fit, make, results, sgd
from tests.trainer.test_ranks import saved

WIDTH = 9
"""Classes of the whole stream."""


def memory(total: int = 50, **options: Any) -> ReplayBuffer:
    return ReplayBuffer(**{"total": total, "update": "batch", "columns": ["logits"], "num_draws": 2, **options})


def third_task(**options: Any) -> DERPlusPlus:
    module = make(DERPlusPlus, **options)
    tasks = make_tasks([2, 2, 3, 2])
    module.begin_stream(tasks, 0)
    for task in tasks[:3]:
        module.grow_to(task)
    module.log_terms = lambda **terms: None
    return module.double()


def batch(widths: list[int]) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    stored = 3 * torch.randn(3, WIDTH).double()
    for row, width in zip(stored, widths, strict=True):
        row[width:] = 0
    return {
        "image": torch.randn(4, 1, 8, 8).double(),
        "target": torch.tensor([4, 6, 5, 4]),
        "replay_image": torch.randn(3, 1, 8, 8).double(),
        "replay_target": torch.tensor([0, 2, 4]),
        "replay_task": torch.tensor([0, 1, 2]),
        "replay_logits": stored,
        "replay2_image": torch.randn(2, 1, 8, 8).double(),
        "replay2_target": torch.tensor([3, 1]),
    }


@pytest.mark.parametrize(("full_head", "columns", "widths"), [(True, 9, [9, 9, 9]), (False, 7, [2, 4, 7])])
def test_the_loss_is_the_papers(full_head: bool, columns: int, widths: list[int]) -> None:
    module, b = third_task(alpha=0.3, beta=0.7, full_head=full_head), batch(widths)
    current, first, second = (module(b[f"{key}image"]).tolist() for key in ("", "replay_", "replay2_"))
    assert {len(row) for row in current} == {columns}
    squares = [
        sum((z[c] - h[c]) ** 2 for c in range(width)) / width
        for z, h, width in zip(first, b["replay_logits"].tolist(), widths, strict=True)
    ]
    expected = slow.cross_entropy(current, b["target"].tolist(), 0, columns) + 0.3 * sum(squares) / 3
    expected += 0.7 * slow.cross_entropy(second, b["replay2_target"].tolist(), 0, columns)
    found = module.training_step(b, 0)
    assert found["loss"].item() == pytest.approx(expected, rel=1e-9)
    assert found["logits"].shape == (4, WIDTH)
    assert not found["logits"].requires_grad
    assert torch.allclose(found["logits"][:, :columns].double(), torch.tensor(current).double(), atol=1e-5)
    assert not found["logits"][:, columns:].any()


class Look(Callback):
    """Recomputes the logits of every batch before its step."""

    def __init__(self) -> None:
        self.logits: dict[int, torch.Tensor] = {}
        self.draws: list[tuple[list[int], list[int]]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for i, row in zip(batch["index"].tolist(), pl_module(batch["image"]), strict=True):
                self.logits[i] = torch.nn.functional.pad(row, (0, 6 - len(row)))
        if "replay_image" in batch:
            self.draws.append(tuple(batch[f"{key}_index"].tolist() for key in ("replay", "replay2")))
            assert batch["replay_logits"].shape == (len(batch["replay_image"]), 6)
            assert set(batch["replay2_index"].tolist()) <= set(self.logits)


@pytest.mark.parametrize("full_head", [True, False])
def test_logits_of_the_augmented_view_before_the_step_are_stored(tmp_path: Path, full_head: bool) -> None:
    """Images are mirrored at random: with the plain image, about half of the logits would be others."""
    buffer, look = memory(1000, allow_missing_classes=True), Look()
    module = make(DERPlusPlus, full_head=full_head, backbone=PlainNet())
    data = TinyTasks()
    fit(tmp_path, module, data, [buffer, look])
    store = buffer.store
    assert store.column("image").equal(data.stored_images(store.column("index")))
    assert torch.allclose(store.column("logits"), torch.stack([look.logits[i] for i in store.column("index").tolist()]))
    assert all(set(a) != set(b) or a != b for a, b in look.draws)


def run(root: Path, method: type[IncrementalModule], seed: int, *callbacks: Callback) -> IncrementalTrainer:
    seed_everything(seed, verbose=False)
    module = method(backbone=TINY, epochs=3, optimizer=sgd)
    trainer = IncrementalTrainer(
        callbacks=list(callbacks), default_root_dir=root, accelerator="cpu", enable_progress_bar=False
    )
    trainer.fit(module, SplitDigits())
    return trainer


def test_it_remembers_what_fine_tuning_forgets(tmp_path: Path) -> None:
    for seed in (0, 1):
        trainer = run(tmp_path / f"derpp{seed}", DERPlusPlus, seed, memory())
        found, plain = results(trainer), results(run(tmp_path / f"plain{seed}", FineTune, seed))
        assert found["scores"]["class_il"]["ACC"] > plain["scores"]["class_il"]["ACC"] + 0.3
        matrix = {s: torch.tensor(found["matrix"][s]) for s in ("class_il", "task_il")}
        assert (matrix["class_il"] <= matrix["task_il"]).all()
        assert not matrix["class_il"].triu(1).any()  # outputs of classes to come are there, and never predicted
        assert found["scores"]["task_il"]["FWT"] is not None
        assert found["footprint"]["full"]["stored_logits"] == 50 * 10 * 4
        assert found["footprint"]["full"]["exemplars"] == 50 * 64
        stores = [saved(trainer, f"task_{k}")["lightning_cil.ReplayBuffer"]["store"] for k in range(5)]
        assert [s["logits"].shape for s in stores] == [(50, 10)] * 5


def test_a_full_head_predicts_the_classes_seen(tmp_path: Path) -> None:
    trainer = fit(tmp_path, make(DERPlusPlus), SplitDigits(num_tasks=5), [memory()], stop_after_task=1)
    path = Path(trainer.log_dir or "") / "checkpoints" / "task_0.ckpt"
    module = make(DERPlusPlus)
    found = trainer.test(module, datamodule=SplitDigits(num_tasks=5), ckpt_path=path, verbose=False)[0]
    assert module.head.num_classes == 10
    assert "test/class_il/task_1" not in found
    assert found["test/class_il/task_0"] == pytest.approx(results(trainer)["matrix"]["class_il"][0][0])
    assert module.predict_step(torch.zeros(3, 1, 8, 8), 0).shape == (3, 2)


def test_the_first_step_has_nothing_to_replay(tmp_path: Path) -> None:
    module, plain = make(DERPlusPlus, full_head=False), make(FineTune)
    for name, method, callbacks in (("derpp", module, [memory()]), ("plain", plain, [])):
        fit(tmp_path / name, method, SplitDigits(num_tasks=2), callbacks, stop_after_task=0, limit_train_batches=1)
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(v, plain.state_dict()[n]) for n, v in module.state_dict().items())


@pytest.mark.parametrize("options", [{"columns": []}, {"num_draws": 1}, {"columns": [], "update": "task"}])
def test_a_memory_without_logits_or_with_one_draw_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="DERPlusPlus needs `update='batch'`, `columns=\\['logits'\\]`"):
        fit(tmp_path, make(DERPlusPlus), SplitDigits(num_tasks=2), [memory(**options)])


def test_bad_weights() -> None:
    with pytest.raises(ValueError, match=r"got `alpha=-0[.]1`"):
        make(DERPlusPlus, alpha=-0.1)
