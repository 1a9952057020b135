"""Classifiers that grow by one block of outputs a task.

| head | outputs | parameters |
|---|---|---|
| `LinearHead` | W·u + b | one `weight` and one `bias` over all classes |
| `MultiHead` | W_k·u + b_k, side by side | one `nn.Linear` a task: earlier tasks can be frozen or copied by name |
| `CosineHead` | s·cos(u, w) | one `weight` over all classes and the scale |
| `PrototypeHead` | u·t | none: the class vectors t come from elsewhere |

What task k's block starts from is a function of the head's seed and k only. It depends neither on the global random
state, which growing leaves alone, nor on what was grown before, so it is the same on all ranks, after a resume, and in
`preview`, which gives the outputs that an untrained task would have (the baseline of forward transfer).

A checkpoint brings its own shapes: `load_state_dict` resizes a head that has no, fewer or more outputs. Growing and
resizing replace parameters, so optimizers are built afterwards.
"""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from lightning_cil._precision import wide
from lightning_cil._random import fold_seed

_STREAM = int.from_bytes(b"head", "big")
_COLUMNS_STREAM = int.from_bytes(b"columns", "big")
"""Keep the blocks' and the columns' random numbers apart from other uses of the same seed."""


class _Head(nn.Module, ABC):
    """What all heads share: the task sizes, how blocks start, and how a checkpoint's shapes are taken.

    Args:
        in_features: Width of the features, at least 1.
        seed: Of the blocks' first values.
    """

    sizes: Tensor

    def __init__(self, in_features: int, seed: int) -> None:
        super().__init__()
        if in_features < 1:
            raise ValueError(
                f"{type(self).__name__} got `in_features={in_features}`, expected at least 1: "
                "take the backbone's `num_features`."
            )
        self.in_features = in_features
        self.seed = seed
        self._preview: tuple[Any, Tensor, Tensor | None] | None = None
        self._task_sizes: list[int] = []  # the buffer's values, which on a GPU would cost a synchronisation to read
        self.register_buffer("sizes", torch.zeros(0, dtype=torch.long))

    @property
    def num_classes(self) -> int:
        """Outputs of all tasks so far."""
        return sum(self._task_sizes)

    def task_slices(self) -> list[slice]:
        """The columns of each task in the logits, in task order."""
        return slices_of(self._task_sizes)

    def grow(self, num_new: int) -> None:
        """Append the outputs of one more task; earlier outputs stay bit for bit.

        Device, dtype and `requires_grad` of the parameters are kept; sharded ones (DTensor) become whole, which all
        ranks of the mesh must do together. Under FSDP2, grow a copy that `unsharded` made.

        Args:
            num_new: Classes of the task, at least 1.

        Raises:
            ValueError: If `num_new` is below 1.
            RuntimeError: If `fully_shard` was applied to this head, see `unsharded`.
        """
        weight, bias = self._new_block(len(self._task_sizes), num_new)
        self._make_whole("grow")
        self._append(weight, bias)
        self._set_sizes([*self._task_sizes, num_new])

    def preview(self, features: Tensor, sizes: Sequence[int]) -> Tensor:
        """Logits of the next tasks' outputs before any training: what `grow` will create for them.

        Args:
            features: float `[B, in_features]`.
            sizes: Classes of each of the next tasks, all at least 1.

        Returns:
            float `[B, sum(sizes)]`.

        Raises:
            ValueError: If a size is below 1.
        """
        if not sizes:
            return features.new_zeros(len(features), 0)
        first, like = len(self._task_sizes), self._like()
        key = (first, tuple(sizes), self.seed, like.device, like.dtype)
        if self._preview is None or self._preview[0] != key:  # drawn for the first batch of an evaluation
            with torch.inference_mode(False):  # the caller may want gradients next time
                weights, biases = zip(*(self._new_block(first + i, size) for i, size in enumerate(sizes)), strict=True)
                self._preview = key, torch.cat(weights), None if biases[0] is None else torch.cat(biases)
        return self._logits(features, *self._preview[1:])

    def unsharded(self) -> Self:
        """A copy with whole parameters, to be grown under FSDP2.

        `fully_shard` leaves hooks on the modules it managed, which would put the parameters from before the growth
        back. So replace the head (`self.head = self.head.unsharded()`), grow it, then shard the new one. All ranks of
        the mesh must call it together.

        Returns:
            A head with the same values, sizes, `requires_grad`, device, dtype and mode.
        """
        copy = self._empty_copy().to(device=self._like().device, dtype=self._like().dtype)
        copy.load_state_dict({name: _whole(tensor) for name, tensor in self.state_dict().items()})
        for name, parameter in self.named_parameters():
            copy.get_parameter(name).requires_grad_(parameter.requires_grad)
        return copy.train(self.training)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"in_features={self.in_features}, sizes={self._task_sizes}, seed={self.seed}"

    @abstractmethod
    def _like(self) -> Tensor:
        """A tensor of the parameters' device and dtype."""

    @abstractmethod
    def _has_bias(self) -> bool:
        """Whether blocks have a bias."""

    @abstractmethod
    def _logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Logits `[B, n]` of `features` for weights `[n, in_features]` and biases `[n]`."""

    @abstractmethod
    def _append(self, weight: Tensor, bias: Tensor | None) -> None:
        """Add a block: weights `[n, in_features]`, biases `[n]`."""

    @abstractmethod
    def _shapes(self, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, by name, of a head with these task sizes."""

    @abstractmethod
    def _resize(self, sizes: Sequence[int]) -> None:
        """Make parameters for these task sizes; values are left to the caller, `requires_grad` is kept."""

    @abstractmethod
    def _empty_copy(self) -> Self:
        """A head of the same class and arguments without outputs."""

    def _new_block(self, task: int, num_new: int) -> tuple[Tensor, Tensor | None]:
        """First values of a task's block: U(-1/√d, 1/√d) for weights and biases, as `nn.Linear` has them."""
        if num_new < 1:
            raise ValueError(
                f"{type(self).__name__} got {num_new} classes for task {task}, expected at least 1: "
                "a task without classes is left out of the stream."
            )
        generator = torch.Generator("cpu").manual_seed(fold_seed(self.seed, _STREAM, task))
        weight = self._draw(generator, num_new, self.in_features)
        return weight, self._draw(generator, num_new) if self._has_bias() else None

    def _draw(self, generator: torch.Generator, *shape: int) -> Tensor:
        bound = 1 / math.sqrt(self.in_features)
        values = torch.empty(shape, dtype=torch.float32, device="cpu")  # the same numbers for all dtypes, devices
        return values.uniform_(-bound, bound, generator=generator).to(self._like().device, self._like().dtype)

    def _set_sizes(self, sizes: Sequence[int]) -> None:
        self._preview = None
        self._task_sizes = list(sizes)
        self.sizes = torch.tensor(self._task_sizes, dtype=torch.long, device=self.sizes.device)

    def _make_whole(self, action: str) -> None:
        """Replace sharded parameters by whole ones; refuse under FSDP2."""
        if self._is_fsdp():
            raise RuntimeError(_fsdp_message(self, action))
        for name, parameter in list(self.named_parameters(recurse=False)):
            if _is_sharded(parameter):
                setattr(self, name, _replaced(parameter, _whole(parameter.detach())))

    def _is_fsdp(self) -> bool:
        fsdp = sys.modules.get("torch.distributed.fsdp")  # not imported, hence not applied
        return fsdp is not None and isinstance(self, fsdp.FSDPModule)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Take the checkpoint's shapes, then its values; a half-stored head is an error even with strict=False."""
        stored = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if stored:
            try:
                sizes = self._check_stored(stored)
            except ValueError as error:
                error_msgs.append(f"{type(self).__name__} at {prefix or 'the top level'!r}: {error}")
                return
            if sizes != self._task_sizes:
                if self._is_fsdp():
                    error_msgs.append(_fsdp_message(self, f"load a checkpoint of sizes {sizes}"))
                    return
                self._resize(sizes)
                self._set_sizes(sizes)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _check_stored(self, stored: Mapping[str, Any]) -> list[int]:
        """The task sizes of a checkpoint's entries, once it is sure that all entries fit them."""
        sizes = stored.get("sizes")
        readable = isinstance(sizes, Tensor) and sizes.dim() == 1 and sizes.dtype == torch.long and not sizes.is_meta
        task_sizes = cast(Tensor, sizes).tolist() if readable else [0]
        if min(task_sizes, default=1) < 1:
            raise ValueError(
                f"the checkpoint's entries {sorted(stored)} hold no valid `sizes`, expected a long tensor [tasks] of "
                "the classes of each task. Was the checkpoint written by another kind of head?"
            )
        expected = self._shapes(task_sizes)
        given = {name: tuple(getattr(value, "shape", ())) for name, value in stored.items() if name != "sizes"}
        if given != expected:
            wrong = sorted(name for name in {*given, *expected} if given.get(name) != expected.get(name))
            details = "; ".join(
                f"`{name}` is {list(given[name]) if name in given else 'missing'}, "
                f"expected {list(expected[name]) if name in expected else 'no such entry'}"
                for name in wrong
            )
            raise ValueError(
                f"the checkpoint does not fit its own `sizes` {task_sizes} and this head's "
                f"`in_features={self.in_features}`: {details}. "
                "Build the head and the backbone with the arguments that the checkpoint was trained with."
            )
        return task_sizes


class _MatrixHead(_Head):
    """A head with one weight matrix over all classes.

    Args:
        in_features: Width of the features.
        bias: Whether each class has a bias.
        seed: Of the blocks' first values.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, in_features: int, bias: bool, seed: int) -> None:
        super().__init__(in_features, seed)
        self.weight = nn.Parameter(torch.empty(0, in_features))
        self.register_parameter("bias", nn.Parameter(torch.empty(0)) if bias else None)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, in_features]` to logits `[B, num_classes]`."""
        return self._logits(features, self.weight, self.bias)

    def widen(self, num_columns: int) -> None:
        """Append columns for features that a grown body adds; the values of earlier columns stay bit for bit.

        A new column starts from U(-1/√d, 1/√d), d the new width, a function of the head's seed and d only. Device,
        dtype and `requires_grad` are kept; sharded parameters and FSDP2 are as in `grow`.

        Args:
            num_columns: How many features more, at least 1.

        Raises:
            ValueError: If `num_columns` is below 1.
            RuntimeError: If `fully_shard` was applied to this head, see `unsharded`.
        """
        if num_columns < 1:
            raise ValueError(
                f"{type(self).__name__} got `num_columns={num_columns}`, expected at least 1: the width that the body "
                "has gained."
            )
        self._make_whole("widen")
        self.in_features += num_columns
        generator = torch.Generator("cpu").manual_seed(fold_seed(self.seed, _COLUMNS_STREAM, self.in_features))
        columns = self._draw(generator, self.num_classes, num_columns)
        self.weight = _replaced(self.weight, torch.cat([self.weight.detach(), columns], dim=1))

    def _like(self) -> Tensor:
        return self.weight

    def _has_bias(self) -> bool:
        return self.bias is not None

    def _append(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = _replaced(self.weight, torch.cat([self.weight.detach(), weight]))
        if self.bias is not None and bias is not None:
            self.bias = _replaced(self.bias, torch.cat([self.bias.detach(), bias]))

    def _shapes(self, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {name: tuple(value.shape) for name, value in self.named_parameters()}
        return shapes | {name: (sum(sizes), *shapes[name][1:]) for name in ("weight", "bias") if name in shapes}

    def _resize(self, sizes: Sequence[int]) -> None:
        for name, shape in self._shapes(sizes).items():
            parameter = self.get_parameter(name)
            if tuple(parameter.shape) != shape:
                empty = torch.zeros(shape, dtype=parameter.dtype, device=parameter.device)
                setattr(self, name, _replaced(parameter, empty))


class LinearHead(_MatrixHead):
    """A linear classifier with one weight matrix over all classes; starts without outputs.

    Args:
        in_features: Width of the features, at least 1.
        bias: Whether each class has a bias.
        seed: Of the blocks' first values; the run's seed gives every run its own.

    Attributes:
        weight: float `[num_classes, in_features]`.
        bias: float `[num_classes]`, or `None`.
        sizes: long `[tasks]`, classes of each task (buffer).

    Raises:
        ValueError: If `in_features` is below 1.
    """

    def __init__(self, in_features: int, bias: bool = True, seed: int = 0) -> None:
        super().__init__(in_features, bias, seed)

    def _logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(features, weight, bias)

    def _empty_copy(self) -> Self:
        return type(self)(self.in_features, bias=self._has_bias(), seed=self.seed)


class CosineHead(_MatrixHead):
    """A cosine classifier, s·cos(u, w): no class is ahead by a longer weight or a bias; starts without outputs.

    Hou, Pan, Loy, Wang, Lin: Learning a Unified Classifier Incrementally via Rebalancing, CVPR 2019 ("cosine
    normalization"). The scale's first value 1 is that of PyCIL (https://github.com/LAMDA-CL/PyCIL).

    Args:
        in_features: Width of the features, at least 1.
        seed: Of the blocks' first values; the run's seed gives every run its own.
        scale: First value of the learnable scale s, positive.

    Attributes:
        weight: float `[num_classes, in_features]`.
        scale: float `[1]` (FSDP2 shards no scalars).
        sizes: long `[tasks]`, classes of each task (buffer).

    Raises:
        ValueError: If `in_features` is below 1 or `scale` is not positive and finite.
    """

    def __init__(self, in_features: int, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__(in_features, bias=False, seed=seed)
        if not 0 < scale < math.inf:
            raise ValueError(f"CosineHead got `scale={scale}`, expected a positive, finite number such as 1.0.")
        self.scale = nn.Parameter(torch.full((1,), float(scale)))

    def _logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _whole(self.scale) * F.linear(_unit(features), _unit(weight))

    def _empty_copy(self) -> Self:
        return type(self)(self.in_features, seed=self.seed)


class MultiHead(_Head):
    """One linear classifier a task, outputs side by side; starts without any.

    Parameters are named `blocks.<task>.weight` and `.bias`, so that patterns such as `head.blocks.2.*` train or freeze
    single tasks. A new block is trainable and in the head's mode.

    Args:
        in_features: Width of the features, at least 1.
        bias: Whether each class has a bias.
        seed: Of the blocks' first values; the run's seed gives every run its own.

    Attributes:
        blocks: One `nn.Linear` a task.
        sizes: long `[tasks]`, classes of each task (buffer).

    Raises:
        ValueError: If `in_features` is below 1.
    """

    _floats: Tensor

    def __init__(self, in_features: int, bias: bool = True, seed: int = 0) -> None:
        super().__init__(in_features, seed)
        self.with_bias = bias
        self.blocks = nn.ModuleList()
        self.register_buffer("_floats", torch.zeros(1), persistent=False)  # knows device and dtype before any block

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, in_features]` to logits `[B, num_classes]`."""
        if not self.blocks:
            return features.new_zeros(len(features), 0)
        blocks = [cast(nn.Linear, block) for block in self.blocks]
        weight = torch.cat([block.weight for block in blocks])  # one product: a hundred small ones take a millisecond
        return self._logits(features, weight, torch.cat([block.bias for block in blocks]) if self.with_bias else None)

    def _like(self) -> Tensor:
        return self._floats if not self.blocks else cast(nn.Linear, self.blocks[-1]).weight

    def _has_bias(self) -> bool:
        return self.with_bias

    def _logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(features, weight, bias)

    def _append(self, weight: Tensor, bias: Tensor | None) -> None:
        self.blocks.append(self._linear(weight, bias))

    def _linear(self, weight: Tensor, bias: Tensor | None) -> nn.Linear:
        # On the meta device `nn.Linear` draws nothing from the global generator.
        block = nn.Linear(self.in_features, len(weight), bias=bias is not None, device="meta").train(self.training)
        block.weight = nn.Parameter(weight)
        block.bias = None if bias is None else nn.Parameter(bias)  # type: ignore[assignment]  # nn.Linear's own type
        return block

    def _shapes(self, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
        weights = {f"blocks.{task}.weight": (size, self.in_features) for task, size in enumerate(sizes)}
        biases = {f"blocks.{task}.bias": (size,) for task, size in enumerate(sizes) if self.with_bias}
        return {**weights, **biases}

    def _resize(self, sizes: Sequence[int]) -> None:
        like = self._like()
        old = [cast(nn.Linear, block) for block in self.blocks]
        self.blocks = nn.ModuleList()
        for task, size in enumerate(sizes):
            if task < len(old) and old[task].weight.shape[0] == size:
                self.blocks.append(old[task])
                continue
            zeros = torch.zeros(size, self.in_features, dtype=like.dtype, device=like.device)
            block = self._linear(zeros, zeros[:, 0].clone() if self.with_bias else None)
            if task < len(old):
                for name, parameter in old[task].named_parameters():
                    block.get_parameter(name).requires_grad_(parameter.requires_grad)
            self.blocks.append(block)

    def _empty_copy(self) -> Self:
        return type(self)(self.in_features, bias=self.with_bias, seed=self.seed)


class PrototypeHead(_Head):
    """Compares features with one vector for each class that is made elsewhere, as of the class's name; starts without.

    Args:
        in_features: Width of the features, at least 1.
        seed: Not used here.

    Attributes:
        sizes: long `[tasks]`, classes of each task (buffer).

    Raises:
        ValueError: If `in_features` is below 1.
    """

    _floats: Tensor

    def __init__(self, in_features: int, seed: int = 0) -> None:
        super().__init__(in_features, seed)
        self.register_buffer("_floats", torch.zeros(1), persistent=False)  # knows device and dtype

    def forward(self, features: Tensor, prototypes: Tensor | None = None) -> Tensor:
        """Map features `[B, in_features]` and class vectors `[C, in_features]` to logits `[B, C]`."""
        if prototypes is None:
            raise TypeError("PrototypeHead needs the class vectors: call `head(features, prototypes)`.")
        return features @ prototypes.T

    def _like(self) -> Tensor:
        return self._floats

    def _has_bias(self) -> bool:
        return False

    def _logits(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return features @ weight.T

    def _append(self, weight: Tensor, bias: Tensor | None) -> None:
        """Nothing is held."""

    def _shapes(self, sizes: Sequence[int]) -> dict[str, tuple[int, ...]]:
        return {}

    def _resize(self, sizes: Sequence[int]) -> None:
        """Nothing is held."""

    def _empty_copy(self) -> Self:
        return type(self)(self.in_features, seed=self.seed)


def slices_of(sizes: Sequence[int]) -> list[slice]:
    """The columns of blocks of these sizes, side by side."""
    return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor, told by its method: the class is slow to import."""
    return hasattr(tensor, "full_tensor")


def _whole(tensor: Tensor) -> Tensor:
    """A DTensor's values from all ranks; any other tensor as it is."""
    return cast(Any, tensor).full_tensor() if _is_sharded(tensor) else tensor


def _replaced(old: nn.Parameter, values: Tensor) -> nn.Parameter:
    """A parameter with new values that is trainable if the old one was."""
    return nn.Parameter(values, requires_grad=old.requires_grad)


def _fsdp_message(head: _Head, action: str) -> str:
    return (
        f"{type(head).__name__} cannot {action}: `fully_shard` was applied to it, and its hooks would put the old "
        "parameters back. Expected a plain head: replace it by `head.unsharded()` first and shard the new one after."
    )


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(wide(rows), dim=1).to(rows.dtype)
