"""What a method keeps in memory between tasks, in bytes, counted in two ways. 1 MB = 1e6 bytes.

- *paper*: what Fig. 5 of NFL counts (Vahedifar and Zhang, "No Forgetting Learning: Memory-free Continual Learning",
  2025, https://arxiv.org/abs/2503.04638v2; no equation): four bytes for each parameter of the body, and the exemplars'
  images as uint8. No classifier, buffers, teacher, labels or stored logits.
- *full*: all of that as well, one line for each kind.

What a method needs only while it trains a task, such as recorded logits and copies of the body, is `transient` and in
neither of them.

Pure arithmetic on sizes that the caller states; `count_parameters` and `module_bytes` read them off a module.
"""

from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

BYTES_PER_PARAMETER = 4
"""float32."""


@dataclass(frozen=True)
class Footprint:
    """Memory kept between tasks, in bytes, a field for each kind. Make one with `footprint`.

    Args:
        body: Parameters without the classifier, at four bytes each.
        head: The classifier's parameters, at four bytes each.
        buffers: Module buffers, such as BatchNorm's running statistics.
        exemplars: Images, or other inputs, of the exemplars.
        exemplar_labels: Their labels, tasks and known-masks.
        stored_logits: Logits stored with them.
        prototypes: Class means and other summaries of old classes.
        teacher: Copies of older models.
        transient: What lives during a task's training only.
    """

    body: int
    head: int = 0
    buffers: int = 0
    exemplars: int = 0
    exemplar_labels: int = 0
    stored_logits: int = 0
    prototypes: int = 0
    teacher: int = 0
    transient: int = 0

    @property
    def paper(self) -> int:
        """Bytes as NFL's Fig. 5 counts them: body and exemplars' images."""
        return self.body + self.exemplars

    @property
    def full(self) -> dict[str, int]:
        """Bytes of each kind that is kept, a line each, and their sum under `total`."""
        lines: dict[str, int] = asdict(self)
        del lines["transient"]
        return {**lines, "total": sum(lines.values())}

    def as_dict(self) -> dict[str, Any]:
        """Both accounts and what is transient as plain strings and integers, for `results.json`."""
        return {"unit": "bytes", "paper": self.paper, "full": self.full, "transient": self.transient}


def footprint(
    *,
    body_parameters: int,
    head_parameters: int = 0,
    buffer_bytes: int = 0,
    exemplar_bytes: int = 0,
    exemplar_label_bytes: int = 0,
    stored_logit_bytes: int = 0,
    prototype_bytes: int = 0,
    teacher_bytes: int = 0,
    transient_bytes: int = 0,
) -> Footprint:
    """Account for what a method keeps between tasks.

    Args:
        body_parameters: How many parameters the model has without its classifier; NFL+'s autoencoder is among them, as
            in the paper's 11.56 million.
        head_parameters: How many the classifier has.
        buffer_bytes: Bytes of module buffers.
        exemplar_bytes: Bytes of the exemplars' images: 3,072 (CIFAR), 12,288 (TinyImageNet) or 150,528 (ImageNet) each
            as uint8.
        exemplar_label_bytes: Bytes of their labels.
        stored_logit_bytes: Bytes of the logits stored with them.
        prototype_bytes: Bytes of class means and other summaries of old classes.
        teacher_bytes: Bytes of copies of older models.
        transient_bytes: Bytes of what lives during a task's training only: recorded logits, a frozen copy of the body.

    Returns:
        The two accounts.

    Raises:
        ValueError: If an argument is no integer of at least 0.

    Example:
        ResNet-18 and 20,000 ImageNet exemplars:

        >>> account = footprint(body_parameters=11_170_000, head_parameters=513_000, exemplar_bytes=20_000 * 150_528)
        >>> megabytes(account.paper)
        3055.24
        >>> megabytes(account.full["total"])
        3057.292
    """
    for name, value in locals().items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(
                f"`{name}={value!r}` is not a size, expected an integer of at least 0. Leave the argument out if there "
                "is nothing of the kind; convert other number types with `int`."
            )
    return Footprint(
        body=body_parameters * BYTES_PER_PARAMETER,
        head=head_parameters * BYTES_PER_PARAMETER,
        buffers=buffer_bytes,
        exemplars=exemplar_bytes,
        exemplar_labels=exemplar_label_bytes,
        stored_logits=stored_logit_bytes,
        prototypes=prototype_bytes,
        teacher=teacher_bytes,
        transient=transient_bytes,
    )


def count_parameters(module: nn.Module) -> int:
    """How many parameters a module has, trainable or not; one that is used in several places counts once.

    Args:
        module: Any module.

    Returns:
        A count, not bytes.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in module.parameters())


def module_bytes(module: nn.Module) -> tuple[int, int]:
    """Bytes of a module's parameters and of its buffers, in the types they have; each tensor counts once.

    Args:
        module: Any module, on any device.

    Returns:
        Bytes of the parameters and bytes of the buffers, those that are not saved included.

    Example:
        Weight and bias, then mean, variance and the step counter, an int64:

        >>> module_bytes(nn.BatchNorm1d(5))
        (40, 48)
    """
    parameters = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    return parameters, buffers


def megabytes(num_bytes: int) -> float:
    """Convert bytes to megabytes of 1e6 bytes, as the papers print them (MEMO's script divides by 1024²).

    Args:
        num_bytes: Bytes.

    Returns:
        Megabytes.

    Example:
        >>> megabytes(44_680_000)
        44.68
    """
    return num_bytes / 1e6


def printed_megabytes(parameters: int) -> float:
    """Megabytes of a model as NFL's Fig. 5 prints them: four bytes for each parameter of a rounded count.

    The paper rounds to four digits before it multiplies: 11.17, 11.56 and 170.6 million become 44.68, 46.24 and 682.4.

    Args:
        parameters: How many the body has.

    Returns:
        Megabytes of 1e6 bytes.

    Example:
        >>> printed_megabytes(11_562_048), megabytes(4 * 11_562_048)
        (46.24, 46.248192)
    """
    millions = float(f"{parameters / 1e6:.4g}")
    return round(millions * BYTES_PER_PARAMETER, 2)
