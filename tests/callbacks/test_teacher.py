"""`Teacher`: which model it keeps, that nothing touches it, and its logits, in a stream and in a stock fit."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_cil import Stage
from lightning_cil.callbacks import ReplayBuffer, Teacher
from lightning_cil.callbacks.teacher import CHECKPOINT_KEY
from lightning_cil.losses import soft_cross_entropy
from lightning_cil.methods import FineTune, LwF
from tests.callbacks.conftest import Net, NormNet, Recorder, TinyTasks, copied, stock_fit, vectors
from tests.streams import fit, make, results

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:LwF uses no exemplars"),  # with a memory, whoever uses it
]


def logits_of(module: torch.nn.Module, image: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(module).eval()(image)


def values(module: torch.nn.Module | None) -> dict[str, Tensor]:
    return {name: v.clone() for name, v in module.state_dict().items()} if module is not None else {}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module", params=["small_cnn", "batchnorm"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """LwF with exemplars: `old`, the model at each task's start; `steps`; `ends`, the teacher at each task's end."""
    teacher, old, steps, ends, parameters = Teacher(), {}, [], [], []

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_task_start":
            old[args[0].index] = copy.deepcopy(module)
        elif hook == "on_train_batch_start":
            student = logits_of(module, args[0]["image"])
            with torch.no_grad():
                loss = module.training_step(copied(args[0]), 0) if module.task.index else None
            modes = teacher.network is not None and any(m.training for m in teacher.network.modules())
            steps.append(SimpleNamespace(batch=copied(args[0]), task=module.task, student=student, training=modes))
            steps[-1].loss = loss
            parameters.append([p for group in trainer.optimizers[0].param_groups for p in group["params"]])
            steps[-1].teacher = values(teacher.network)
        elif hook == "on_task_end":
            ends.append(values(teacher.network))

    torch.manual_seed(0)
    options = {} if request.param == "small_cnn" else {"backbone": NormNet()}
    callbacks = [ReplayBuffer(total=12), teacher, Recorder(look)]
    module = make(LwF, temperature=2.0, distillation_weight=1.0, **options)
    trainer = fit(tmp_path_factory.mktemp(request.param), module, TinyTasks(), callbacks, log_every_n_steps=1000)
    return SimpleNamespace(
        trainer=trainer, module=module, teacher=teacher, old=old, steps=steps, ends=ends, parameters=parameters
    )


# ---------------------------------------------------------------------- in a stream


def test_there_is_no_teacher_in_the_first_task(run: SimpleNamespace) -> None:
    first = [s for s in run.steps if s.task.is_first]
    assert first
    assert all("teacher_logits" not in s.batch and not s.teacher for s in first)


def test_it_is_the_model_from_before_the_growth(run: SimpleNamespace) -> None:
    for step in (s for s in run.steps if not s.task.is_first):
        assert equal(step.teacher, values(run.old[step.task.index]))
        assert step.teacher["head.weight"].shape[0] == step.task.num_old


def test_logits_are_those_of_the_old_model_on_the_same_batch(run: SimpleNamespace) -> None:
    for step in (s for s in run.steps if not s.task.is_first):
        batch, old = step.batch, run.old[step.task.index]
        assert batch["teacher_logits"].shape == (8, step.task.num_old)
        assert batch["replay_teacher_logits"].shape == (8, step.task.num_old)
        torch.testing.assert_close(batch["teacher_logits"], logits_of(old, batch["image"]))
        torch.testing.assert_close(batch["replay_teacher_logits"], logits_of(old, batch["replay_image"]))
        assert not batch["teacher_logits"].requires_grad


def test_nothing_trains_it(run: SimpleNamespace) -> None:
    assert not run.ends[0]
    for end, task in zip(run.ends[1:], (1, 2), strict=True):
        assert equal(end, values(run.old[task]))
    assert not any(s.training for s in run.steps)
    assert not any(p.requires_grad for p in run.teacher.network.parameters())
    assert all(p.grad is None for p in run.teacher.network.parameters())


def test_it_is_no_part_of_the_module(run: SimpleNamespace) -> None:
    own = {id(p) for p in run.teacher.network.parameters()}
    assert own.isdisjoint(id(p) for p in run.module.parameters())
    assert all(own.isdisjoint(map(id, params)) for params in run.parameters)
    assert run.teacher.network not in set(run.module.modules())
    assert not [name for name in run.module.state_dict() if "teacher" in name]
    assert set(run.module.state_dict()) == set(run.teacher.network.state_dict())


def test_distillation_starts_at_its_floor(run: SimpleNamespace) -> None:
    """At a task's first step the student is the teacher, so that the loss is the teacher's entropy."""
    for task in (1, 2):
        step = next(s for s in run.steps if s.task.index == task)
        old = step.student[:, : step.task.num_old]
        target = (step.batch["teacher_logits"] / 2).softmax(1)
        entropy = -(target * target.log()).sum(1).mean()
        torch.testing.assert_close(old, step.batch["teacher_logits"])
        torch.testing.assert_close(soft_cross_entropy(old, step.batch["teacher_logits"], 2.0), entropy)
        if not isinstance(run.module.backbone, NormNet):  # whose train mode differs from its eval mode
            new = step.student[:, step.task.num_old :]
            cross_entropy = torch.nn.functional.cross_entropy(new, step.batch["target"] - step.task.num_old)
            torch.testing.assert_close(step.loss, cross_entropy + entropy)
        later = next(s for s in reversed(run.steps) if s.task.index == task)
        assert not torch.allclose(later.student[:, : later.task.num_old], later.batch["teacher_logits"], atol=1e-3)


def test_footprint_is_the_copys_size(run: SimpleNamespace) -> None:
    network = run.teacher.network
    assert run.teacher.footprint() == {
        "teacher_bytes": sum(v.nbytes for v in (*network.parameters(), *network.buffers()))
    }
    assert Teacher().footprint() == {}


def test_a_finished_task_needs_no_teacher_in_its_checkpoint(run: SimpleNamespace) -> None:
    for name in ("task_1", "task_2", "last"):
        saved = torch.load(f"{run.trainer.log_dir}/checkpoints/{name}.ckpt", weights_only=True)
        assert CHECKPOINT_KEY not in saved


def test_it_survives_a_checkpoint_inside_a_task(tmp_path: Any) -> None:
    seen: dict[str, list[Any]] = {"straight": [], "resumed": []}

    def look(name: str) -> Any:
        def note(hook: str, trainer: Any, module: Any, *args: Any) -> None:
            if hook == "on_train_batch_start":
                seen[name].append((trainer.global_step, args[0].get("teacher_logits"), values(teachers[name].network)))
            elif hook == "on_train_batch_end" and trainer.global_step == 7 and name == "straight":
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

        return note

    teachers = {name: Teacher() for name in seen}
    for name in seen:
        module = make(LwF, epochs=2)
        ckpt_path = None if name == "straight" else str(tmp_path / "inside.ckpt")
        fit(tmp_path / name, module, TinyTasks(), [teachers[name], Recorder(look(name))], ckpt_path=ckpt_path)
    assert CHECKPOINT_KEY in torch.load(tmp_path / "inside.ckpt", weights_only=True)
    resumed, straight = seen["resumed"], [s for s in seen["straight"] if s[0] >= 7]
    assert [s[0] for s in resumed] == [s[0] for s in straight] == list(range(7, 18))
    for (_, logits, weights), (_, expected, expected_weights) in zip(resumed, straight, strict=True):
        assert torch.equal(logits, expected)
        assert equal(weights, expected_weights)


def test_a_new_stream_starts_without_a_teacher(run: SimpleNamespace) -> None:
    teacher = copy.copy(run.teacher)
    teacher.on_stream_start(run.trainer, run.module, True)
    assert teacher.network is not None
    teacher.on_stream_start(run.trainer, run.module, False)
    assert teacher.network is None


def test_without_exemplars_there_are_no_logits_for_them(tmp_path: Any) -> None:
    keys = set()

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_train_batch_start":
            keys.update(args[0])

    fit(tmp_path, make(FineTune), TinyTasks(), [Teacher(), Recorder(look)], limit_train_batches=1)
    assert "teacher_logits" in keys
    assert "replay_teacher_logits" not in keys


class Outputs(FineTune):
    """Says more than logits."""

    def teacher_outputs(self, image: Tensor) -> dict[str, Tensor]:
        features = self.features(image)
        return {"logits": self.head(features), "map": features[:, :6].view(-1, 3, 2)}


def test_whatever_the_old_module_says_joins_the_batch(tmp_path: Any) -> None:
    old, steps = {}, []

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_task_start":
            old[args[0].index] = copy.deepcopy(module)
        elif hook == "on_train_batch_start":
            steps.append((module.task.index, copied(args[0])))

    callbacks = [ReplayBuffer(total=6, batch_size=4), Teacher(outputs=True), Recorder(look)]
    fit(tmp_path, make(Outputs), TinyTasks(), callbacks, limit_train_batches=1)
    assert not [key for key in steps[0][1] if "teacher" in key]
    for task, batch in steps[1:]:
        for prefix, image in (("teacher_", batch["image"]), ("replay_teacher_", batch["replay_image"])):
            with torch.no_grad():
                expected = copy.deepcopy(old[task]).eval().teacher_outputs(image)
            for name, value in expected.items():
                torch.testing.assert_close(batch[prefix + name], value)
            assert batch[f"{prefix}map"].shape == (len(image), 3, 2)


@pytest.mark.parametrize("options", [{"features": True}, {"targets": "recorded"}])
def test_outputs_go_with_nothing_else(options: Any) -> None:
    with pytest.raises(ValueError, match="got `outputs=True` with `targets="):
        Teacher(outputs=True, **options)


# ---------------------------------------------------------------------- recorded


class TwoStages(LwF):
    """The first stage does without the old model, as the class says."""

    def stages(self, task: Any) -> list[Stage]:
        return [Stage("head", 1, train=["head.*"], options={"teacher": False}), Stage("train", 2)]


def test_recorded_logits_are_those_of_the_images_without_augmentation(tmp_path: Path) -> None:
    """They are computed once a task, in the first stage that wants them; exemplars' are computed in every step."""
    teacher, old, batches, forwards = Teacher("recorded"), {}, [], []

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_task_start":
            old[args[0].index] = copy.deepcopy(module)
        elif hook == "on_stage_start":
            if teacher.network is not None and args[1].name == "head":
                teacher.network.register_forward_hook(lambda *call: forwards.append(len(call[1][0])))
        elif hook == "on_train_batch_start":
            batches.append((module.task, module.stage.name, copied(args[0])))

    callbacks = [ReplayBuffer(total=12), teacher, Recorder(look)]
    trainer = fit(tmp_path, make(TwoStages), TinyTasks(), callbacks)
    later = [(task, batch) for task, stage, batch in batches if not task.is_first and stage == "train"]
    assert all("teacher_logits" not in batch for task, stage, batch in batches if stage == "head" or task.is_first)
    assert len(later) == 2 * 2 * 3
    data = trainer.datamodule
    for task, batch in later:
        plain = data.augment(data.stored_images(batch["index"]))
        assert not torch.equal(plain, batch["image"])
        torch.testing.assert_close(batch["teacher_logits"], logits_of(old[task.index], plain))
        replayed = logits_of(old[task.index], batch["replay_image"])
        torch.testing.assert_close(batch["replay_teacher_logits"], replayed)
    images = 2 * [7, 7, 7, 5]  # the 26 of each of two tasks
    assert sorted(forwards) == sorted([*images, *(len(batch["replay_image"]) for _, batch in later)])
    assert results(trainer)["footprint"]["transient"] == 26 * 4 * 4


def test_recorded_logits_are_the_same_after_a_checkpoint(tmp_path: Path) -> None:
    seen: dict[str, list[Any]] = {"straight": [], "resumed": []}

    def look(name: str) -> Any:
        def note(hook: str, trainer: Any, module: Any, *args: Any) -> None:
            if hook == "on_train_batch_start":
                seen[name].append((trainer.global_step, args[0].get("teacher_logits")))
            elif hook == "on_train_batch_end" and trainer.global_step == 7 and name == "straight":
                trainer.save_checkpoint(tmp_path / "inside.ckpt")

        return note

    for name in seen:
        ckpt_path = None if name == "straight" else str(tmp_path / "inside.ckpt")
        callbacks = [Teacher("recorded"), Recorder(look(name))]
        fit(tmp_path / name, make(LwF, epochs=2), TinyTasks(), callbacks, ckpt_path=ckpt_path)
    straight = [s for s in seen["straight"] if s[0] >= 7]
    assert [s[0] for s in seen["resumed"]] == [s[0] for s in straight] == list(range(7, 18))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(seen["resumed"], straight, strict=True))


def test_recording_needs_numbered_images() -> None:
    net, teacher = Distilled(), Teacher("recorded")
    stock_fit(net, vectors([0, 1]), [teacher])
    with pytest.raises(ValueError, match=r"`targets='recorded'` got data of type NoneType.*Use `targets='online'`"):
        stock_fit(net, vectors([2, 3], seed=1), [teacher])


def test_other_targets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`targets='stored'`: expected 'online'"):
        Teacher("stored")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- in a stock fit


class Distilled(Net):
    """A user's module that keeps the teacher's logits."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.batches.append([t.detach().clone() for t in batch])
        x, y, *_ = batch
        return torch.nn.functional.cross_entropy(self(x), y)


def test_stock_fit_appends_the_last_fits_logits() -> None:
    net, teacher = Distilled(), Teacher()
    stock_fit(net, vectors([0, 1]), [teacher])
    assert {len(b) for b in net.batches} == {2}
    old = copy.deepcopy(net)
    net.batches.clear()
    stock_fit(net, vectors([2, 3], seed=1), [teacher], epochs=2)
    assert {len(b) for b in net.batches} == {3}
    for x, _, logits in net.batches:
        torch.testing.assert_close(logits, logits_of(old, x))
    assert not equal(values(old), values(net))
    assert equal(values(teacher.network), values(net))  # ready for the next fit


def test_stock_teacher_sees_the_exemplars_too() -> None:
    net, callbacks = Distilled(), [ReplayBuffer(total=6), Teacher()]
    stock_fit(net, vectors([0, 1]), callbacks)
    net.batches.clear()
    stock_fit(net, vectors([2, 3], seed=1), callbacks)
    assert {(len(x), len(y), len(logits)) for x, y, logits in net.batches} == {(16, 16, 16), (8, 8, 8)}


def test_stock_checkpoint_brings_the_teacher_back(tmp_path: Any) -> None:
    net, teacher = Distilled(), Teacher()
    stock_fit(net, vectors([0, 1]), [teacher])
    kept = values(teacher.network)
    trainer = stock_fit(net, vectors([2, 3], seed=1), [teacher], enable_checkpointing=False)
    teacher.network.load_state_dict(kept)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = Teacher()
    other.on_load_checkpoint(trainer, net, torch.load(tmp_path / "a.ckpt", weights_only=True))
    other.on_train_start(trainer, net)
    assert equal(values(other.network), kept)
    assert not any(p.requires_grad for p in other.network.parameters())


@pytest.mark.parametrize("kind", ["tuple", "Tensor"])
def test_batches_that_nothing_can_be_added_to_are_refused_in_the_first_fit(kind: str) -> None:
    def collate(pairs: Any) -> Any:
        x = torch.stack([x for x, _ in pairs])
        return x if kind == "Tensor" else (x, torch.stack([y for _, y in pairs]))

    loader = DataLoader(vectors([0, 1]), batch_size=4, collate_fn=collate)
    with pytest.raises(TypeError, match=f"got a batch of type {kind}, .*Let the collate function return a list"):
        stock_fit(Net(), None, [Teacher()], loader=loader)
