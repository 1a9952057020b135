"""Mixtures of LoRA experts in the adapter format of the library PEFT: https://github.com/huggingface/peft.

`adapter_config.json` and `adapter_model.safetensors` hold the experts: each is a LoRA of its own, of a linear layer
`<block>.adapter.experts.<e>` that PEFT's user provides (with zeros, as the branch has no weight of its own). What the
format has no place for, the routers, is in `routers.safetensors`.
"""

import json
from pathlib import Path

import torch
from torch import Tensor

from lightning_cil.networks.mife import Mixtures
from lightning_cil.networks.moe_lora import MoEAdapter

__all__ = ["load_peft", "save_peft"]

CONFIG, EXPERTS, ROUTERS = "adapter_config.json", "adapter_model.safetensors", "routers.safetensors"
_PREFIX = "base_model.model."


def save_peft(mixtures: Mixtures, folder: str | Path) -> Path:
    """Write the experts and the routers.

    Args:
        mixtures: Of LoRA pairs.
        folder: Made if it is not there; files of these names are replaced.

    Returns:
        The folder.

    Raises:
        ValueError: If the experts have biases or an activation, for which the format has no place.
    """
    from safetensors.torch import save_file

    spec = mixtures.spec
    if spec.bias or spec.activation != "identity":
        raise ValueError(
            f"These experts have `activation={spec.activation!r}` and `bias={spec.bias}`; PEFT's format holds LoRA "
            "pairs only: `identity` without biases. Save the module's state dict instead."
        )
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    experts = {
        f"{_PREFIX}{name}.adapter.experts.{e}.{layer}.weight": weight.detach().cpu().contiguous()
        for name, adapter in mixtures.adapters.items()
        for e, layer, weight in _layers(adapter)
    }
    routers = {
        f"{name}.adapter.routers.{key}": value.detach().cpu().contiguous()
        for name, adapter in mixtures.adapters.items()
        for key, value in adapter.routers.state_dict().items()
    }
    modules = sorted({key.removeprefix(_PREFIX).rsplit(".", 2)[0] for key in experts})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": spec.scale * spec.rank,
        "lora_dropout": spec.dropout,
        "r": spec.rank,
        "target_modules": modules,
        "task_type": None,
    }
    (target / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(experts, target / EXPERTS, metadata={"format": "pt"})
    save_file(routers, target / ROUTERS, metadata={"format": "pt"})
    return target


@torch.no_grad()
def load_peft(mixtures: Mixtures, folder: str | Path) -> None:
    """Read what `save_peft` wrote into mixtures of the same shape; nothing is changed if they differ.

    Args:
        mixtures: With as many experts and routers in each block as the files have.
        folder: Holds the three files.

    Raises:
        FileNotFoundError: If a file is not there.
        ValueError: If blocks, experts, ranks or the scale differ.
    """
    from safetensors.torch import load_file

    source = Path(folder)
    for name in (CONFIG, EXPERTS, ROUTERS):
        if not (source / name).is_file():
            raise FileNotFoundError(f"{source} has no {name}; expected a folder that `save_peft` wrote.")
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    scale = config["lora_alpha"] / config["r"]
    if abs(scale - mixtures.spec.scale) > 1e-6:
        raise ValueError(
            f"{source / CONFIG} has the scale {scale:g}, here it is {mixtures.spec.scale:g}; give `scale={scale:g}`."
        )
    stored = {key.removeprefix(_PREFIX): value for key, value in load_file(source / EXPERTS).items()}
    stored |= load_file(source / ROUTERS)
    wanted: dict[str, Tensor] = {}
    for name, adapter in mixtures.adapters.items():
        wanted |= {f"{name}.adapter.experts.{e}.{layer}.weight": w for e, layer, w in _layers(adapter)}
        wanted |= {f"{name}.adapter.routers.{k}": v for k, v in adapter.routers.state_dict(keep_vars=True).items()}
    differing = sorted(
        key
        for key in {*stored, *wanted}
        if key not in stored or key not in wanted or stored[key].shape != wanted[key].shape
    )
    if differing:
        key = differing[0]
        theirs, ours = (list(part[key].shape) if key in part else "missing" for part in (stored, wanted))
        raise ValueError(
            f"{source} does not fit these mixtures: {len(differing)} tensors differ, such as {key}: {theirs} there, "
            f"{ours} here. Make the mixtures with the options of those that were saved."
        )
    for key, value in stored.items():
        wanted[key].copy_(value)


def _layers(adapter: MoEAdapter) -> list[tuple[int, str, Tensor]]:
    """The two weights of every expert."""
    parts = [(e, layer, expert.get_submodule(layer)) for e, expert in enumerate(adapter.experts) for layer in _NAMES]
    return [(e, layer, part.get_parameter("weight")) for e, layer, part in parts]


_NAMES = ("lora_A", "lora_B")
