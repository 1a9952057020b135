"""`AGCN`: its loss, the matrix that it counts, word vectors, and what it remembers."""

from functools import partial
from pathlib import Path

import pytest
import torch

from lightning_cil.callbacks import ReplayBuffer, Teacher
from lightning_cil.data.splits import make_tasks
from lightning_cil.losses import binary_distillation, known_bce
from lightning_cil.methods import AGCN
from lightning_cil.networks import CorrelationRule
from lightning_cil.networks.label_correlation import augmented_matrix, correlation_counts
from tests.callbacks.conftest import Recorder
from tests.methods.growth import check_growth, check_refusal, check_resume, first_steps
from tests.methods.test_multilabel import digits
from tests.streams import fit, make, results

SMALL = {
    "vectors": "random",
    "vector_size": 20,
    "graph_width": 32,
    "graph_weight": 10.0,
    "optimizer": partial(torch.optim.Adam, lr=3e-3),
}


def second_task(**options):
    module = make(AGCN, **{**SMALL, **options})
    tasks = make_tasks([3, 2])
    module.begin_stream(tasks, 0)
    for task in tasks:
        module.grow_to(task)
        module.begin_stage(task, module.stages(task)[0])
    return module


def test_the_loss_is_its_terms():
    module = second_task(alpha=0.2, distillation_weight=0.7)
    known = torch.tensor([[False] * 3 + [True] * 2] * 4)
    batch = {"target": (torch.rand(4, 5) < 0.5).float() * known, "known": known, "teacher_logits": torch.randn(4, 3)}
    logits = torch.randn(4, 5)
    module.head.weight1.data.add_(0.1)
    terms = module.terms(batch, logits, None)
    assert list(terms) == ["bce", "kd", "graph"]
    torch.testing.assert_close(terms["bce"], 0.2 * known_bce(logits, batch["target"], known))
    torch.testing.assert_close(terms["kd"], 0.7 * binary_distillation(logits[:, :3], batch["teacher_logits"]))
    change = module.head.classifiers()[:3] - module.head.previous
    torch.testing.assert_close(terms["graph"], 10 * change.square().mean())
    assert terms["graph"] > 0
    assert terms["graph"].requires_grad
    del batch["teacher_logits"]
    assert list(module.terms(batch, logits, None)) == ["bce"]


def test_the_matrix_is_that_of_the_labels_and_soft_labels_so_far(tmp_path: Path):
    seen, before = [], {}

    def look(hook, trainer, module, *rest):
        if hook == "on_train_batch_start":
            batch, task = rest[0], module.task
            if rest[1] == 0 and not trainer.current_epoch:
                seen.append([])
                before[task.index] = module.head.matrix[: task.num_old, : task.num_old].clone()
            teacher = next(c for c in trainer.callbacks if isinstance(c, Teacher)).network
            with torch.no_grad():
                logits = torch.zeros(len(batch["image"]), 0) if teacher is None else teacher(batch["image"])
            seen[-1].append(correlation_counts(batch["target"][:, task.classes], logits))
        if hook == "on_task_end":
            expected = augmented_matrix(before[module.task.index], sum(seen[-1]), CorrelationRule())
            torch.testing.assert_close(module.head.matrix, expected)

    module = make(AGCN, epochs=2, **SMALL)
    trainer = fit(tmp_path, module, digits(), [Recorder(look)])
    assert len(seen) == 3
    assert torch.equal(module.head.matrix[:7, :7], before[2])
    torch.testing.assert_close(torch.tensor(results(trainer)["label_graph"]), module.head.matrix)


def test_classes_that_are_added_get_rows_and_both_layers_are_trained(tmp_path: Path):
    steps = first_steps(tmp_path, make(AGCN, **SMALL))
    assert check_growth(steps) == set()  # nothing that is learned grows
    for step in steps:
        assert {"head.weight1", "head.weight2"} <= step.trained
        assert all(not torch.equal(step.before[n], step.after[n]) for n in ("head.weight1", "head.weight2"))
        assert len(step.after["head.matrix"]) == len(step.after["head.vectors"]) == step.task.num_seen
        assert torch.equal(step.before["head.vectors"], step.after["head.vectors"])


def test_word_vectors_come_from_a_file(tmp_path: Path):
    file = tmp_path / "words.txt"
    file.write_text("\n".join(f"{digit} {digit} 1" for digit in range(10)), encoding="utf-8")
    module = make(AGCN, **{**SMALL, "vectors": str(file), "vector_size": 2})
    fit(tmp_path, module, digits(class_order="seed:1993"), limit_train_batches=1)
    names = [float(name) for name in digits(class_order="seed:1993").class_names]
    assert module.head.vectors.tolist() == [[n, 1.0] for n in names]
    assert names != sorted(names)


def test_random_vectors_are_warned_of(tmp_path: Path):
    module = make(AGCN, **{**SMALL, "vectors": None})
    with pytest.warns(UserWarning, match=r"AGCN has no word vectors.*`model\.vectors=random`"):
        fit(tmp_path, module, digits(train_images=60), limit_train_batches=1)


def test_it_remembers(tmp_path: Path):
    found = results(fit(tmp_path, make(AGCN, epochs=5, **SMALL), digits(train_images=300)))["multilabel"]
    assert found["mAP_last"] > 0.45  # MLFineTune: 0.36 after 6 epochs
    assert found["AF"] < 0.25


def test_callbacks_that_it_does_not_use_are_refused(tmp_path: Path):
    for callback in [ReplayBuffer(total=4)]:
        check_refusal(tmp_path, make(AGCN, **SMALL), callback)


def test_it_goes_on_inside_a_task(tmp_path: Path):
    check_resume(tmp_path, AGCN, **SMALL)


def test_bad_input_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"`alpha=-0\.1`"):
        make(AGCN, **{**SMALL, "alpha": -0.1})
    with pytest.raises(FileNotFoundError, match="is no file, expected GloVe's text format"):
        make(AGCN, **{**SMALL, "vectors": str(tmp_path / "none.txt")})
