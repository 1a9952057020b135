"""What `16-mixed` and `bf16-mixed` hand over: losses of 16-bit numbers are those of the same numbers in 32 bits."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lightning_cil import losses

BATCH, CLASSES, OLD, DIM = 16, 10, 6, 64
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int, scale: float) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR) * scale


TARGET = torch.arange(BATCH) % CLASSES
LABELS = torch.rand(BATCH, CLASSES, generator=GENERATOR).round()
KNOWN = torch.rand(BATCH, CLASSES, generator=GENERATOR) < 0.7
LOGITS, TEACHER = normal(BATCH, CLASSES, scale=10), normal(BATCH, OLD, scale=10)
FEATURES, OTHERS = normal(BATCH, DIM, scale=100), normal(BATCH, DIM, scale=100)
FEATURES[0] = OTHERS[1] = 0.0  # what a ReLU may leave
ROWS = normal(OLD, DIM, scale=0.1)
MAPS, OLD_MAPS = normal(BATCH, 4, 8, 8, scale=100), normal(BATCH, 4, 8, 8, scale=100)
GAMMA = 1 + normal(BATCH, 1, scale=0.1)

CASES: dict[str, tuple[Callable[..., Tensor | dict[str, Tensor]], tuple[Tensor, ...], float]] = {
    "positive_decay_bce": (lambda z: losses.positive_decay_bce(z, LABELS, 2.0), (LOGITS,), 1e-5),
    "negative_decay_bce": (lambda z: losses.negative_decay_bce(z, LABELS, 1.5), (LOGITS,), 1e-5),
    "known_bce": (lambda z: losses.known_bce(z, LABELS, KNOWN), (LOGITS,), 1e-5),
    "asymmetric_focal_loss": (lambda z: losses.asymmetric_focal_loss(z, LABELS, clip=1e-4), (LOGITS,), 1e-5),
    "autoencoder_terms": (
        lambda r, f, z: losses.autoencoder_terms(r, f, z, TARGET, 0, CLASSES, reduction="sum"),
        (FEATURES, OTHERS, LOGITS),
        1e-5,
    ),
    "code_preservation": (losses.code_preservation, (FEATURES.sigmoid(), OTHERS.sigmoid()), 1e-5),
    "gamma_terms": (
        lambda g, t, s: losses.gamma_terms(g, t, s, objective="kd"),
        (GAMMA, TEACHER, LOGITS[:, :OLD]),
        1e-5,
    ),
    "cross_entropy_over": (lambda z: losses.cross_entropy_over(z, TARGET, 0, CLASSES), (LOGITS,), 1e-5),
    "prospective_term": (
        lambda z, f, r: losses.prospective_term(z, f, r, weight=1.0),
        (LOGITS[:, :OLD], FEATURES, ROWS),
        1e-2,
    ),
    "similarity_weighted_cross_entropy": (
        lambda z, v: losses.similarity_weighted_cross_entropy(z, TARGET, v),
        (LOGITS, FEATURES),
        1e-2,
    ),
    "info_nce": (losses.info_nce, (FEATURES, OTHERS), 3e-2),
    "logit_matching": (losses.logit_matching, (LOGITS, TEACHER), 1e-5),
    "soft_cross_entropy": (losses.soft_cross_entropy, (LOGITS[:, :OLD], TEACHER), 1e-5),
    "binary_distillation": (losses.binary_distillation, (LOGITS[:, :OLD], TEACHER), 1e-5),
    "icarl_binary_terms": (lambda z, t: losses.icarl_binary_terms(z, t, TARGET), (LOGITS, TEACHER), 1e-5),
    "icarl_softmax_terms": (lambda z, t: losses.icarl_softmax_terms(z, t, TARGET), (LOGITS, TEACHER), 1e-5),
    "negative_entropy": (losses.negative_entropy, (LOGITS,), 1e-5),
    "pod_spatial": (lambda new, old: losses.pod_spatial([old], [new]), (MAPS, OLD_MAPS), 1e-5),
    "cosine_preservation": (lambda new, old: losses.cosine_preservation(old, new), (FEATURES, OTHERS), 1e-5),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_as_in_single_precision(name: str, dtype: torch.dtype) -> None:
    function, given, tolerance = CASES[name]
    found = []
    for half in (True, False):
        inputs = [part.to(dtype).to(dtype if half else torch.float32).requires_grad_() for part in given]
        with torch.autocast("cpu", dtype=dtype, enabled=half):
            value = function(*inputs)
        terms = value.values() if isinstance(value, dict) else [value]
        total = torch.stack(list(terms)).sum()
        assert total.dtype == torch.float32
        total.backward()
        assert inputs[0].grad is not None
        rows = given[0].flatten(1).any(dim=1)  # the direction of zeros has no useful gradient
        found.append((total.detach(), inputs[0].grad[rows].float()))
    (half_loss, half_gradient), (loss, gradient) = found
    torch.testing.assert_close(half_loss, loss, rtol=tolerance, atol=tolerance)
    smallest = 2e-2 if tolerance < 1e-3 else 0.2  # of what autograd hands back in 16 bits
    torch.testing.assert_close(half_gradient, gradient, rtol=smallest, atol=smallest * float(gradient.abs().max()))
