"""Maps of backbones: the same features, as many stages as there are, clear refusals."""

import pytest
import torch
from torch import nn

from lightning_cil.networks import MapBackbone, create_backbone

SHAPES = {
    "small_cnn": [(16, 32, 32), (32, 16, 16), (64, 8, 8)],
    "resnet20": [(16, 32, 32), (32, 16, 16), (64, 8, 8)],
    "resnet10t": [(64, 8, 8), (128, 4, 4), (256, 2, 2), (512, 1, 1)],
    "tresnet_m": [(64, 8, 8), (128, 4, 4), (1024, 2, 2), (2048, 1, 1)],
}
IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SHAPES)
def test_features_are_the_backbones_and_maps_those_of_its_stages(name):
    backbone = create_backbone(name).eval()
    with torch.no_grad():
        expected = backbone(IMAGE)
        pooled, maps = MapBackbone(backbone, "pooled")(IMAGE, stages=True)
        last = MapBackbone(backbone)(IMAGE)
    assert torch.equal(pooled, expected)
    assert [tuple(m.shape[1:]) for m in maps] == SHAPES[name]
    assert torch.equal(last, maps[-1])
    assert MapBackbone(backbone).num_features == SHAPES[name][-1][0]
    assert MapBackbone(backbone, "pooled").num_features == expected.shape[1]
    if name != "small_cnn":  # which pools quarters
        torch.testing.assert_close(last.mean(dim=(2, 3)), pooled)


class Own(nn.Module):
    num_features = 4

    def __init__(self, **attributes):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def stage_maps(self, image):
        return [image, self.conv(image)]

    def forward(self, image):
        return self.conv(image).mean(dim=(2, 3))


def test_backbone_of_ones_own():
    own = Own(map_channels=4)
    pooled, maps = MapBackbone(own, "pooled")(IMAGE, stages=True)
    assert torch.equal(pooled, own(IMAGE))
    assert [m.shape[1] for m in maps] == [3, 4]
    assert MapBackbone(own)(IMAGE).shape == (2, 4, 30, 30)


@pytest.mark.parametrize("output", ["last", "pooled"])
@pytest.mark.parametrize("backbone", [lambda: nn.Flatten(), lambda: create_backbone("test_vit"), Own])
def test_backbone_without_maps_is_refused(backbone, output):
    with pytest.raises(TypeError, match=r"gives no feature maps|`map_channels=None`, expected the channels"):
        MapBackbone(backbone(), output)
