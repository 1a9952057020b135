import io
import math
import pickle
import random
import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure
from torchmetrics import MetricCollection

import lightning_cil.metrics as metrics
from lightning_cil.metrics import scores
from lightning_cil.metrics.task_matrix import (
    AverageAccuracy,
    AverageForgetting,
    AverageIncrementalAccuracy,
    BackwardTransfer,
    ForwardTransfer,
    Intransigence,
    PlasticityStability,
    TaskMatrix,
    accuracies,
    sample_weighted_accuracy,
    task_counts,
)

JOINT = 0.75


def collection(num_tasks):
    shells = [
        TaskMatrix,
        AverageAccuracy,
        AverageIncrementalAccuracy,
        ForwardTransfer,
        BackwardTransfer,
        AverageForgetting,
        PlasticityStability,
    ]
    return MetricCollection([*(shell(num_tasks) for shell in shells), Intransigence(num_tasks, joint_accuracy=JOINT)])


def random_batches(seed, num_tasks, num_batches=40, classes_per_task=3):
    """Batches in random order of rows, of one task or of several, some of them empty."""
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(num_batches):
        size = rng.choice([0, 1, 5, 16])
        target = torch.randint(num_tasks * classes_per_task, (size,), generator=generator)
        task: torch.Tensor | int = target // classes_per_task
        if rng.random() < 0.5:
            task = rng.randrange(num_tasks)
            target = task * classes_per_task + target % classes_per_task
        wrong = torch.rand(size, generator=generator) < rng.random()
        preds = torch.where(wrong, target + 1, target)
        batches.append({"preds": preds, "target": target, "task": task, "after": rng.randint(-1, num_tasks - 1)})
    return batches


def complete_batches(seed, num_tasks):
    """One batch of all tasks for each row, so that no entry is missing."""
    rng = random.Random(seed)
    target = torch.arange(num_tasks * 20)
    batches = []
    for after in range(-1, num_tasks):
        preds = torch.tensor([label if rng.random() < 0.6 else -1 for label in target.tolist()])
        batches.append({"preds": preds, "target": target, "task": target // 20, "after": after})
    return batches


def slow_rows(batches, num_tasks):
    """Sample by sample, with plain integers: rows -1..T-1, and the accuracy over the samples of the seen tasks."""
    correct, total = {}, {}
    for batch in batches:
        for k in range(len(batch["target"])):
            task = batch["task"] if isinstance(batch["task"], int) else batch["task"][k].item()
            entry = (batch["after"], task)
            total[entry] = total.get(entry, 0) + 1
            correct[entry] = correct.get(entry, 0) + (batch["preds"][k].item() == batch["target"][k].item())
    rows = [
        [correct[i, j] / total[i, j] if (i, j) in total else math.nan for j in range(num_tasks)]
        for i in range(-1, num_tasks)
    ]
    seen = []
    for i in range(num_tasks):
        entries = [(i, j) for j in range(i + 1)]
        complete = all(entry in total for entry in entries)
        seen.append(sum(correct[e] for e in entries) / sum(total[e] for e in entries) if complete else math.nan)
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(seen, dtype=torch.float64)


def assert_same(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-15, equal_nan=True)


def assert_counts(metric, batches):
    rows, seen = slow_rows(batches, metric.num_tasks)
    assert_same(metric.compute(), rows[1:])
    assert_same(metric.before_training(), rows[0])
    assert_same(metric.seen_accuracy(), seen)


@pytest.mark.parametrize("seed", range(12))
def test_matrix_equals_a_slow_reference(seed):
    num_tasks = 1 + seed % 5
    metric, batches = TaskMatrix(num_tasks), random_batches(seed, num_tasks)
    for batch in batches:
        metric.update(**batch)
    assert_counts(metric, batches)


def test_order_of_updates_does_not_matter():
    batches = random_batches(0, num_tasks=4)
    first, second = TaskMatrix(4), TaskMatrix(4)
    for batch in batches:
        first.update(**batch)
    random.Random(1).shuffle(batches)
    for batch in batches:
        second.update(**batch)
    assert torch.equal(first.correct, second.correct)
    assert torch.equal(first.total, second.total)
    assert first.total.dtype == torch.long
    assert first.total.sum() == sum(len(batch["target"]) for batch in batches) > 0


def two_ranks(batches, num_tasks):
    """Metrics of two processes, joined by torchmetrics' own synchronisation over a gather without a process group."""
    ranks: list[TaskMatrix] = []

    def gather(tensor, group=None):
        name = "correct" if any(rank.correct is tensor for rank in ranks) else "total"
        return [getattr(rank, name) for rank in ranks]

    ranks += [TaskMatrix(num_tasks, dist_sync_fn=gather, distributed_available_fn=lambda: True) for _ in range(2)]
    for number, batch in enumerate(batches):
        ranks[number % 3 == 0].update(**batch)
    return ranks


def test_two_processes_count_as_one():
    batches = random_batches(5, num_tasks=4)
    ranks = two_ranks(batches, num_tasks=4)
    local = [rank.total.clone() for rank in ranks]
    assert local[0].any()
    assert local[1].any()
    for rank, counts in zip(ranks, local, strict=True):
        assert_counts(rank, batches)
        assert torch.equal(rank.total, counts)  # the process's own counts are back afterwards
    by_hand = accuracies(ranks[0].correct + ranks[1].correct, ranks[0].total + ranks[1].total)
    assert_same(ranks[0].compute(), by_hand[1:])


def test_rows_may_be_read_while_synced():
    batches = random_batches(6, num_tasks=3)
    rank = two_ranks(batches, num_tasks=3)[0]
    rows, seen = slow_rows(batches, 3)
    with rank.sync_context(dist_sync_fn=rank.dist_sync_fn):
        assert_same(rank.before_training(), rows[0])
        assert_same(rank.seen_accuracy(), seen)
        assert rank._is_synced


def test_no_synchronisation_where_it_is_switched_off():
    def gather(tensor, group=None):
        raise AssertionError("gathered")

    metric = TaskMatrix(2, sync_on_compute=False, dist_sync_fn=gather, distributed_available_fn=lambda: True)
    metric.update(torch.tensor([0]), torch.tensor([0]), task=0, after=-1)
    assert metric.before_training()[0] == 1


def test_shells_merge_as_torchmetrics_merges():
    batches = random_batches(7, num_tasks=3)
    first, second = TaskMatrix(3), TaskMatrix(3)
    for number, batch in enumerate(batches):
        (first, second)[number % 2].update(**batch)
    first.merge_state(second)
    assert_counts(first, batches)


@pytest.mark.parametrize("seed", range(5))
def test_collection_has_one_state_and_right_values(seed):
    num_tasks = 2 + seed % 3
    group, batches = collection(num_tasks), complete_batches(seed, num_tasks)
    for batch in batches:
        group.update(**batch)
    assert list(group.compute_groups.values()) == [list(group.keys())]
    assert len(group.compute_groups[0]) == 8
    assert len({metric.total.data_ptr() for metric in group.values(copy_state=False)}) == 1

    rows, _ = slow_rows(batches, num_tasks)
    matrix, baseline = rows[1:].tolist(), rows[0].tolist()
    found = group.compute()
    assert_same(found.pop("TaskMatrix"), rows[1:])
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {
            "AverageAccuracy": scores.average_accuracy(matrix),
            "AverageIncrementalAccuracy": scores.average_incremental_accuracy(matrix),
            "ForwardTransfer": scores.forward_transfer(matrix, baseline),
            "BackwardTransfer": scores.backward_transfer(matrix),
            "AverageForgetting": scores.average_forgetting(matrix),
            "PlasticityStability": scores.plasticity_stability(matrix),
            "Intransigence": scores.intransigence(matrix, JOINT),
        }
    )
    assert all(value.shape == () and value.dtype == torch.float64 for value in found.values())


def test_collection_updates_one_metric_only_after_the_first_batch():
    group, batches = collection(3), complete_batches(0, 3)
    calls = []
    for name, metric in group.items(keep_base=True, copy_state=False):
        original = metric.update
        metric.update = lambda *args, name=name, original=original, **kw: (calls.append(name), original(*args, **kw))
    group.update(**batches[0])
    assert len(calls) == 8
    group.update(**batches[1])
    assert len(calls) == 9


def test_collection_survives_an_empty_first_batch_and_a_reset():
    empty = torch.zeros(0, dtype=torch.long)
    group, batches = collection(2), complete_batches(1, 2)
    for _ in range(2):
        group.update(preds=empty, target=empty, task=empty, after=-1)
        for batch in batches:
            group.update(**batch)
        assert len(group.compute_groups) == 1
        assert_same(group.compute()["TaskMatrix"], slow_rows(batches, 2)[0][1:])
        group.reset()


def test_scores_are_nan_until_the_stream_is_complete():
    group = collection(2)
    *begin, last = complete_batches(2, 2)
    for batch in begin:
        group.update(**batch)
    found = group.compute()
    found.pop("TaskMatrix")
    forward = found.pop("ForwardTransfer")  # reads rows -1 and 0 only
    assert not forward.isnan()
    assert all(value.isnan() for value in found.values())
    group.update(**last)
    assert not any(value.isnan().any() for value in group.compute().values())


def test_empty_batches_leave_no_mark():
    metric, empty = TaskMatrix(2), torch.zeros(0, dtype=torch.long)
    metric.update(empty, empty, task=empty, after=0)
    metric.update(empty, empty, task=1, after=-1)
    assert metric.compute().isnan().all()
    assert metric.before_training().isnan().all()
    assert metric.seen_accuracy().isnan().all()


@pytest.mark.parametrize(
    "copy", [lambda metric: metric, lambda metric: pickle.loads(pickle.dumps(metric)), TaskMatrix.clone]
)
def test_one_task_has_a_matrix_of_one_entry(copy):
    metric = copy(TaskMatrix(1))
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 0]), task=0, after=0)
    for _ in range(2):  # computed, cached
        assert metric.compute().tolist() == [[0.5]]
    assert metric.seen_accuracy().tolist() == [0.5]
    assert scores.average_accuracy(metric.compute()) == 0.5
    single = AverageAccuracy(1)
    single.update(torch.tensor([0, 1]), torch.tensor([0, 0]), task=0, after=0)
    assert single.compute().shape == ()


def test_forward_gives_the_batch_and_keeps_the_sum():
    batches = random_batches(9, num_tasks=3)
    metric = TaskMatrix(3)
    for batch in batches:
        assert_same(metric(**batch), slow_rows([batch], 3)[0][1:])
    assert_counts(metric, batches)


def test_seen_accuracy_weighs_samples_and_not_tasks():
    metric = TaskMatrix(2)
    target, task = torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1, 1, 1])
    metric.update(torch.tensor([0, 0, 0, 0]), target, task, after=0)
    metric.update(torch.tensor([0, 1, 0, 0]), target, task, after=1)
    assert metric.seen_accuracy().tolist() == [1.0, 0.5]
    assert scores.average_accuracy(metric.compute()) == pytest.approx(2 / 3)


def test_seen_accuracy_needs_every_seen_task():
    correct, total = torch.tensor([[1, 0], [0, 2]]), torch.tensor([[1, 0], [0, 2]])
    found = sample_weighted_accuracy(correct, total)
    assert found[0] == 1
    assert found[1].isnan()


def test_equal_accuracies_cancel_in_float64():
    metric = PlasticityStability(3)
    target = torch.arange(30)
    for after, hits in enumerate([(5, 0, 0), (5, 7, 0), (6, 6, 9)]):  # V3 of the hand-worked matrices
        keep = [j * 10 + k for j in range(3) for k in range(hits[j])]
        preds = torch.full_like(target, -1)
        preds[keep] = target[keep]
        metric.update(preds, target, target // 10, after=after)
    assert metric.compute().isnan()


def test_state_goes_through_a_safe_checkpoint_and_counting_goes_on():
    batches = random_batches(11, num_tasks=3)
    metric = TaskMatrix(3)
    metric.persistent(True)
    for batch in batches[:20]:
        metric.update(**batch)
    file = io.BytesIO()
    torch.save(metric.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert set(state) == {"correct", "total"}
    resumed = TaskMatrix(3)
    resumed.load_state_dict(state)
    for batch in batches[20:]:
        resumed.update(**batch)
    assert_counts(resumed, batches)


def test_state_is_not_in_checkpoints_unless_asked_for():
    assert TaskMatrix(2).state_dict() == {}


def test_casting_the_module_leaves_counts_whole():
    metric = torch.nn.ModuleList([TaskMatrix(2)]).to(torch.bfloat16).half()[0]
    preds = target = torch.zeros(4097, dtype=torch.long)  # bfloat16 and float16 cannot hold 4097
    metric.update(preds, target, task=0, after=0)
    assert metric.total[1, 0] == 4097
    assert metric.total.dtype == torch.long


def test_metric_reset_under_inference_mode_counts_outside_it():
    metric = TaskMatrix(1)
    with torch.inference_mode():
        metric.reset()
        metric.update(torch.tensor([0]), torch.tensor([0]), task=0, after=0)
    metric.update(torch.tensor([1]), torch.tensor([0]), task=0, after=0)
    assert metric.compute().tolist() == [[0.5]]


def test_update_reads_nothing_from_the_device():
    """A meta tensor has no values: whatever would wait for a device fails on it."""
    metric = TaskMatrix(3).to("meta")
    labels = torch.zeros(8, dtype=torch.long, device="meta")
    with pytest.raises(RuntimeError):
        (labels == 0).any().item()
    metric.update(labels, labels, task=labels, after=1)
    metric.update(labels, labels, task=2, after=-1)
    assert metric.total.shape == (4, 3)
    assert metric.total.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_update_does_not_wait_for_cuda():
    batches = random_batches(13, num_tasks=3)
    metric = TaskMatrix(3).to("cuda")
    on_device = [{k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in batch.items()} for batch in batches]
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in on_device:
            metric.update(**batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_counts(metric.cpu(), batches)


def test_functional_core():
    preds, target, task = torch.tensor([1, 2, 3]), torch.tensor([1, 0, 3]), torch.tensor([2, 0, 2])
    correct, total = task_counts(preds, target, task, num_tasks=4)
    assert correct.tolist() == [0, 0, 2, 0]
    assert total.tolist() == [1, 0, 2, 0]
    found = accuracies(correct, total)
    assert found[[0, 2]].tolist() == [0.0, 1.0]
    assert found[[1, 3]].isnan().all()


def test_flags():
    lower_is_better = {AverageForgetting, Intransigence}
    for metric in collection(2).values():
        assert metric.higher_is_better is (type(metric) not in lower_is_better)
        assert metric.is_differentiable is False
        assert metric.full_state_update is False


@pytest.mark.parametrize("num_tasks", [0, -1, 2.0, "3", True, None])
def test_number_of_tasks_is_checked(num_tasks):
    with pytest.raises(ValueError, match=r"AverageAccuracy got `num_tasks=.*expected an integer of at least 1"):
        AverageAccuracy(num_tasks)


def test_unknown_keyword_is_refused():
    with pytest.raises(ValueError, match="sync_on_comptue"):
        TaskMatrix(2, sync_on_comptue=False)


def test_joint_accuracy_is_checked_at_once():
    with pytest.raises(ValueError, match=r"`joint_accuracy` holds 92.*Divide percentages by 100"):
        Intransigence(3, joint_accuracy=92.0)


LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"after": -2}, r"`after=-2` is not the index of a task, expected an integer from -1 .* to 2"),
        ({"after": 3}, r"`after=3`"),
        ({"after": True}, r"`after=True`"),
        ({"after": 1.0}, r"`after=1\.0`"),
        ({"after": torch.tensor(1)}, r"`after=tensor\(1\)`"),
        ({"task": 3}, r"`task=3` is out of range, expected indices from 0 to 2.*Give the task"),
        ({"task": -1}, r"`task=-1` is out of range"),
        ({"task": True}, r"`task=True` is out of range"),
        ({"task": 1.0}, r"`task=1\.0` is out of range"),
        ({"task": torch.tensor([0, 3])}, r"`task=tensor\(\[0, 3\]\)` is out of range"),
        ({"task": torch.tensor([-1, 0])}, r"`task=tensor\(\[-1,  0\]\)` is out of range"),
        ({"task": torch.tensor([0])}, r"`task` has shape \(1,\) .*expected \(2,\)"),
        ({"task": torch.tensor(0)}, r"`task` has shape \(\)"),
        ({"task": torch.tensor([0.0, 1.0])}, r"`task` has shape \(2,\) and type torch\.float32.*torch\.int64"),
        (
            {"preds": torch.zeros(2, 5)},
            r"`preds` has shape \(2, 5\) and type torch\.float32.*`logits\.argmax\(dim=1\)`",
        ),
        ({"preds": torch.tensor([0.0, 1.0])}, r"type torch\.float32"),
        ({"preds": torch.tensor([0])}, r"`preds` has shape \(1,\)"),
        ({"preds": torch.tensor(0), "target": torch.tensor(0)}, r"`preds` has shape \(\)"),
    ],
)
def test_wrong_batches_are_refused_and_leave_no_mark(change, words):
    metric = TaskMatrix(3)
    with pytest.raises(ValueError, match=words):
        metric.update(**{"preds": LABELS, "target": LABELS, "task": 0, "after": 0, **change})
    assert not metric.total.any()


def test_package_exports_what_it_says():
    for name in metrics.__all__:
        assert getattr(metrics, name) is not None
    assert metrics.TaskMatrix is TaskMatrix
    assert dir(metrics) == sorted(metrics.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Accuracy'"):
        metrics.Accuracy  # noqa: B018


def test_scores_do_not_load_torchmetrics():
    code = "import sys, lightning_cil.metrics as m; m.summarise([[1.0]]); print('torchmetrics' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_plot_draws_the_matrix_as_a_heat_map():
    metric = TaskMatrix(num_tasks=2)
    metric.update(torch.tensor([0, 1, 3]), torch.tensor([0, 0, 3]), torch.tensor([0, 0, 1]), after=0)
    axes = Figure().add_subplot()
    figure, found = metric.plot(ax=axes)
    assert (figure, found) == (axes.get_figure(), axes)
    assert axes.images[0].get_array().filled(-1).tolist() == [[50.0, 100.0], [-1.0, -1.0]]
    assert [text.get_text() for text in axes.texts] == ["50.0", "100"]
    assert metric.plot(torch.eye(3), Figure().add_subplot())[1].images[0].get_array().shape == (3, 3)


def test_plot_of_a_score_draws_values_as_torchmetrics_does():
    metric = AverageAccuracy(num_tasks=1)
    metric.update(torch.tensor([0, 1]), torch.tensor([0, 0]), task=0, after=0)
    _, axes = metric.plot(ax=Figure().add_subplot())
    assert axes.lines[0].get_ydata() == [0.5]
    _, axes = metric.plot([torch.tensor(0.25), torch.tensor(0.5)], Figure().add_subplot())
    assert axes.lines[0].get_ydata().tolist() == [0.25, 0.5]


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install lightning-cil\[report\]"):
        TaskMatrix(num_tasks=1).plot()
