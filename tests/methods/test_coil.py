"""`Coil`: rows transported from the data it may see, both terms by epoch, no leak, two classifiers scored."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch import Tensor, nn

from lightning_cil import IncrementalTrainer
from lightning_cil.callbacks import ReplayBuffer, StreamCallback, StreamCheckpoint
from lightning_cil.data import SplitDigits
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import Coil
from tests.callbacks.conftest import TinyTasks
from tests.losses import reference as slow
from tests.resume.cases import PlainNet
from tests.streams import TINY, fit, make, results, sgd
from tests.trainer.test_ranks import saved

NEW, OLD = torch.tensor([4, 5, 6, 4, 5]), torch.tensor([0, 3, 2])


def plain(**options: Any) -> Coil:
    seed_everything(3, verbose=False)
    return make(Coil, backbone=PlainNet(), **options)


class Later(Coil):
    """In the third of five epochs, without a trainer."""

    current_epoch = 2


def third_task(method: type[Coil] = Coil, **options: Any) -> Coil:
    module = make(method, epochs=5, **options)
    tasks = make_tasks([2, 2, 3, 2])
    module.begin_stream(tasks, 0)
    for task in tasks[:3]:
        module.grow_to(task)
    module.log_terms = lambda **terms: None
    generator = torch.Generator().manual_seed(4)
    width = module.head.in_features
    module.rows = {n: torch.randn(k, width, generator=generator) for n, k in (("prospective", 3), ("retrospective", 4))}
    nn.init.constant_(module.head.scale, 3.0)
    return module.double()


def batch(scale: float = 3.0) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "image": torch.randn(5, 1, 8, 8).double(),
        "target": NEW,
        "teacher_logits": scale * torch.randn(5, 4).double(),
        "replay_image": torch.randn(3, 1, 8, 8).double(),
        "replay_target": OLD,
        "replay_teacher_logits": scale * torch.randn(3, 4).double(),
    }


def expected_loss(module: Coil, b: dict[str, Tensor], epoch: int, weight: float, temperature: float) -> float:
    """The loss of facts and code, in Python floats: λ = 4/7, new and replayed samples in one mean."""
    features = module.features(torch.cat([b["image"], b["replay_image"]])).tolist()
    cosines = slow.cosines(features, module.head.weight.tolist())
    logits = [[3.0 * c for c in row] for row in cosines]
    teacher = [*b["teacher_logits"].tolist(), *b["replay_teacher_logits"].tolist()]
    target = [*NEW.tolist(), *OLD.tolist()]
    total = 3 / 7 * slow.cross_entropy(logits, target, 0, 7)
    total += 4 / 7 * slow.distillation([row[:4] for row in logits], teacher, temperature)
    if epoch == 0:
        wanted = slow.cosines(features, module.rows["prospective"].tolist())
        return total + weight * slow.distillation([row[4:] for row in logits], wanted, temperature)
    found = slow.cosines(features, module.rows["retrospective"].tolist())
    return total + weight * (epoch / 5) ** 2 * slow.distillation(found, teacher, temperature)


@pytest.mark.parametrize(("method", "epoch"), [(Coil, 0), (Later, 2)])
def test_the_loss_is_that_of_the_authors_code(method: type[Coil], epoch: int) -> None:
    weights = {"prospective_weight": 0.7, "retrospective_weight": 0.9}
    module, b = third_task(method, temperature=3.0, **weights), batch()
    expected = expected_loss(module, b, epoch, 0.9 if epoch else 0.7, 3.0)
    assert module.training_step(b, 0).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("method", "epoch"), [(Coil, 0), (Later, 2)])
def test_defaults_are_the_authors(method: type[Coil], epoch: int) -> None:
    module, b = third_task(method), batch()
    assert module.training_step(b, 0).item() == pytest.approx(expected_loss(module, b, epoch, 1e-3, 2.0), rel=1e-9)
    full = Coil()
    assert (full.epochs, full.solve_every, full.cost_norm) == (160, 30, 3.0)
    assert full.sinkhorn.keywords == {"regularisation": 0.464, "tolerance": 1e-9, "max_iterations": 10_000}
    assert full.head.scale.item() == 1.0
    schedule = full.configure_optimizers()["lr_scheduler"]["scheduler"]
    assert [schedule.multiplier(e, 160) for e in (79, 80, 119, 120)] == pytest.approx([1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("method", [Coil, Later])
def test_extreme_logits_are_finite(method: type[Coil]) -> None:
    module, b = third_task(method, retrospective_weight=1.0), batch(1e4)
    nn.init.constant_(module.head.scale, 1e4)
    loss = module.training_step(b, 0)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


# ---------------------------------------------------------------------- transport


def slow_mean(vectors: Tensor) -> list[float]:
    units = [slow.unit(v) for v in vectors.tolist()]
    return slow.unit([sum(column) for column in zip(*units, strict=True)])


def slow_plan(source: list[list[float]], target: list[list[float]]) -> list[list[float]]:
    """Sinkhorn with the kernel itself, cost of order 3, both masses 1."""
    kernel = [
        [math.exp(-(sum(abs(x - y) ** 3 for x, y in zip(a, b, strict=True)) ** (1 / 3)) / 0.464) for b in target]
        for a in source
    ]
    u, v = [1.0] * len(source), [1.0] * len(target)
    for _ in range(500):
        u = [1 / len(source) / sum(k * y for k, y in zip(row, v, strict=True)) for row in kernel]
        v = [1 / len(target) / sum(row[j] * x for row, x in zip(kernel, u, strict=True)) for j in range(len(target))]
    return [[x * k * y for k, y in zip(row, v, strict=True)] for x, row in zip(u, kernel, strict=True)]


def slow_rows(plan: list[list[float]], weight: Tensor) -> Tensor:
    """Each target's mix of the sources' unit rows."""
    units = torch.tensor([slow.unit(row) for row in weight.tolist()], dtype=torch.float64)
    shares = torch.tensor(plan, dtype=torch.float64)
    return torch.stack([(shares[:, j : j + 1] * units).sum(0) for j in range(shares.shape[1])]) * shares.shape[1]


class Look(Callback):
    """Makes the rows anew from what the method may use."""

    def __init__(self, solve_every: int) -> None:
        self.solve_every = solve_every
        self.checked = {"prospective": 0, "retrospective": 0, "kept": 0}

    def means(self, trainer: Any, module: Any) -> list[list[float]]:
        data, task = trainer.datamodule, module.task
        store = next(c for c in trainer.callbacks if isinstance(c, ReplayBuffer)).store
        index, labels = data.train_indices([task.index]), data.labels("train")
        with torch.no_grad():
            new = module.features(data.transform(data.stored_images(index))).double()
            old = module.features(data.transform(store.column("image"))).double()
        old_means = [slow_mean(old[store.column("target") == c]) for c in range(task.num_old)]
        return old_means + [slow_mean(new[labels[index] == c]) for c in task.classes]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        task, self.last = pl_module.task, None
        if task.is_first:
            return
        means, old = self.means(trainer, pl_module), pl_module.head.weight[: task.num_old].double()
        mixed = slow_rows(slow_plan(means[: task.num_old], means[task.num_old :]), old)
        rows = mixed * old.norm(dim=1).mean() / mixed.norm(dim=1).mean()
        assert torch.allclose(pl_module.rows["prospective"].double(), rows, atol=1e-5)
        assert torch.allclose(pl_module.head.weight[task.num_old :].double(), rows, atol=1e-5)
        assert "retrospective" not in pl_module.rows
        self.checked["prospective"] += 1

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        task = pl_module.task
        if task.is_first or not pl_module.current_epoch:
            return
        found = pl_module.rows["retrospective"]
        if trainer.fit_loop.epoch_loop.batch_idx % self.solve_every:
            assert found is self.last
            self.checked["kept"] += 1
            return
        means, new = self.means(trainer, pl_module), pl_module.head.weight[task.num_old :].double()
        rows = slow_rows(slow_plan(means[task.num_old :], means[: task.num_old]), new)
        assert torch.allclose(found.double(), rows, atol=1e-5)
        self.last = found
        self.checked["retrospective"] += 1


def test_rows_are_transported_between_the_classes_that_may_be_seen(tmp_path: Path) -> None:
    module, look = plain(epochs=2, solve_every=5), Look(5)
    data = TinyTasks(sizes=[3, 2, 1], batch_size=4)
    fit(tmp_path, module, data, [ReplayBuffer(total=9, selection="herding"), look])
    assert look.checked == {"prospective": 2, "retrospective": 3, "kept": 6}
    assert module.rows == {}


class Break(Callback):
    """Ends the run before a step, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise OSError("power cut")


@pytest.mark.parametrize("step", [8, 10], ids=["first epoch", "between two transports"])
def test_a_run_that_goes_on_keeps_its_rows(tmp_path: Path, step: int) -> None:
    """Three steps an epoch, two epochs a task; rows are made before the steps 9 and 11."""
    ends = []
    for name, callbacks in (("straight", []), ("broken", [Break(step)])):
        module = plain(epochs=2, solve_every=2, retrospective_weight=1.0)
        memory, saver = ReplayBuffer(total=12, selection="herding"), StreamCheckpoint(every_n_train_steps=1)
        run = partial(fit, tmp_path / name, data=TinyTasks(), stop_after_task=1)
        if callbacks:
            with pytest.raises(OSError, match="power cut"):
                run(module, callbacks=[memory, saver, *callbacks])
            module = plain(epochs=2, solve_every=2, retrospective_weight=1.0)
            memory, saver = ReplayBuffer(total=12, selection="herding"), StreamCheckpoint(every_n_train_steps=1)
            run(module, callbacks=[memory, saver], ckpt_path="last")
        else:
            run(module, callbacks=[memory, saver])
        ends.append(module.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_new_rows_can_start_at_random(tmp_path: Path) -> None:
    class First(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if not pl_module.task.is_first:
                self.head = pl_module.head.weight[2:].clone()
                self.rows = pl_module.rows["prospective"]

    heads = []
    for name in ("random", "transported"):
        first = First()
        module = plain(new_rows=name)
        fit(tmp_path / name, module, TinyTasks(sizes=[2, 4]), [ReplayBuffer(total=6, selection="herding"), first])
        assert first.head.equal(first.rows) == (name == "transported")
        heads.append(first.head)
    assert heads[0].abs().max() <= 8**-0.5  # U(-1/√8, 1/√8), as all heads
    assert not heads[0].equal(heads[1])


class Spoil(StreamCallback):
    """Overwrites training images after the first task: past ones that are no exemplars, or those of tasks to come."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_task_scored(self, trainer: Any, module: Any, task: Any) -> None:
        if not task.is_first:
            return
        data = trainer.datamodule
        images, past = data.split("train").images, data.train_indices([0])
        kept = next(c for c in trainer.callbacks if isinstance(c, ReplayBuffer)).store.column("index")
        chosen = past[~torch.isin(past, kept)] if self.what == "past" else data.train_indices([2])
        assert len(chosen) > 10
        images[chosen] = 255 - images[chosen]


@pytest.mark.parametrize("update", ["task", "batch"])
def test_neither_past_nor_future_data_leak(tmp_path: Path, update: str) -> None:
    """Old data but the exemplars, and data of tasks to come, are of no consequence."""
    weights = {}
    for what in ("nothing", "past", "future"):
        module = plain(epochs=2, solve_every=2, retrospective_weight=1.0)
        memory = ReplayBuffer(total=6, selection="herding" if update == "task" else "reservoir", update=update)
        callbacks = [memory, *([Spoil(what)] if what != "nothing" else [])]
        trainer = fit(tmp_path / what, module, TinyTasks(), callbacks, stop_after_task=1)
        weights[what] = module.state_dict()
        assert trainer.datamodule.num_tasks == 3
    for what in ("past", "future"):
        assert all(torch.equal(value, weights[what][name]) for name, value in weights["nothing"].items())


# ---------------------------------------------------------------------- streams


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_remembers_and_scores_both_classifiers(tmp_path: Path, seed: int) -> None:
    seed_everything(seed, verbose=False)
    buffer = ReplayBuffer(total=50, selection="herding")
    trainer = IncrementalTrainer(
        callbacks=[buffer], default_root_dir=tmp_path, accelerator="cpu", enable_progress_bar=False
    )
    trainer.fit(Coil(backbone=TINY, epochs=3, optimizer=sgd), SplitDigits())
    found = results(trainer)
    other = found["other_classifier"]
    assert found["scores"]["class_il"]["ACC"] > 0.75  # fine-tuning: 0.2
    assert other["name"] == "nme"
    assert other["scores"]["class_il"]["ACC"] > 0.8
    for matrix in (found["matrix"], other["matrix"]):
        assert (torch.tensor(matrix["class_il"]) <= torch.tensor(matrix["task_il"])).all()
    assert found["scores"]["task_il"]["FWT"] is not None
    assert other["scores"]["task_il"]["FWT"] is None
    stored = [len(saved(trainer, f"task_{k}")["lightning_cil.ReplayBuffer"]["store"]["index"]) for k in range(5)]
    assert stored == [50] * 5
    width = trainer.lightning_module.head.in_features
    assert found["footprint"]["full"]["prototypes"] == 4 * 10 * width
    assert found["footprint"]["transient"] == 4 * 10 * width


def test_the_nearest_mean_predicts_on_request(tmp_path: Path) -> None:
    runs = {}
    for classifier in ("nme", "cosine"):
        buffer = ReplayBuffer(total=20, selection="herding")
        module = make(Coil, classifier=classifier)
        runs[classifier] = results(fit(tmp_path / classifier, module, SplitDigits(num_tasks=2), [buffer]))
    for one, two in (("nme", "cosine"), ("cosine", "nme")):
        assert runs[one]["other_classifier"]["name"] == two
        assert runs[one]["other_classifier"]["matrix"] == runs[two]["matrix"]


@pytest.mark.parametrize("sizes", [[1] * 6, [3, 1, 2]])
def test_a_budget_below_the_classes_and_tasks_of_one_class(tmp_path: Path, sizes: list[int]) -> None:
    """Classes without exemplars are transported by the means that they were learned with."""
    buffer = ReplayBuffer(total=3, selection="herding", allow_missing_classes=True)
    module = plain(epochs=2, solve_every=1)
    found = results(fit(tmp_path, module, TinyTasks(sizes=sizes), [buffer]))
    assert found["status"] == "complete"
    assert found["nme_fallback"] == [3, 4, 5]
    assert len(buffer) == 3
    assert all(p.isfinite().all() for p in module.parameters())


def test_an_old_class_that_nothing_is_known_of_is_refused(tmp_path: Path) -> None:
    class Lose(StreamCallback):
        def on_task_scored(self, trainer: Any, module: Any, task: Any) -> None:
            buffer.store.keep(torch.tensor([0]))

    buffer = ReplayBuffer(total=12, selection="herding")
    with pytest.raises(ValueError, match=r"The classes \[1\] .* have neither exemplars nor a stored mean"):
        fit(tmp_path, plain(), TinyTasks(), [buffer, Lose()])


def test_the_last_relu_goes_but_for_the_users_own_backbone() -> None:
    assert isinstance(Coil(backbone="resnet20").backbone.layer3[-1].act2, nn.Identity)
    assert isinstance(Coil(backbone="resnet20", last_activation=True).backbone.layer3[-1].act2, nn.ReLU)
    own = Coil(backbone="resnet20", last_activation=True).backbone
    assert isinstance(Coil(backbone=own).backbone.layer3[-1].act2, nn.ReLU)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "`temperature=0.0`: expected a positive number"),
        ({"prospective_weight": -1.0}, "`prospective_weight=-1.0`: expected at least 0"),
        ({"retrospective_weight": -1.0}, "`retrospective_weight=-1.0`: expected at least 0"),
        ({"new_rows": "zeros"}, "`new_rows='zeros'`: expected 'transported' or 'random'"),
        ({"cost_norm": 0.5}, "`cost_norm=0.5`: expected at least 1"),
        ({"regularisation": 0.0}, "`regularisation=0.0`: expected a positive number"),
        ({"tolerance": 0.0}, "`tolerance=0.0`: expected a positive number"),
        ({"max_iterations": 0}, "`max_iterations=0`: expected at least 1"),
        ({"solve_every": 0}, "`solve_every=0`: expected at least 1 step"),
        ({"scale": 0.0}, "`scale=0.0`: expected a positive, finite number"),
        ({"classifier": "linear"}, "`classifier='linear'`: expected 'nme' or 'cosine'"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(Coil, **options)
