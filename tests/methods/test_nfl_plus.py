"""`NFLPlus`: what its phases train and minimise, that it is NFL without its own terms, and that it remembers."""

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import Tensor

from lightning_cil import IncrementalTrainer, Stage
from lightning_cil.callbacks import Teacher
from lightning_cil.data import SplitDigits
from lightning_cil.data.splits import make_tasks
from lightning_cil.methods import NFL, FineTune, NFLPlus
from tests.callbacks.conftest import NormNet, Recorder, TinyTasks, copied
from tests.losses import reference as slow
from tests.streams import ROUND, TINY, fit, make, results, sgd

PHASES = {**ROUND, "autoencoder_epochs": 1, "gamma_epochs": 1, "holdout": 0.2}
"""The shortest round of NFL+."""


def values(module: Any) -> dict[str, Tensor]:
    return {name: v.clone() for name, v in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, v in after.items() if not torch.equal(v, before[name])}


# ---------------------------------------------------------------------- the round in a stream


@pytest.fixture(scope="module", params=["latest", "all, recorded"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A stream: weights around every stage, and its batches."""
    found = SimpleNamespace(before={}, after={}, old={}, batches={})

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_task_start":
            found.old[args[0].index] = copy.deepcopy(module)
        elif hook == "on_stage_end":
            found.after[args[0].index, args[1].name] = values(module)
        elif hook == "on_train_batch_start":
            key = module.task.index, module.stage.name
            if args[1] == 0:
                found.before[key] = values(module)
            found.batches.setdefault(key, []).append(copied(args[0]))

    encoders, _, targets = request.param.partition(", ")
    targets = targets or "online"
    options = {"encoders": encoders, "targets": targets, "gamma_reading": "class", "gamma_from_step": 4}
    module = make(NFLPlus, backbone=NormNet(), **PHASES, **options)
    callbacks = [Teacher(targets, features=True), Recorder(look)]
    found.trainer = fit(tmp_path_factory.mktemp("plus"), module, TinyTasks(batch_size=4), callbacks)
    found.module, found.encoders, found.targets = module, encoders, targets
    return found


def test_the_phases_of_a_stream(run: SimpleNamespace) -> None:
    steps = ["step 2", "gamma", "step 3", "step 4", "step 5"]
    assert list(run.after) == [
        *((0, "train"), (0, "autoencoder")),
        *((1, name) for name in [*steps, "autoencoder"]),
        *((2, name) for name in steps),  # nothing follows the last task
    ]


def test_a_phase_trains_its_own_part(run: SimpleNamespace) -> None:
    for (task, name), after in run.after.items():
        moved = {n for n in changed(run.before[task, name], after) if n != "head.sizes"}
        parts = {".".join(n.split(".")[:2]) if n.startswith("encoders") else n.split(".")[0] for n in moved}
        encoder = f"encoders.{task if run.encoders == 'all' else 0}"
        expected = {"gamma": {"gammas"}, "autoencoder": {encoder}, "step 2": {"head"}}
        assert parts == expected.get(name, {"backbone", "head"}), (task, name)


def test_held_out_samples_are_for_gamma_alone_and_not_augmented(run: SimpleNamespace) -> None:
    data = run.trainer.datamodule
    for task in (1, 2):
        seen = {name: {int(i) for b in run.batches[task, name] for i in b["index"]} for name in ("gamma", "step 3")}
        assert seen["gamma"]
        assert not seen["gamma"] & seen["step 3"]
        assert {int(data.labels("train")[i]) for i in seen["gamma"]} == set(data.tasks[task].classes)
        batch = run.batches[task, "gamma"][0]
        torch.testing.assert_close(batch["image"], data.augment(data.stored_images(batch["index"])))
    labels = data.labels("train")[data.stage_indices(data.tasks[1], run.module.stages(data.tasks[1])[1])]
    assert labels.bincount().tolist()[2:] == [3, 3]  # a fifth of 13


def test_old_features_come_with_the_old_logits(run: SimpleNamespace) -> None:
    data = run.trainer.datamodule
    for task in (1, 2):
        old = run.old[task].eval()
        assert "teacher_features" not in run.batches[task, "step 2"][0]
        for batch in (b for name in ("step 3", "gamma", "step 5") for b in run.batches[task, name]):
            image = batch["image"] if run.targets == "online" else data.augment(data.stored_images(batch["index"]))
            with torch.no_grad():
                torch.testing.assert_close(batch["teacher_features"], old.features(image))
                torch.testing.assert_close(batch["teacher_logits"], old(image))


def test_the_autoencoder_is_in_the_account_of_the_paper(run: SimpleNamespace) -> None:
    body, code, gamma = 36 * 8 + 2 * 8, 2 * 8 * 6, 4 * 6 + 4
    count = 2 if run.encoders == "all" else 1
    assert results(run.trainer)["footprint"]["paper"] == 4 * (body + count * code + gamma)


def test_a_checkpoint_brings_encoders_and_gamma(run: SimpleNamespace, tmp_path: Path) -> None:
    path = Path(run.trainer.log_dir) / "checkpoints" / "last.ckpt"
    options = {"encoders": run.encoders, "gamma_reading": "class"}
    other = make(NFLPlus, backbone=NormNet(), **PHASES, **options)
    trainer = IncrementalTrainer(accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False)
    trainer.test(other, TinyTasks(), ckpt_path=path)
    assert not changed(values(run.module), values(other))


# ---------------------------------------------------------------------- losses


def third_task(step: Any, **options: Any) -> tuple[NFLPlus, Any, dict[str, Tensor]]:
    """A module in a stage of its third task, all of its weights random, the old module, and a batch."""
    torch.manual_seed(0)
    module = make(NFLPlus, **{**PHASES, **options}).double()
    module.log_terms = lambda **terms: None
    tasks = make_tasks([2, 2, 3, 1])
    module.begin_stream(tasks, 0)
    module.grow_to(tasks[1])
    module.on_task_start(tasks[2])
    old = copy.deepcopy(module)
    module.grow_to(tasks[2])
    module.double()
    stage = next(s for s in module.stages(tasks[2]) if s.options["step"] == step)
    module.begin_stage(tasks[2], stage)
    module.on_stage_start(tasks[2], stage)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        image = torch.randn(5, 1, 8, 8).double()
        batch = {"image": image, "target": torch.tensor([4, 5, 6, 4, 5])}
        batch["teacher_features"], batch["teacher_logits"] = old.features(image), old(image)
    return module, old, batch


def sigmoid_codes(module: NFLPlus, features: Tensor, count: int) -> list[list[float]]:
    rows = []
    for u in features.tolist():
        codes = [
            slow.sigmoid(sum(w * x for w, x in zip(row, u, strict=True)))
            for encoder in list(module.encoders)[:count]
            for row in encoder.encoder.weight.tolist()
        ]
        rows.append(codes)
    return rows


@pytest.mark.parametrize("reading", ["sample", "class", "task"])
@pytest.mark.parametrize(("encoders", "count"), [("latest", 1), ("all", 2)])
def test_the_final_loss_is_the_papers(reading: str, encoders: str, count: int) -> None:
    weights = {"eta": 0.3, "phi": 0.9, "rho": 0.11, "tau": 0.13}
    options = {"gamma_reading": reading, "encoders": encoders, "code_features": 6, "scenario": "task_il"}
    module, _, batch = third_task(5, **weights, **options, backbone=NormNet16())
    with torch.no_grad():
        features = module.features(batch["image"])
        student, frozen = module(batch["image"]), module.copies["head"](features)
        recomputed = module.copies["head"](module.copies["body"](batch["image"]))
        code = batch["teacher_features"] @ module.encoders[count - 1].encoder.weight.T
        gamma = code @ module.gammas[0].weight.T + module.gammas[0].bias
    factors = gamma.repeat_interleave(2, 1) if reading == "task" else gamma
    corrected = factors * batch["teacher_logits"]
    expected = (
        0.3 * slow.distillation(frozen.tolist(), corrected.tolist(), 2.0, [2, 2])
        + 0.7 * slow.distillation(student[:, :4].tolist(), recomputed.tolist(), 2.0, [2, 2])
        + 0.9 * slow.cross_entropy(student.tolist(), batch["target"].tolist(), 4, 7)
        + 0.11
        * slow.squared_distance(
            sigmoid_codes(module, features, count), sigmoid_codes(module, batch["teacher_features"], count)
        )
        + 0.13 * slow.squared_distance(gamma.tolist(), torch.ones_like(gamma).tolist())
    )
    loss = module.training_step(batch, 0)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    trained = {n for n, p in module.named_parameters() if p.grad is not None}
    assert trained == {n for n, _ in module.named_parameters() if n.startswith(("backbone.", "head."))}


def test_the_autoencoders_loss_is_the_papers() -> None:
    module, _, batch = third_task("autoencoder", reconstruction_weight=0.7)
    with torch.no_grad():
        features = module.features(batch["image"])
        codes = torch.tensor(sigmoid_codes(module, features, 1)).double()
        rebuilt = codes @ module.encoders[0].decoder.weight.T
        logits = module.head(rebuilt)
    distance = slow.squared_distance(rebuilt.tolist(), features.tolist()) / features.shape[1]
    expected = 0.7 * distance + slow.cross_entropy(logits.tolist(), batch["target"].tolist(), 4, 7)
    assert module.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("objective", ["identity", "kd"])
def test_gammas_loss_is_the_papers_and_a_fresh_one_starts_every_round(objective: str) -> None:
    module, _, batch = third_task("gamma", gamma_objective=objective, tau=0.2, eta=0.4)
    with torch.no_grad():
        code = batch["teacher_features"] @ module.encoders[0].encoder.weight.T
        gamma = code @ module.gammas[0].weight.T + module.gammas[0].bias
        corrected = gamma * batch["teacher_logits"]
        student = module.copies["head"](module.features(batch["image"]))  # O of Eq. 22: the original old heads
    identity = slow.squared_distance(gamma.tolist(), torch.ones_like(gamma).tolist())
    kd = slow.distillation(student.tolist(), corrected.tolist(), 2.0, None)
    loss = module.training_step(batch, 0)
    assert loss.item() == pytest.approx(identity if objective == "identity" else 0.2 * identity + 0.4 * kd, rel=1e-9)
    module.on_stage_start(module.task, module.stage)
    assert torch.equal(module.gammas[0].bias, torch.zeros(1).double())


@pytest.mark.parametrize(("first", "used"), [(6, False), (4, True)])
def test_earlier_steps_use_corrected_logits_on_request(first: int, used: bool) -> None:
    module, _, batch = third_task(3, gamma_from_step=first)
    assert torch.equal(module.old_logits(batch), batch["teacher_logits"]) is not used
    names = [s.name for s in module.stages(module.task)]
    assert names.index("gamma") == (1 if used else 3)


def test_gamma_is_trained_in_step_5_on_request() -> None:
    module, _, batch = third_task(5, gamma_joint=True, gamma_reading="literal")
    module.training_step(batch, 0).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.gammas.parameters())
    assert all(p.grad is None for p in module.encoders.parameters())


def test_without_its_own_terms_it_is_nfl(tmp_path: Path) -> None:
    backbone = NormNet()
    nfl = make(NFL, backbone=copy.deepcopy(backbone), alpha=0.3, beta=0.8, **ROUND)
    fit(tmp_path / "nfl", nfl, TinyTasks())
    plus = make(NFLPlus, backbone=backbone, eta=0.3, phi=0.8, rho=0.0, **{**PHASES, "gamma_epochs": 0})
    fit(tmp_path / "plus", plus, TinyTasks())
    for name, value in nfl.state_dict().items():
        torch.testing.assert_close(plus.state_dict()[name], value, atol=1e-6, rtol=0)


class NormNet16(torch.nn.Module):
    """A backbone whose batches do not mix samples, 16 features."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(64, 16)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(image.flatten(1)).relu()


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"eta": 1.5}, "`eta=1.5`: expected a share from 0 to 1"),
        ({"rho": -1}, "`rho=-1`: expected a weight"),
        ({"encoders": "first"}, "`encoders='first'`: expected one of 'latest', 'all'"),
        ({"gamma_reading": "B"}, "`gamma_reading='B'`: expected one of 'sample'"),
        ({"gamma_objective": "ce"}, "`gamma_objective='ce'`"),
        ({"gamma_from_step": 5}, "`gamma_from_step=5`: expected one of 4, 6"),
        ({"reconstruction": "max"}, "`reconstruction='max'`"),
        ({"autoencoder_epochs": 0}, "`autoencoder_epochs=0`: expected at least 1"),
        ({"holdout": 0.0}, "`gamma_epochs=5` with `holdout=0.0`"),
        ({"gamma_joint": True, "gamma_epochs": 0}, "there is no Γ to train"),
        ({"code_features": 256}, "`code_features=256`"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make(NFLPlus, **options)


def test_a_stage_on_held_out_samples_needs_some() -> None:
    with pytest.raises(ValueError, match=r"got `holdout=0\.0` with `data=.held_out.`"):
        Stage("gamma", 1, data="held_out")


def test_hyperparameters_rebuild_it() -> None:
    again = NFLPlus(**make(NFLPlus, encoders="all", rho=0.2).hparams)
    assert (again.keep_all, again.rho) == (True, 0.2)


# ---------------------------------------------------------------------- what it is for


def test_it_remembers_the_digits_that_plain_training_forgets(tmp_path: Path) -> None:
    """Measured with 5 epochs a task, seeds 0 to 2: ACC in Class-IL 0.60 to 0.74, plain training 0.10 to 0.17."""
    found = {}
    phases = {**PHASES, "step3_epochs": 2, "holdout": 0.1, "autoencoder_epochs": 10}
    for name, method in (("plus", partial(NFLPlus, **phases)), ("plain", FineTune)):
        seed_everything(0, verbose=False)
        module = method(backbone=TINY, epochs=5, optimizer=sgd)
        trainer = IncrementalTrainer(
            accelerator="cpu", default_root_dir=tmp_path / name, enable_progress_bar=False, enable_checkpointing=False
        )
        trainer.fit(module, SplitDigits(num_tasks=5))
        found[name] = results(trainer)
    plus, plain = found["plus"], found["plain"]
    assert plus["scores"]["class_il"]["ACC"] > plain["scores"]["class_il"]["ACC"] + 0.2
    assert plus["scores"]["task_il"]["ACC"] > plain["scores"]["task_il"]["ACC"] + 0.2
    pairs = zip(plus["matrix"]["task_il"], plus["matrix"]["class_il"], strict=True)
    assert all(t >= c for task_il, class_il in pairs for t, c in zip(task_il, class_il, strict=True))
