import pytest
import torch
from torch import nn

from lightning_cil.networks import create_backbone, remove_last_activation


@pytest.mark.parametrize(("name", "stage"), [("resnet20", "layer3"), ("resnet10t", "layer4"), ("resnet26", "layer4")])
def test_only_the_last_blocks_activation_goes(name: str, stage: str) -> None:
    torch.manual_seed(0)
    backbone = create_backbone(name).eval()
    image = torch.randn(2, 3, 32, 32)
    expected, stages = backbone(image), []
    block = getattr(backbone, stage)[-1]
    block.register_forward_hook(lambda module, args, out: stages.append(out))
    before = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.ReLU)}
    assert remove_last_activation(backbone)
    after = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.ReLU)}
    assert len(before) - len(after) == 1
    features = backbone(image)
    assert (features < 0).any()
    assert torch.allclose(stages[0].relu().mean(dim=(2, 3)), expected, atol=1e-6)


def test_others_stay_as_they_are() -> None:
    for backbone in (create_backbone("small_cnn"), create_backbone("vit_tiny_patch16_224"), nn.Linear(2, 2)):
        names = [n for n, _ in backbone.named_modules()]
        assert not remove_last_activation(backbone)
        assert [n for n, _ in backbone.named_modules()] == names
