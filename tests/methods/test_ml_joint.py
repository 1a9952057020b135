"""`MLJoint`: every image once, with the labels of all classes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cil.losses import asymmetric_focal_loss, known_bce
from lightning_cil.methods import MLJoint
from tests.methods.test_multilabel import adam, digits
from tests.streams import fit, make, results


class Look(MLJoint):
    def on_stream_start(self, resumed: bool) -> None:
        self.batches: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches.append({name: batch[name].clone() for name in ("index", "target", "known")})
        return super().training_step(batch, batch_idx)


def test_it_trains_once_on_every_image_with_all_labels(tmp_path: Path) -> None:
    module = make(Look, epochs=1, optimizer=adam)
    data = digits(train_images=96)
    found = results(fit(tmp_path, module, data))
    index = torch.cat([b["index"] for b in module.batches])
    assert sorted(index.tolist()) == list(range(96))
    assert all(b["known"].all() for b in module.batches)
    assert torch.cat([b["target"] for b in module.batches]).equal(data.hidden_labels(index).float())
    assert found["matrix"]["class_il"][:2] == [[None] * 3] * 2
    scores = found["multilabel"]
    assert scores["mAP_last"] is not None
    assert (scores["mAP_avg"], scores["AF"], scores["mAP"][:2]) == (None, None, [None, None])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ["bce", "asl"])
def test_its_loss_is_chosen(loss: Any, reduction: Any) -> None:
    module = make(MLJoint, loss=loss, reduction=reduction, gamma_negative=3.0, gamma_positive=1.0, clip=0.1)
    logits, target = torch.randn(5, 4), (torch.rand(5, 4) < 0.4).float()
    known = torch.ones(5, 4, dtype=torch.bool)
    found = module.terms({"target": target, "known": known}, logits, None)  # type: ignore[arg-type]
    expected = {
        "bce": known_bce(logits, target, known, reduction=reduction),
        "asl": asymmetric_focal_loss(
            logits, target, gamma_negative=3.0, gamma_positive=1.0, clip=0.1, reduction=reduction
        ),
    }
    assert found == {loss: expected[loss]}


def test_what_cannot_be_is_refused() -> None:
    for options, words in (({"loss": "ce"}, "`loss='ce'`"), ({"loss": "asl", "clip": 1.0}, r"`clip=1\.0`")):
        with pytest.raises(ValueError, match=words):
            make(MLJoint, **options)
