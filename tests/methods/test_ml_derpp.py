"""`MLDERPlusPlus`: three forwards, logits of the classes that existed, labels that are known, each image once."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cil.callbacks import ReplayBuffer
from lightning_cil.callbacks.replay import CHECKPOINT_KEY
from lightning_cil.methods import MLDERPlusPlus
from tests.losses.test_asymmetric import GOLDEN, double
from tests.methods.test_multilabel import adam, digits
from tests.methods.test_rebll import NAN, batch, image, method, plain_bce
from tests.streams import fit, make, results
from tests.trainer.test_ranks import saved

FIRST = [[0.3, 0.6, 0.2, 0.8, 0.5, 0.4], [0.9, 0.1, 0.4, 0.5, 0.2, 0.7]]
STORED = [[0.5, 0.5, 0.1, 0.9, 0.5, 0.5], [0.8, 0.2, 0.3, 0.6, 0.1, 0.6]]
SECOND, SECOND_Y = [[0.7, 0.2, 0.6, 0.1, 0.3, 0.9]], [[1.0, 0.0, 1.0, 0.0]]


def test_the_loss_is_the_sum_of_its_terms() -> None:
    b = batch()
    known = torch.tensor([[1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    stored = double(STORED).logit()
    stored[0, 4:] = NAN  # of a sample of the first task, whose head had 4 outputs
    b |= {
        "replay_image": image(FIRST),
        "replay_task": torch.tensor([0, 1]),
        "replay_logits": stored,
        "replay2_image": image(SECOND),
        "replay2_target": torch.cat([double(SECOND_Y), torch.full((1, 2), NAN)], dim=1),
        "replay2_known": known,
    }
    module, sizes = method(MLDERPlusPlus, [4, 2], alpha=0.3, beta=0.7), []
    module.backbone.register_forward_hook(lambda *args: sizes.append(len(args[2])))
    difference = (double(FIRST).logit() - double(STORED).logit()).square()
    squares = (difference[0, :4].mean() + difference[1].mean()).item() / 2
    expected = GOLDEN["mean"]["bce"] + 0.3 * squares + 0.7 * plain_bce([SECOND[0][:4]], SECOND_Y)
    found = module.training_step(b, 0)
    assert found["loss"].item() == pytest.approx(expected, abs=1e-6)
    assert sizes == [2, 2, 1]
    assert found["logits"].shape == (2, 6)
    assert not found["logits"].requires_grad


def test_it_stores_each_image_once_with_its_logits(tmp_path: Path) -> None:
    trainer = fit(tmp_path, make(MLDERPlusPlus, epochs=2, optimizer=adam), digits(train_images=60))
    stores = [saved(trainer, f"task_{t}")[CHECKPOINT_KEY]["store"] for t in range(3)]
    for t, store in enumerate(stores):
        index = store["index"]
        assert len(index.unique()) == len(index) <= 20
        width = torch.tensor([4, 7, 10])[store["task"]]
        assert not store["logits"][torch.arange(10) >= width.unsqueeze(1)].any()
        assert store["logits"][torch.arange(10) < width.unsqueeze(1)].all()
        assert int(store["task"].max()) <= t
    assert results(trainer)["footprint"]["full"]["stored_logits"] == len(stores[-1]["index"]) * 10 * 4


@pytest.mark.parametrize("options", [{"update": "batch"}, {"update": "batch", "columns": ["logits"]}])
def test_a_memory_without_logits_or_a_second_draw_is_refused(tmp_path: Path, options: Any) -> None:
    with pytest.raises(ValueError, match="MLDERPlusPlus needs `update='batch'`"):
        fit(tmp_path, make(MLDERPlusPlus), digits(), [ReplayBuffer(per_class=2, **options)])


def test_weights_are_not_negative() -> None:
    with pytest.raises(ValueError, match="alpha"):
        make(MLDERPlusPlus, alpha=-0.1)
