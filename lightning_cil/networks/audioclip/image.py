"""CLIP's image towers: the vision transformer and the modified ResNet, with OpenAI's parameter names.

Source: Radford et al. 2021, section 2.4, https://arxiv.org/abs/2103.00020; names as in https://github.com/openai/CLIP.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cil.networks.audioclip.transformer import Activation, Transformer

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of the pixels in [0, 1], red, green, blue, that the published weights expect to be subtracted."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""What they expect the rest to be divided by."""


class VisionTransformer(nn.Module):
    """ViT with a norm before the blocks; the feature is the projected class token.

    Args:
        embed_dim: Width of the feature.
        image_size: Side of the square image in pixels.
        patch_size: Divides the image's side.
        width: Of a token.
        blocks: Of the transformer.
        heads: Of its attention; default one for each 64 of the width.
        activation: See `MLP`.

    Raises:
        ValueError: If the patches do not tile the image.
    """

    def __init__(
        self,
        embed_dim: int = 512,
        *,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        blocks: int = 12,
        heads: int | None = None,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"VisionTransformer got `image_size={image_size}` and `patch_size={patch_size}`, expected a size that "
                "the patches tile: a multiple of `patch_size`."
            )
        self.image_size = image_size
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(width**-0.5 * torch.randn(width))
        self.positional_embedding = nn.Parameter(width**-0.5 * torch.randn((image_size // patch_size) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = Transformer(width, blocks, heads or max(width // 64, 1), causal=False, activation=activation)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, embed_dim))

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised float `[B, 3, H, W]` to features `[B, embed_dim]`; H and W are `image_size`."""
        check_image(image, self.image_size)
        x = self.conv1(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = self.transformer(self.ln_pre(x + self.positional_embedding))
        x = self.ln_post(x[:, 0])
        return torch.matmul(x, self.proj)


class _Bottleneck(nn.Module):
    """1×1, 3×3, 1×1; a stride is an average pooling before the last convolution and in the shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        nn.init.zeros_(self.bn3.weight)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != 4 * width:
            self.downsample = nn.Sequential(
                OrderedDict(
                    [
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(in_channels, 4 * width, 1, bias=False)),
                        ("1", nn.BatchNorm2d(4 * width)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        return F.relu(out + self.downsample(x))


class _AttentionPool(nn.Module):
    """Attention of the mean position to all positions."""

    def __init__(self, positions: int, width: int, heads: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(positions + 1, width) * width**-0.5)
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, embed_dim)
        for linear in (self.k_proj, self.q_proj, self.v_proj, self.c_proj):
            nn.init.normal_(linear.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding
        query, key, value = (
            proj(tokens).reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)
            for proj, tokens in ((self.q_proj, x[:, :1]), (self.k_proj, x), (self.v_proj, x))
        )
        pooled = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.c_proj(pooled.transpose(1, 2).flatten(1))
        return out


class ModifiedResNet(nn.Module):
    """ResNet with a stem of three convolutions, average pooling in place of strides, and attention pooling.

    Args:
        embed_dim: Width of the feature.
        image_size: Side of the square image in pixels, a multiple of 32.
        width: Channels of the first stage.
        layers: Blocks of the four stages.

    Raises:
        ValueError: If `image_size` is no multiple of 32.
    """

    def __init__(
        self,
        embed_dim: int = 1024,
        *,
        image_size: int = 224,
        width: int = 64,
        layers: Sequence[int] = (3, 4, 6, 3),
    ) -> None:
        super().__init__()
        if image_size % 32:
            raise ValueError(f"ModifiedResNet got `image_size={image_size}`, expected a multiple of 32 pixels.")
        self.image_size = image_size
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        channels = width
        for stage, count in enumerate(layers):
            inner = width * 2**stage
            blocks = [_Bottleneck(channels, inner, 2 if stage else 1)]
            blocks += [_Bottleneck(4 * inner, inner, 1) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            channels = 4 * inner
        self.attnpool = _AttentionPool((image_size // 32) ** 2, channels, max(channels // 64, 1), embed_dim)

    def forward(self, image: Tensor) -> Tensor:
        """Map normalised float `[B, 3, H, W]` to features `[B, embed_dim]`; H and W are `image_size`."""
        check_image(image, self.image_size)
        x = F.relu(self.bn1(self.conv1(image)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        out: Tensor = self.attnpool(x)
        return out


def check_image(image: Tensor, size: int) -> None:
    """Refuse images of another size, and pixels that nobody normalised.

    Raises:
        ValueError: Unless it is float `[B, 3, size, size]`.
    """
    if image.ndim != 4 or image.shape[1:] != (3, size, size) or not image.is_floating_point():
        raise ValueError(
            f"The image tower got {image.dtype} {list(image.shape)}, expected normalised float [B, 3, {size}, {size}]: "
            f"let the data resize and crop to {size} pixels, repeat grey images three times and normalise with "
            "`CLIP_MEAN` and `CLIP_STD`."
        )
