"""Dynamic pseudo-labels (KRT): the old model's confident answers become labels of the new images.

Dong et al., Knowledge Restore and Transfer for Multi-Label Class-Incremental Learning, 2023,
https://arxiv.org/abs/2302.13334 (no equation), with the search of its code: from a start the threshold moves in steps
until the old model finds as many old classes in an image as are expected.

Departure: when the band is not met, the authors' search raises an error; ours takes the closest threshold on its way.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["PseudoLabelSearch", "pseudo_labels"]


@dataclass(frozen=True)
class PseudoLabelSearch:
    """How the threshold is found.

    Args:
        start: First threshold, in (0, 1) (KRT: 0.8).
        step: By how much it moves, positive (KRT: 0.005).
        tolerance: How far the positives per image may be from what is expected, at least 0 (KRT: 0.1).
        max_moves: After how many moves the closest is taken, at least 0 (KRT: 100).

    Raises:
        ValueError: For a value out of its range.
    """

    start: float = 0.8
    step: float = 0.005
    tolerance: float = 0.1
    max_moves: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.start < 1 or self.step <= 0 or self.tolerance < 0 or self.max_moves < 0:
            raise ValueError(
                f"Got `start={self.start}`, `step={self.step}`, `tolerance={self.tolerance}`, "
                f"`max_moves={self.max_moves}`; expected a start in (0, 1), a positive step, and the others at least 0."
            )

    def candidates(self) -> Tensor:
        """All thresholds that the search can meet inside (0, 1), ascending, float64 `[candidates]`."""
        moves = torch.arange(-self.max_moves, self.max_moves + 1, dtype=torch.float64)
        values = self.start + self.step * moves
        return values[(values > 0) & (values < 1)]

    def counts(self, teacher_logits: Float[Tensor, "batch old"]) -> Tensor:
        """How many of the old model's probabilities are above each candidate; sums over batches and ranks add up.

        Returns:
            long `[candidates]`.
        """
        candidates = self.candidates().to(teacher_logits.device, torch.float32)
        # Probability q is above candidates 0..i-1 where i is its place: a histogram, summed from the right.
        place = torch.bucketize(teacher_logits.detach().float().sigmoid().flatten(), candidates)
        histogram = torch.bincount(place, minlength=len(candidates) + 1)
        return histogram.flip(0).cumsum(0).flip(0)[1:]

    def find(self, counts: Tensor, num_images: int, expected: float) -> tuple[float, float]:
        """The threshold, and the positives per image that it gives.

        Args:
            counts: Sums of `counts` over all images.
            num_images: How many images these were, at least 1.
            expected: Positives per image of all old classes together.

        Returns:
            The threshold in (0, 1), and the positives per image above it.
        """
        values = self.candidates().tolist()
        found = (counts.double().cpu() / num_images).tolist()
        here = min(range(len(values)), key=lambda i: abs(values[i] - self.start))
        best = here
        for _ in range(self.max_moves + 1):
            if abs(found[here] - expected) < abs(found[best] - expected):
                best = here
            if abs(found[here] - expected) <= self.tolerance:
                return values[here], found[here]
            here = here + 1 if found[here] > expected else here - 1
            if not 0 <= here < len(values):
                break
        return values[best], found[best]


def pseudo_labels(
    teacher_logits: Float[Tensor, "batch old"], threshold: float | Float[Tensor, ""]
) -> Float[Tensor, "batch old"]:
    """1 where the old model's probability is above the threshold, else 0.

    Args:
        teacher_logits: The old model's logits.
        threshold: In (0, 1).

    Example:
        >>> import torch
        >>> pseudo_labels(torch.tensor([[2.0, 0.0]]), 0.8).tolist()  # sigmoid(2) = 0.88
        [[1.0, 0.0]]
    """
    return (teacher_logits.sigmoid() > threshold).to(teacher_logits.dtype)
