"""What every loss of a method must stand: extreme logits, empty batches, one class, no old class, other devices."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_cil.losses import (
    autoencoder_terms,
    coil_terms,
    crossmodal_terms,
    derpp_terms,
    gamma_terms,
    icarl_binary_terms,
    icarl_softmax_terms,
    memo_terms,
    nfl_final_terms,
    nfl_plus_final_terms,
    nfl_step_terms,
    prospective_term,
    retrospective_term,
)


class Inputs(NamedTuple):
    logits: Tensor
    """`[batch, old + new]`, trained."""
    old: Tensor
    """`[batch, old]`, a second trained output."""
    teacher: Tensor
    """`[batch, old]`, constant."""
    features: Tensor
    """`[batch, 3]`, trained."""
    target: Tensor
    """The last class."""


def auxiliary(x: Inputs) -> Tensor:
    return (
        x.logits[:, x.teacher.shape[1] - 1 :] if x.teacher.shape[1] else torch.cat([x.logits[:, :1], x.logits], dim=1)
    )


def nfl_plus(x: Inputs, sizes=None) -> dict[str, Tensor]:
    gamma, code = x.features[:, :1], x.features.sigmoid()
    return nfl_plus_final_terms(
        x.logits, x.old, gamma * x.teacher, x.teacher, x.target, code=code, teacher_code=1 - code, gamma=gamma,
        old_sizes=sizes, train_gamma=True,
    )  # fmt: skip


def heads(x: Inputs) -> list[int]:
    old = x.teacher.shape[1]
    return [1] * min(old, 1) + [old - 1] * (old > 1)


LOSSES: dict[str, Callable[[Inputs], dict[str, Tensor]]] = {
    "nfl-step": lambda x: nfl_step_terms(x.logits, x.teacher, x.target),
    "nfl-step-heads": lambda x: nfl_step_terms(x.logits, x.teacher, x.target, old_sizes=heads(x), ce_scope="seen"),
    "nfl-final": lambda x: nfl_final_terms(x.logits, x.old, x.teacher, -x.teacher, x.target),
    "nfl-plus": nfl_plus,
    "nfl-plus-heads": lambda x: nfl_plus(x, heads(x)),
    "gamma": lambda x: gamma_terms(x.features[:, :1], x.features[:, :1] * x.teacher, x.old, objective="kd"),
    "autoencoder": lambda x: autoencoder_terms(x.features, -x.features, x.logits, x.target, 0, x.logits.shape[1]),
    "icarl-binary": lambda x: icarl_binary_terms(x.logits, x.teacher, x.target),
    "icarl-softmax": lambda x: icarl_softmax_terms(x.logits, x.teacher, x.target),
    "derpp": lambda x: derpp_terms(x.logits, x.target, x.logits, x.teacher, x.logits, x.target),
    "derpp-grown": lambda x: derpp_terms(
        x.logits, x.target, x.logits, x.teacher, x.logits, x.target, stored_width=x.target.clamp(max=x.teacher.shape[1])
    ),
    "coil": lambda x: coil_terms(x.logits, x.teacher, x.target),
    "coil-prospective": lambda x: {"one": prospective_term(x.logits, x.features, rows(x, x.logits))},
    "coil-retrospective": lambda x: {
        "one": retrospective_term(x.teacher, x.features, rows(x, x.teacher), progress=0.5)
    },
    "crossmodal": lambda x: crossmodal_terms(x.logits, x.target, x.features, x.old.sum() * 0),
    "crossmodal-same-class": lambda x: crossmodal_terms(x.logits, x.target, x.features, x.old.sum() * 0, reading="C"),
    "memo": lambda x: memo_terms(x.logits, x.target, auxiliary(x), num_old=x.teacher.shape[1]),
}


def rows(x: Inputs, like: Tensor) -> Tensor:
    return torch.ones(like.shape[1], 3, dtype=like.dtype, device=like.device)


def inputs(batch: int, old: int, new: int, dtype=torch.float32, extreme: bool = False, device="cpu") -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def draw(width: int) -> Tensor:
        values = torch.randn(batch, width, generator=generator)
        return ((values.sign() * 1e4) if extreme else values).to(dtype).to(device)

    target = torch.full((batch,), old + new - 1, device=device)
    return Inputs(
        draw(old + new).requires_grad_(), draw(old).requires_grad_(), draw(old), draw(3).requires_grad_(), target
    )


def gradients(loss: Tensor, x: Inputs) -> list[Tensor]:
    found = torch.autograd.grad(loss, [x.logits, x.old, x.features], allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


@pytest.fixture(params=LOSSES)
def loss(request) -> Callable[[Inputs], dict[str, Tensor]]:
    return LOSSES[request.param]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(loss, dtype: torch.dtype) -> None:
    x = inputs(8, 3, 2, dtype, extreme=True)
    terms = loss(x)
    assert all(term.isfinite() and term.shape == () for term in terms.values())
    found = gradients(sum(terms.values()), x)
    assert found
    assert all(gradient.isfinite().all() for gradient in found)
    assert any(gradient.any() for gradient in found)


@pytest.mark.parametrize(("old", "new"), [(3, 2), (0, 2), (1, 1)])
def test_empty_batch_gives_zero_with_a_graph(loss, old: int, new: int) -> None:
    x = inputs(0, old, new)
    total = sum(loss(x).values())
    assert total.item() == 0
    assert gradients(total, x)


@pytest.mark.parametrize(("old", "new"), [(0, 3), (0, 1), (1, 1), (3, 1)])
def test_no_old_class_and_one_class(loss, old: int, new: int) -> None:
    x = inputs(4, old, new)
    terms = loss(x)
    assert all(term.isfinite() for term in terms.values())
    assert all(gradient.isfinite().all() for gradient in gradients(sum(terms.values()), x))


def test_a_doubled_batch_has_the_same_loss(loss) -> None:
    x = inputs(4, 3, 2)
    doubled = Inputs(*(torch.cat([tensor, tensor]) for tensor in x))
    for term, again in zip(loss(x).values(), loss(doubled).values(), strict=True):
        torch.testing.assert_close(again, term)


def test_nothing_is_read_back_from_another_device(loss) -> None:
    """On the meta device there are no values: `.item()` or a branch on them would fail."""
    terms = loss(inputs(4, 3, 2, device="meta"))
    assert all(term.device.type == "meta" and term.shape == () for term in terms.values())
