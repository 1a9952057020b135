"""Classifiers out of a graph of labels (AGCN): what comes together shares weights.

Du et al., AGCN: Augmented Graph Convolutional Network for Lifelong Multi-label Image Recognition, 2022,
https://arxiv.org/abs/2203.05534: H = A φ(A E W_1) W_2, z_c = features · H_c, with word vectors E of the classes, a
leaky ReLU φ, and the matrix A of `label_correlation`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cil.networks.growing_network import GrowingNetwork
from lightning_cil.networks.label_correlation import CorrelationRule, augmented_matrix, correlation_counts

_SLOPE = 0.2


class LabelGraph(GrowingNetwork):
    """AGCN's head, from features `[B, in_features]` to logits; starts without classes.

    What is learned, W_1 and W_2, does not grow: a task adds word vectors and rows of the matrix.

    Args:
        in_features: Width of the features.
        vector_size: Width of the word vectors (GloVe: 300).
        hidden: Width between the two products (AGCN: 1024).
        rule: Thresholds of the matrix.
        seed: Of word vectors that no file gives, standard normal.

    Attributes:
        vectors: E, `[classes, vector_size]` (buffer).
        matrix: A, `[classes, classes]` (buffer).
        counts: Of the current task, see `correlation_counts` (buffer).
        previous: H of the old classes when the task began, `[old, in_features]` (buffer).

    Raises:
        ValueError: If a width is below 1.
    """

    vectors: Tensor
    matrix: Tensor
    counts: Tensor
    previous: Tensor

    def __init__(
        self,
        in_features: int,
        vector_size: int = 300,
        hidden: int = 1024,
        rule: CorrelationRule | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if min(in_features, vector_size, hidden) < 1:
            raise ValueError(
                f"LabelGraph got `in_features={in_features}`, `vector_size={vector_size}`, `hidden={hidden}`; expected "
                "widths of at least 1."
            )
        self.in_features = in_features
        self.vector_size = vector_size
        self.rule = rule or CorrelationRule()
        self.weight1 = nn.Parameter(_uniform(vector_size, hidden))
        self.weight2 = nn.Parameter(_uniform(hidden, in_features))
        self._shrink()

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, in_features]` to logits `[B, classes]`."""
        return F.linear(features, self.classifiers())

    def classifiers(self) -> Tensor:
        """H, `[classes, in_features]`."""
        hidden = F.leaky_relu(self.matrix @ (self.vectors @ self.weight1), _SLOPE)
        return self.matrix @ (hidden @ self.weight2)

    def batch_counts(self, target: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """What a batch adds to the counts, to be summed over ranks and given to `count`.

        Args:
            target: float `[B, new]`.
            teacher_logits: `[B, old]`, `None` in the first task.
        """
        old = target.new_zeros(len(target), 0) if teacher_logits is None else teacher_logits
        return correlation_counts(target, old)

    @torch.no_grad()
    def count(self, counts: Tensor) -> None:
        """Add counts and make the matrix anew, in place: under DDP the buffers stay those that it knows."""
        self.counts += counts
        old = len(self.matrix) - self.counts.shape[1] + 1
        self.matrix.copy_(augmented_matrix(self.matrix[:old, :old].clone(), self.counts, self.rule))

    @torch.no_grad()
    def set_vectors(self, task: int, vectors: Tensor) -> None:
        """Take word vectors for a task's classes.

        Args:
            task: Its index.
            vectors: float `[classes of the task, vector_size]`.

        Raises:
            ValueError: For another shape.
        """
        expected = [self._task_sizes[task], self.vector_size]
        if list(vectors.shape) != expected:
            raise ValueError(f"Got word vectors of shape {list(vectors.shape)}, expected {expected}.")
        self.vectors[self.task_slices()[task]] = vectors.to(self.vectors)

    def _grow(self, task: int, num_new: int) -> None:
        with torch.no_grad():
            self.previous = self.classifiers()
        drawn = torch.randn(num_new, self.vector_size, generator=self.generator(task), device="cpu")
        self.vectors = torch.cat([self.vectors, drawn.to(self.vectors)])
        self.counts = self.counts.new_zeros(len(self.matrix) + num_new, num_new + 1)
        self.matrix = augmented_matrix(self.matrix, self.counts, self.rule)

    def _shrink(self) -> None:
        like = self.weight1
        self.register_buffer("vectors", like.new_zeros(0, self.vector_size).detach())
        self.register_buffer("matrix", like.new_zeros(0, 0).detach())
        self.register_buffer("counts", torch.zeros(0, 1, dtype=torch.long, device=like.device))
        self.register_buffer("previous", like.new_zeros(0, self.in_features).detach())


def _uniform(rows: int, columns: int) -> Tensor:
    """U(-1/√columns, 1/√columns), as ML-GCN starts."""
    bound = 1 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-bound, bound)
