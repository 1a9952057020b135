"""`MEMO`: a block a task, what is trained and what stays, auxiliary head, alignment, checkpoints of a grown body."""

import importlib
from operator import mul
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import seed_everything
from torch import Tensor, nn

from lightning_cil import IncrementalTrainer
from lightning_cil.callbacks import ReplayBuffer, StreamCallback
from lightning_cil.data import SplitDigits
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import MEMO
from lightning_cil.metrics import count_parameters, footprint, megabytes, printed_megabytes
from lightning_cil.networks import Backbone, CifarResNet
from tests.callbacks.conftest import TinyTasks
from tests.losses import reference as slow
from tests.streams import TINY, fit, make, results, sgd
from tests.trainer.test_ranks import saved

SHORT: dict[str, Any] = {
    "first_epochs": None,
    "first_weight_decay": None,
    "lr_scheduler": None,
    "first_lr_scheduler": None,
}
"""The first task like the others."""


def memo(**options: Any) -> MEMO:
    return make(MEMO, **{**SHORT, **options})


def with_norm(**options: Any) -> MEMO:
    """With BatchNorm, on the images of `TinyTasks`."""
    seed_everything(3, verbose=False)
    return memo(backbone=CifarResNet(8, in_channels=1), **options)


def third_task(**options: Any) -> MEMO:
    module = memo(**options)
    tasks = make_tasks([2, 2, 3, 2])
    module.begin_stream(tasks, 0)
    for task in tasks[:3]:
        module.grow_to(task)
    module.begin_stage(tasks[2], module.stages(tasks[2])[0])
    module.log_terms = lambda **terms: None
    with torch.no_grad():
        for part in module.backbone.specialised[1:]:
            for parameter in part.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return module.double()


def batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "image": torch.randn(5, 1, 8, 8).double(),
        "target": torch.tensor([4, 5, 6, 4, 5]),
        "replay_image": torch.randn(3, 1, 8, 8).double(),
        "replay_target": torch.tensor([0, 3, 2]),
    }


def linear(rows: list[list[float]], head: Any) -> list[list[float]]:
    weight, bias = head.weight.tolist(), head.bias.tolist()
    return [[sum(map(mul, u, w)) + b for w, b in zip(weight, bias, strict=True)] for u in rows]


@pytest.mark.parametrize("weight", [1.0, 0.4, 0.0])
def test_the_loss_is_that_of_the_authors_code(weight: float) -> None:
    module, b = third_task(auxiliary_weight=weight), batch()
    maps = module.backbone.generalised(torch.cat([b["image"], b["replay_image"]]))
    parts = [part(maps).tolist() for part in module.backbone.specialised]
    features = [[*first, *second, *third] for first, second, third in zip(*parts, strict=True)]
    assert parts[1] != parts[2]
    expected = slow.cross_entropy(linear(features, module.head), [4, 5, 6, 4, 5, 0, 3, 2], 0, 7)
    if weight:
        auxiliary = linear(parts[2], module.auxiliary)
        assert {len(row) for row in auxiliary} == {4}
        expected += weight * slow.cross_entropy(auxiliary, [1, 2, 3, 1, 2, 0, 0, 0], 0, 4)
    else:
        assert module.auxiliary.num_classes == 0
    assert module.training_step(b, 0).item() == pytest.approx(expected, rel=1e-9)


def test_extreme_logits_are_finite() -> None:
    module, b = third_task(), batch()
    nn.init.uniform_(module.head.weight, -1e4, 1e4)
    nn.init.uniform_(module.auxiliary.weight, -1e4, 1e4)
    loss = module.training_step(b, 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_defaults_are_the_authors() -> None:
    module, tasks = MEMO(), make_tasks([2, 2])
    module.begin_stream(tasks, 0)
    for task, epochs, steps, decay in ((tasks[0], 200, (60, 120, 170), 5e-4), (tasks[1], 170, (80, 120, 150), 2e-4)):
        module.grow_to(task)
        (stage,) = module.stages(task)
        module.begin_stage(task, stage)
        assert stage.epochs == epochs
        made = module.configure_optimizers()
        (group,) = made["optimizer"].param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.9, decay)
        rate = made["lr_scheduler"]["scheduler"].multiplier
        for power, step in enumerate(steps):
            assert (rate(step - 1, epochs), rate(step, epochs)) == pytest.approx((0.1**power, 0.1 ** (power + 1)))


def test_every_default_reaches_the_config(run_cli: Any) -> None:
    """A schedule that is a lambda would not: the config could not be read again."""
    done = run_cli("fit", "--config", "examples/quickstart.yaml", "--model", "MEMO", "--print_config")
    found = yaml.safe_load(done.stdout)["model"]["init_args"]
    for name, rate in (("lr_scheduler", (0.47, 0.705, 0.88)), ("first_lr_scheduler", (0.3, 0.6, 0.85))):
        module, _, function = found[name].rpartition(".")
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        assert getattr(importlib.import_module(module), function)(optimizer).at == list(rate)
    assert (found["first_epochs"], found["first_weight_decay"]) == (200, 5e-4)


# ---------------------------------------------------------------------- growth


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


class Watch(StreamCallback):
    """Weights at the start, before the end and after the end of every task, and what the optimizer holds."""

    def __init__(self) -> None:
        self.start: list[dict[str, Tensor]] = []
        self.trained: list[dict[str, Tensor]] = []
        self.end: list[dict[str, Tensor]] = []
        self.optimized: list[set[str]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start.append(copies(pl_module))
        names = {id(p): name for name, p in pl_module.named_parameters()}
        held = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
        self.optimized.append({names[id(p)] for p in held})

    def on_stage_end(self, trainer: Any, module: Any, task: Any, stage: Any) -> None:
        self.trained.append(copies(module))

    def on_task_scored(self, trainer: Any, module: Any, task: Any) -> None:
        self.end.append(copies(module))


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.parametrize(
    "options", [{}, {"train_generalised": False}, {"train_specialised": "all"}, {"auxiliary_weight": 0.0}], ids=str
)
def test_each_task_trains_what_it_may(tmp_path: Path, options: dict[str, Any]) -> None:
    module, watch = with_norm(**options), Watch()
    fit(tmp_path, module, TinyTasks(), [ReplayBuffer(total=12, selection="herding"), watch])
    body, width = "backbone.specialised.", module.backbone.block_features
    for k, (start, trained, end) in enumerate(zip(watch.start, watch.trained, watch.end, strict=True)):
        blocks = {name.removeprefix(body).partition(".")[0] for name in start if name.startswith(body)}
        assert blocks == {str(i) for i in range(k + 1)}  # BatchNorm's statistics are among the entries
        moves = k == 0 or options.get("train_generalised", True)
        assert equal(part(start, "backbone.generalised."), part(trained, "backbone.generalised.")) != moves
        for i in range(k + 1):
            same = equal(part(start, f"{body}{i}."), part(trained, f"{body}{i}."))
            assert same == (i < k and options.get("train_specialised", "newest") == "newest")
        new = 2 if k and options.get("auxiliary_weight", 1.0) else 0
        assert start["auxiliary.weight"].shape == (new + bool(new), width)
        assert end["auxiliary.weight"].shape == (0, width)
        held = watch.optimized[k]
        assert ("auxiliary.weight" in held) == bool(new)
        assert held >= {"head.weight", "head.bias", *(f"{body}{k}.{n}" for n in part_names(module, k))}
        assert any(name.startswith("backbone.generalised.") for name in held) == moves
        if k:
            before = watch.end[k - 1]
            assert equal(part(start, f"{body}{k}."), part(before, f"{body}{k - 1}."))  # a copy of the newest
            assert equal(part(start, "backbone.generalised."), part(before, "backbone.generalised."))
            assert start["head.weight"].shape == (2 * k + 2, width * (k + 1))
            assert start["head.weight"][: 2 * k, : width * k].equal(before["head.weight"])
            assert start["head.bias"][: 2 * k].equal(before["head.bias"])
            assert start["head.weight"][: 2 * k, width * k :].any()


def part_names(module: MEMO, k: int) -> list[str]:
    return [name for name, _ in module.backbone.specialised[k].named_parameters()]


@pytest.mark.parametrize("weight_alignment", [True, False])
def test_new_rows_are_aligned_after_training(tmp_path: Path, weight_alignment: bool) -> None:
    watch = Watch()
    callbacks = [ReplayBuffer(total=12, selection="herding"), watch]
    fit(tmp_path, memo(weight_alignment=weight_alignment), TinyTasks(sizes=[2, 1, 3]), callbacks)
    for k, (old, trained, end) in enumerate(zip([0, 2, 3], watch.trained, watch.end, strict=True)):
        rows, factor = trained["head.weight"].double(), 1.0
        if k and weight_alignment:
            lengths = [sum(x * x for x in row) ** 0.5 for row in rows.tolist()]
            factor = slow.mean(lengths[:old]) / slow.mean(lengths[old:])
            assert abs(factor - 1) > 1e-3
        expected = torch.cat([rows[:old], rows[old:] * factor]) if k else rows
        assert torch.allclose(end["head.weight"].double(), expected, atol=1e-6)
        assert end["head.weight"][:old].equal(trained["head.weight"][:old])
        assert end["head.bias"].equal(trained["head.bias"])


def test_the_auxiliary_head_is_a_function_of_seed_and_task() -> None:
    first, again = third_task(), third_task()
    assert first.auxiliary.weight.equal(again.auxiliary.weight)
    tasks = make_tasks([2, 2, 3, 2])
    other = memo()
    other.begin_stream(tasks, 1)
    for task in tasks[:3]:
        other.grow_to(task)
    before = torch.get_rng_state()
    other.begin_stage(tasks[2], other.stages(tasks[2])[0])
    assert torch.get_rng_state().equal(before)
    assert not other.auxiliary.weight.double().equal(first.auxiliary.weight)


# ---------------------------------------------------------------------- checkpoints


def test_checkpoints_bring_their_number_of_blocks(tmp_path: Path) -> None:
    """Wider and narrower ones, into one module after the other, in the middle of a task and after it."""
    buffer = ReplayBuffer(total=20, selection="herding")
    trainer = fit(tmp_path, memo(), SplitDigits(num_tasks=5), [buffer], stop_after_task=2)
    matrix = results(trainer)["matrix"]["class_il"]
    module = memo()
    for k in (2, 0, 1):
        path = Path(trainer.log_dir or "") / "checkpoints" / f"task_{k}.ckpt"
        found = trainer.test(module, datamodule=SplitDigits(num_tasks=5), ckpt_path=path, verbose=False)[0]
        assert len(module.backbone.specialised) == k + 1
        assert module.head.in_features == module.backbone.num_features
        assert [found[f"test/class_il/task_{j}"] for j in range(k + 1)] == pytest.approx(matrix[k][: k + 1])
    loaded = MEMO.load_from_checkpoint(path, map_location="cpu")
    assert loaded.predict_step(torch.zeros(3, 1, 8, 8), 0).shape == (3, 4)
    module = third_task()
    other = memo().double()
    other.load_state_dict(module.state_dict())
    assert equal(copies(other), copies(module))


# ---------------------------------------------------------------------- streams


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_remembers_what_fine_tuning_forgets(tmp_path: Path, seed: int) -> None:
    seed_everything(seed, verbose=False)
    buffer = ReplayBuffer(total=50, selection="herding")
    trainer = IncrementalTrainer(
        callbacks=[buffer], default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False
    )
    trainer.fit(MEMO(backbone=TINY, epochs=3, optimizer=sgd, **SHORT), SplitDigits())
    found, module = results(trainer), trainer.lightning_module
    assert found["scores"]["class_il"]["ACC"] > 0.75  # fine-tuning: 0.2
    matrix = {s: torch.tensor(found["matrix"][s]) for s in ("class_il", "task_il")}
    assert (matrix["class_il"] <= matrix["task_il"]).all()
    assert found["scores"]["task_il"]["FWT"] is not None
    stored = [len(saved(trainer, f"task_{k}")["lightning_cil.ReplayBuffer"]["store"]["index"]) for k in range(5)]
    assert stored == [50] * 5
    account, width = found["footprint"], module.backbone.block_features
    one, two = (count_parameters(p) for p in (module.backbone.generalised, module.backbone.specialised[0]))
    assert account["full"]["body"] == 4 * (one + 5 * two)
    assert account["full"]["head"] == 4 * 10 * (5 * width + 1)
    assert account["paper"] == 4 * (one + 5 * two) + 50 * 64
    assert account["transient"] == 4 * 3 * (width + 1)


@pytest.mark.parametrize("sizes", [[1] * 6, [3, 1, 2]])
def test_a_budget_below_the_classes_and_tasks_of_one_class(tmp_path: Path, sizes: list[int]) -> None:
    buffer = ReplayBuffer(total=3, selection="herding", allow_missing_classes=True)
    module = memo()
    found = results(fit(tmp_path, module, TinyTasks(sizes=sizes), [buffer]))
    assert found["status"] == "complete"
    assert len(buffer) == 3
    assert len(module.backbone.specialised) == len(sizes)
    assert all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "cifar_stem", "tasks", "expected"),
    [("resnet18", True, 20, 170_649_664), ("resnet18", False, 10, 86_720_064), ("resnet32", False, 10, 3_626_896)],
)
def test_size_of_the_grown_body(name: str, cifar_stem: bool, tasks: int, expected: int) -> None:
    """The ResNet-18 of 20 tasks is the 682.4 MB of NFL's figure 5, which with its exemplars makes 3,692.96 MB."""
    with torch.device("meta"):
        module = MEMO(backbone=Backbone(name, cifar_stem=cifar_stem))
        stream = make_tasks([5] * tasks)
        module.begin_stream(stream, 0)
        for task in stream:
            module.grow_to(task)
    body = count_parameters(module) - count_parameters(module.head)
    assert body == count_parameters(module.backbone) == expected
    assert count_parameters(module.head) == 5 * tasks * (module.backbone.num_features + 1)
    assert module.backbone.num_features == tasks * (512 if name == "resnet18" else 64)
    if tasks == 20:
        assert printed_megabytes(body) == 682.4
        exemplars = footprint(body_parameters=0, exemplar_bytes=20_000 * 150_528).paper
        assert round(printed_megabytes(body) + megabytes(exemplars), 2) == 3692.96


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"auxiliary_weight": -1.0}, "`auxiliary_weight=-1.0`: expected at least 0"),
        ({"train_specialised": "last"}, "`train_specialised='last'`: expected 'newest' or 'all'"),
        ({"backbone": Backbone("small_cnn", compile=True)}, "MEMO got a backbone with `compile: true`"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        memo(**options)


def test_a_backbone_without_stages_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a timm ResNet, a CIFAR ResNet or `small_cnn`"):
        memo(backbone="vit_tiny_patch16_224")
