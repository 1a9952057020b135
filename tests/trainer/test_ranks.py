"""Two ranks (gloo, forked) train what one process with the same global batch trains."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.nn.functional import all_reduce

from lightning_cil import IncrementalTrainer, Stage, Task
from lightning_cil.callbacks import EarlyStopping, ReplayBuffer, StreamCallback
from lightning_cil.data import ImageFolderTasks, MultiLabelDigits, SplitDigits
from lightning_cil.methods import (
    CSC,
    ER,
    MEMO,
    NFL,
    TOPIC,
    Coil,
    DERPlusPlus,
    FineTune,
    ICaRL,
    IncrementalModule,
    LwF,
    MLDERPlusPlus,
    MLPODNet,
    MMICaRL,
    NFLPlus,
    RebLL,
)
from lightning_cil.networks import Backbone
from tests.data import formats
from tests.resume.cases import NETWORKS
from tests.streams import ROUND, fit, make, results, spoken, weights_hash

RANKS = {"devices": 2, "strategy": "ddp_fork"}


class Ranks(StreamCallback):
    """Each rank writes the hash of its weights after every stage, and of its buffer after every task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def on_stage_end(self, trainer: Any, module: Any, task: Task, stage: Stage) -> None:
        self.note(trainer, f"{task.index} {stage.name}", weights_hash(module), trainer.global_step)

    def on_task_scored(self, trainer: Any, module: Any, task: Task) -> None:
        for buffer in (c for c in trainer.callbacks if isinstance(c, ReplayBuffer)):
            self.note(trainer, f"{task.index} buffer", buffer.digest(), len(buffer))

    def note(self, trainer: Any, *row: Any) -> None:
        with (self.folder / f"rank_{trainer.global_rank}").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self, rank: int) -> list[list[Any]]:
        return [json.loads(line) for line in (self.folder / f"rank_{rank}").read_text().splitlines()]


class Staged(FineTune):
    """Head, a part of the body, everything: each stage trains other parameters."""

    def stages(self, task: Task) -> list[Stage]:
        return [Stage("head", 1, train=["head.*"]), Stage("part", 1, train=["backbone.conv2.*"]), Stage("all", 1)]


def both(
    root: Path, method: Any, sizes: list[int], batch: int = 16, callbacks: Any = list, **options: Any
) -> tuple[tuple[IncrementalTrainer, IncrementalModule], tuple[IncrementalTrainer, IncrementalModule], Ranks]:
    """The run of one process with batch 2·B, that of two with batch B, and what their ranks noted."""
    found = []
    ranks = Ranks(root / "ranks")
    for name, size, more, extra in (("one", 2 * batch, {}, []), ("two", batch, RANKS, [ranks])):
        module = method()
        if module.label_kind == "multi":
            data = MultiLabelDigits(train_images=200, test_images=60, sizes=sizes, batch_size=size)
        elif isinstance(module, MMICaRL | TOPIC):
            data = spoken(root / "sounds", sizes=sizes, num_tasks=None, batch_size=size)
        else:
            data = SplitDigits(sizes=sizes, batch_size=size)
        found.append((fit(root / name, module, data, [*callbacks(), *extra], **more, **options), module))
    return found[0], found[1], ranks


PHASES: dict[str, Any] = {  # SGD: Adam makes much of the last digits of small gradients
    "autoencoder_epochs": 1,
    "gamma_epochs": 1,
    "autoencoder_optimizer": partial(torch.optim.SGD, lr=0.001),
    "gamma_optimizer": partial(torch.optim.SGD, lr=0.001),
}


def on_towers(method: Any, **options: Any) -> IncrementalModule:
    torch.manual_seed(3)
    scope = ["image.proj", "text.text_projection"]
    return method(towers="tiny", scope=scope, epochs=1, optimizer=partial(torch.optim.SGD, lr=0.01), **options)


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "ER": (lambda: make(ER), lambda: [ReplayBuffer(total=50)], {}),
    "ER, every batch": (lambda: make(ER), lambda: [ReplayBuffer(total=50, update="batch")], {}),
    "ER, herding": (lambda: make(ER), lambda: [ReplayBuffer(per_class=5, selection="herding")], {}),
    "iCaRL": (lambda: make(ICaRL), lambda: [ReplayBuffer(total=50, selection="herding")], {}),
    "Coil": (
        lambda: make(Coil, epochs=2, solve_every=4, retrospective_weight=0.1),
        lambda: [ReplayBuffer(total=50, selection="herding")],
        {},
    ),
    "DER++": (
        lambda: make(DERPlusPlus, alpha=0.3),
        lambda: [ReplayBuffer(total=50, update="batch", columns=["logits"], num_draws=2)],
        {},
    ),
    "MEMO": (
        lambda: make(MEMO, first_epochs=1, lr_scheduler=None, first_weight_decay=None, first_lr_scheduler=None),
        lambda: [ReplayBuffer(total=50, selection="herding")],
        {},
    ),
    "LwF": (lambda: make(LwF), list, {}),
    "LwF, accumulated": (lambda: make(LwF), list, {"accumulate_grad_batches": 2}),
    "NFL": (lambda: make(NFL, **ROUND, targets="recorded", step3_init="random"), list, {}),
    "NFL+": (lambda: make(NFLPlus, **ROUND, **PHASES), list, {}),
    "staged": (lambda: make(Staged), list, {}),
    "RebLL": (lambda: make(RebLL), lambda: [ReplayBuffer(per_class=4, repeat=False)], {}),
    "MLDERPlusPlus": (
        lambda: make(MLDERPlusPlus),
        lambda: [ReplayBuffer(per_class=4, update="batch", columns=["logits"], num_draws=2, repeat=False, dedupe=True)],
        {},
    ),
}

CASES |= {
    name: (lambda kind=kind, options=options: make(kind, **options), list, {})
    for name, (kind, options) in NETWORKS.items()
    if kind not in (CSC, MLPODNet)
}
CASES["CSC"] = (lambda: make(CSC, graph_width=16, graph_norm="layer"), list, {})
CASES["MMICaRL"] = (lambda: on_towers(MMICaRL), list, {})
CASES["TOPIC"] = (lambda: on_towers(TOPIC, num_nodes=8, new_nodes=8, anchors_per_step=100), list, {})
CASES["MLPODNet"] = (lambda: make(MLPODNet), lambda: [ReplayBuffer(per_class=4, repeat=False)], {})


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_what_one_process_trains(tmp_path: Path, case: str) -> None:
    method, callbacks, options = CASES[case]
    (one, ours), (two, theirs), ranks = both(tmp_path, method, [4, 3, 3], callbacks=callbacks, **options)
    assert ranks.rows(0) == ranks.rows(1)
    assert len(ranks.rows(0)) >= 3
    for name, value in ours.state_dict().items():  # the second from the forked processes to this one
        assert close(value, theirs.state_dict()[name]), name
    for key in ("matrix", "before_training", "other_classifier", "nme_fallback", "relabelling"):
        assert equal(results(one).get(key), results(two).get(key)), key
    for k in range(3):
        a, b = (torch.load(Path(t.log_dir or "") / f"checkpoints/task_{k}.ckpt", weights_only=True) for t in (one, two))
        for name, value in a["state_dict"].items():
            assert close(value, b["state_dict"][name]), (k, name)
        means, others = (c.get("lightning_cil.NearestMean", {}) for c in (a, b))
        for name, value in means.items():
            assert torch.allclose(value.float(), others[name].float(), atol=1e-5, rtol=0), (k, name)
        stores = [c.get("lightning_cil.ReplayBuffer", {"store": {}})["store"] for c in (a, b)]
        assert set(stores[0]) == set(stores[1])
        for column, values in stores[0].items():
            if values.is_floating_point():  # logits
                assert torch.allclose(values, stores[1][column], atol=1e-4, rtol=0), (k, column)
            else:
                assert values.equal(stores[1][column]), (k, column)


def across_ranks(self: nn.SyncBatchNorm, values: torch.Tensor) -> torch.Tensor:
    """What `SyncBatchNorm` does on GPUs, for gloo, which torch has no kernel for."""
    if not self.training or not torch.distributed.is_initialized():
        return nn.functional.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias)
    moments = torch.cat([values.new_full((1,), len(values)), values.sum(0), values.square().sum(0)])
    moments = all_reduce(moments)
    count = moments[0].detach()
    mean, square = (moments[1:] / count).chunk(2)
    variance = square - mean.square()
    with torch.no_grad():
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / (count - 1), self.momentum)
    return (values - mean) / (variance + self.eps).sqrt() * self.weight + self.bias


def test_csc_with_synchronised_batch_norm_trains_what_one_process_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nn.SyncBatchNorm, "forward", across_ranks)
    on_gpus_only = "_passing_sync_batchnorm_handle"
    monkeypatch.setattr(nn.parallel.DistributedDataParallel, on_gpus_only, lambda *args: None)
    (one, _), (two, _), ranks = both(tmp_path, lambda: make(CSC, graph_width=16), [4, 3, 3], sync_batchnorm=True)
    assert ranks.rows(0) == ranks.rows(1)
    for k in range(3):
        a, b = (saved(trainer, f"task_{k}")["state_dict"] for trainer in (one, two))
        assert a["head.norm.num_batches_tracked"] > 3 * k
        for name, value in a.items():
            assert close(value, b[name]), (k, name)
    assert equal(results(one)["matrix"], results(two)["matrix"])


def equal(one: Any, two: Any) -> bool:
    """Nested lists and dicts; fractions of multi-label runs come from logits that differ in their last digits."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(one[k], two[k]) for k in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(equal(a, b) for a, b in zip(one, two, strict=True))
    return one == two or (isinstance(one, float) and abs(one - two) < 1e-3)


def close(one: torch.Tensor, two: torch.Tensor) -> bool:
    """To the fifth digit after the point; counts, some in units of 2^-24, to their sixth digit."""
    if one.is_floating_point():
        return torch.allclose(one, two, atol=1e-5, rtol=0)
    return torch.allclose(one.double(), two.double(), atol=0, rtol=1e-6)


def saved(trainer: IncrementalTrainer, name: str = "last") -> dict[str, Any]:
    return torch.load(Path(trainer.log_dir or "") / f"checkpoints/{name}.ckpt", weights_only=True)


@pytest.mark.parametrize("update", ["task", "batch"])
@pytest.mark.parametrize(("world", "train", "test"), [(2, 1, 1), (2, 3, 3), (3, 5, 2)])
def test_tasks_smaller_than_a_batch_or_than_the_ranks(
    tmp_path: Path, update: Any, world: int, train: int, test: int
) -> None:
    formats.write_image_folder(tmp_path / "images", train=train, test=test, size=16)
    data = ImageFolderTasks(
        tmp_path / "images", image_size=16, sizes=[1, 1, 2], batch_size=64, eval_batch_size=2, num_workers=2
    )
    ranks = Ranks(tmp_path / "ranks")
    module = make(ER, backbone=Backbone("small_cnn"), epochs=2)
    buffer = ReplayBuffer(total=5, update=update)
    trainer = fit(tmp_path / "run", module, data, [buffer, ranks], devices=world, strategy="ddp_fork")
    assert all(ranks.rows(0) == ranks.rows(rank) for rank in range(1, world))
    buffers = [row for row in ranks.rows(0) if row[0].endswith("buffer")]
    assert [row[2] for row in buffers][-1] == (5 if update == "batch" else min(5, 4 * train))  # batches come again
    counts = saved(trainer)["callbacks"]["StreamState"]["counts"]
    for scenario in ("class_il", "task_il"):  # every test image once, in each row of the matrix
        assert counts[scenario]["total"].tolist() == [[test, test, 2 * test]] * 4


class WithBatchNorm(nn.Module):
    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


def test_batch_norm_statistics_are_the_same_on_all_ranks(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path / "ranks")
    module = make(ER, backbone=WithBatchNorm())
    buffer = ReplayBuffer(per_class=4, selection="herding")  # by features, which see the statistics
    fit(tmp_path / "run", module, SplitDigits(num_tasks=2), [buffer, ranks], limit_train_batches=0.3, **RANKS)
    assert ranks.rows(0) == ranks.rows(1)
    assert int(module.backbone.layers[2].num_batches_tracked) == ranks.rows(0)[-2][2]


def test_ranks_stop_early_together_where_one_process_does(tmp_path: Path) -> None:
    def stopping() -> list[Any]:
        return [EarlyStopping(monitor="val/loss", patience=0, min_delta=0.15)]

    counts = []
    for name, size, more in (("one", 32, {}), ("two", 16, RANKS)):
        ranks = Ranks(tmp_path / name / "ranks")
        module = make(FineTune, epochs=6)
        data = SplitDigits(num_tasks=2, val_fraction=0.13, batch_size=size, eval_batch_size=5)
        trainer = fit(tmp_path / name, module, data, [*stopping(), ranks], **more)
        counts.append([row[2] for row in ranks.rows(0)])
        if name == "one":
            assert counts[0][0] < 6 * (len(data.train_indices([0])) // 32)  # it did stop
        else:
            assert ranks.rows(0) == ranks.rows(1)
    assert counts[0] == counts[1]
    assert results(trainer)["status"] == "complete"
