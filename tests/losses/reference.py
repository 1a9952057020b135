"""Slow references in Python floats, written from the equations, and gradients by finite differences.

Nothing here uses the package, autograd or torch's softmax.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Rows = Sequence[Sequence[float]]


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    exponentials = [math.exp(z / temperature) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def distillation(student: Rows, teacher: Rows, temperature: float, sizes: Sequence[int] | None = None) -> float:
    """Σ over the heads of the cross-entropy of the teacher's softened softmax against the student's."""
    total = 0.0
    for o, h in zip(student, teacher, strict=True):
        first = 0
        for size in [len(o)] if sizes is None else sizes:
            soft_o, soft_h = (softmax(z[first : first + size], temperature) for z in (o, h))
            total -= sum(q * math.log(p) for q, p in zip(soft_h, soft_o, strict=True))
            first += size
    return total / len(student)


def cross_entropy(logits: Rows, target: Sequence[int], first: int, last: int) -> float:
    return mean([-math.log(softmax(z[first:last])[y - first]) for z, y in zip(logits, target, strict=True)])


def squared_distance(a: Rows, b: Rows) -> float:
    return mean([sum((x - y) ** 2 for x, y in zip(u, v, strict=True)) for u, v in zip(a, b, strict=True)])


def unit(row: Sequence[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def cosines(features: Rows, rows: Rows) -> list[list[float]]:
    return [[sum(x * w for x, w in zip(unit(u), unit(row), strict=True)) for row in rows] for u in features]


def numeric_gradient(function: Callable[[Tensor], float], at: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a function of one tensor."""
    gradient = torch.zeros_like(at)
    for i in range(at.numel()):
        shift = torch.zeros_like(at).view(-1)
        shift[i] = step
        shift = shift.view_as(at)
        gradient.view(-1)[i] = (function(at + shift) - function(at - shift)) / (2 * step)
    return gradient


def check_gradients(loss: Tensor, leaves: dict[str, Tensor], slow: Callable[[dict[str, Tensor]], float]) -> None:
    """Compare autograd's gradients of `loss` with differences of `slow`; a leaf without gradient must have none."""
    values = {name: leaf.detach() for name, leaf in leaves.items()}
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    for (name, value), gradient in zip(values.items(), gradients, strict=True):

        def moved(tensor: Tensor, name: str = name) -> float:
            return slow({**values, name: tensor})

        expected = numeric_gradient(moved, value)
        actual = torch.zeros_like(value) if gradient is None else gradient
        torch.testing.assert_close(
            actual, expected, atol=1e-8, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def random_matrix(rows: int, columns: int, seed: int, scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, columns, generator=generator, dtype=torch.float64)
