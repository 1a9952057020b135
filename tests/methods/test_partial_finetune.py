"""`PartialFineTune`: trains the scope and nothing else."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cil.methods import PartialFineTune
from tests.streams import fit, results, spoken

LAST = ("image.transformer.resblocks.0.", "text.transformer.resblocks.0.", "image.proj", "text.text_proj", "audio.fc.")


@pytest.mark.parametrize(
    ("scope", "parts"), [("last_block", LAST), ("audio", ("audio.",)), (["image.proj"], ("image.proj",))]
)
def test_the_scope_is_trained_and_nothing_else(scope: Any, parts: tuple[str, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    optimizer = partial(torch.optim.SGD, lr=0.01)
    module = PartialFineTune(towers="tiny", scope=scope, epochs=1, optimizer=optimizer)
    before = {name: p.detach().clone() for name, p in module.backbone.named_parameters()}
    data = spoken(tmp_path / "fsdd")
    trainer = fit(tmp_path / "run", module, data)
    changed = {name for name, p in module.backbone.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith(parts) for name in changed)
    assert {part for part in parts if any(name.startswith(part) for name in changed)} == set(parts)
    assert results(trainer)["multimodal"]["M1"] is not None
