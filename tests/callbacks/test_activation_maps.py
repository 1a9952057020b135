"""Activation maps: the map of an averaging network is its class activation map; what a run's records hold."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_cil.callbacks import ActivationMapRecords
from lightning_cil.callbacks.activation_maps import activation_maps
from lightning_cil.data import MultiLabelDigits
from lightning_cil.methods import FineTune, MLFineTune
from lightning_cil.networks import CifarResNet
from lightning_cil.report import multilabel_figures as drawn
from lightning_cil.report.groups import Group
from lightning_cil.report.records import activation_maps_of
from lightning_cil.report.runs import read_run
from tests.streams import fit, make


class Averaging(nn.Module):
    """Two classes seen, of three that the head has."""

    num_classes_seen = 2

    def __init__(self) -> None:
        super().__init__()
        self.backbone = CifarResNet(8, in_channels=1)
        self.head = nn.Linear(64, 3)


def test_with_average_pooling_the_map_is_the_weighted_sum_of_channels() -> None:
    torch.manual_seed(0)
    module = Averaging().eval()
    image = torch.randn(2, 1, 16, 16)
    found: list[Tensor] = []
    module.backbone.layer3.register_forward_hook(lambda m, i, out: found.append(out.detach()))
    with torch.inference_mode():
        scores, maps = activation_maps(module, image)
    (last,) = found
    expected = torch.einsum("bkhw,ck->bchw", last, module.head.weight.detach()[:2]) / last[0, 0].numel()
    torch.testing.assert_close(maps, expected)
    logits = maps.sum(dim=(2, 3)) + module.head.bias.detach()[:2]
    torch.testing.assert_close(scores, logits.sigmoid())
    assert all(p.grad is None for p in module.parameters())


def test_records_of_a_stream_and_their_figure(tmp_path: Path) -> None:
    data = MultiLabelDigits(train_images=40, test_images=30, sizes=[6, 4])
    trainer = fit(tmp_path, make(MLFineTune), data, [ActivationMapRecords(num_images=3)])
    folder = Path(trainer.log_dir or "")
    labels, probabilities = data.labels("test"), {}
    trainer.test_loop.verbose = False
    for task, seen in ((0, 6), (1, 10)):
        record = np.load(folder / "records" / f"maps_task_{task}.npz")
        index = torch.from_numpy(record["index"]).long()
        assert record["image"].tolist() == data.split("test").stored(index).tolist()
        assert record["target"].tolist() == labels[index][:, :seen].tolist()
        assert record["maps"].shape[:2] == record["scores"].shape == (3, seen)
        probabilities[task] = record["scores"]
    assert not np.array_equal(probabilities[0], probabilities[1][:, :6])
    both = (labels[:, :6].any(1) & labels[:, 6:].any(1)).nonzero().flatten()
    assert set(index.tolist()) <= set(both.tolist())
    images = trainer.datamodule.transform(data.split("test").stored(index))
    trained = trainer.lightning_module.eval()
    with torch.no_grad():
        expected = trained.head(trained.backbone(images)).sigmoid()
    assert probabilities[1] == pytest.approx(expected.numpy(), abs=2e-3)

    run = read_run(folder / "results.json")
    maps = activation_maps_of(run)
    assert maps is not None
    for row in range(3):
        classes = drawn.shown_classes(maps, row, first_new=6)
        assert len(classes) == 4
        assert {c >= 6 for c in classes} == {False, True}
    axes = drawn.draw_activation_maps(Group("FT", (run,))).axes
    titles = [ax.get_title() for ax in axes if ax.get_title()]
    assert len(titles) == 12
    first = drawn.shown_classes(maps, 0, 6)[0]
    assert titles[0] == f"{data.class_names[first]} (old) {maps.scores[0, first]:.2f}"
    assert {ax.title.get_fontweight() for ax in axes if ax.get_title()} == {"bold", "normal"}


def test_a_frozen_network_has_maps() -> None:
    module, image = Averaging().eval(), torch.randn(2, 1, 16, 16)
    expected = activation_maps(module, image)
    for ours, trained in zip(activation_maps(module.requires_grad_(False), image), expected, strict=True):
        torch.testing.assert_close(ours, trained)


def test_an_evaluation_without_any_of_the_images_writes_nothing(tmp_path: Path) -> None:
    """As long as an image shows none of the classes seen, it is not tested on."""
    data = MultiLabelDigits(train_images=30, test_images=30, sizes=[1] * 10)
    data.setup("fit")
    labels = data.labels("test")
    absent = labels[labels.sum(dim=1).argmax()].logical_not().nonzero().flatten().tolist()
    order = [*absent, *(c for c in range(10) if c not in absent)]
    data = MultiLabelDigits(train_images=30, test_images=30, sizes=[1] * 10, class_order=order)
    trainer = fit(tmp_path, make(MLFineTune), data, [ActivationMapRecords(num_images=1)], limit_train_batches=1)
    there = {p.name for p in (Path(trainer.log_dir or "") / "records").glob("maps_*")}
    assert there == {f"maps_task_{t}.npz" for t in range(len(absent), 10)}


def test_single_label_data_and_other_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whose images have one label each"):
        fit(tmp_path, make(FineTune), callbacks=[ActivationMapRecords()])
    flat = nn.Sequential(nn.Flatten(), nn.Linear(256, 8))
    flat.num_features = 8
    data = MultiLabelDigits(train_images=40, test_images=30, sizes=[6, 4])
    with pytest.raises(TypeError, match="gives no feature maps"):
        fit(tmp_path, make(MLFineTune, backbone=flat), data, [ActivationMapRecords()])
    with pytest.raises(ValueError, match="`num_images=0`: expected at least 1"):
        ActivationMapRecords(0)
