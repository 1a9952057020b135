"""L2P's prompts: which are chosen, where they go, and that the transformer stays as it is."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_cil.networks import PromptedTransformer, PromptPool, create_backbone, set_trainable

IMAGE = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def make(name="test_vit", **options):
    torch.manual_seed(0)
    vit = create_backbone(name)
    return PromptedTransformer(vit, PromptPool(vit.embed_dim, **options)).eval()


def test_nearest_keys_are_chosen():
    pool = PromptPool(2, size=3, length=2, top_k=2)
    with torch.no_grad():
        pool.keys.copy_(torch.tensor([[1.0, 0.0], [0.0, 5.0], [3.0, 3.0]]))
    tokens, cosines = pool(torch.tensor([[2.0, 0.1], [0.0, 0.5]]))
    torch.testing.assert_close(tokens[0], pool.prompts[[0, 2]].flatten(0, 1))
    torch.testing.assert_close(tokens[1], pool.prompts[[1, 2]].flatten(0, 1))
    expected = F.cosine_similarity(torch.tensor([[2.0, 0.1]]), pool.keys[[0, 2]], dim=1)
    torch.testing.assert_close(cosines[0], expected)
    assert cosines[1, 0].item() == pytest.approx(1)


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224"])
def test_prompts_stand_between_class_token_and_patches(name):
    image = IMAGE if name == "test_vit" else F.interpolate(IMAGE[:1], 224)
    model = make(name)
    vit = model.transformer
    query = vit.forward_features(image)[:, 0]  # the plain transformer
    prompts, cosines = model.pool(query)
    patches = vit._pos_embed(vit.patch_embed(image))[:, 1:]
    slot = vit.pos_embed[:, :1]
    sequence = torch.cat([(vit.cls_token + slot).expand(len(image), -1, -1), prompts + slot, patches], dim=1)
    out = vit.norm(vit.blocks(sequence))
    features, found = model(image, with_cosines=True)
    assert prompts.shape[1] == 25
    torch.testing.assert_close(features, out[:, 1:26].mean(dim=1))
    torch.testing.assert_close(found, cosines)
    assert torch.equal(model(image), features)


def test_images_choose_for_themselves():
    model = make()
    together = model(IMAGE)
    alone = torch.cat([model(image[None]) for image in IMAGE])
    torch.testing.assert_close(together, alone)


def test_only_the_pool_is_trained():
    model = make()
    frozen = copy.deepcopy(model.transformer.state_dict())
    set_trainable(model, ["pool.*"])
    assert not model.transformer.training
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = copy.deepcopy(model.pool.state_dict())
    features, cosines = model(IMAGE, with_cosines=True)
    (features.square().sum() - cosines.sum()).backward()
    optimizer.step()
    assert all(torch.equal(value, frozen[name]) for name, value in model.transformer.state_dict().items())
    assert all(not torch.equal(value, before[name]) for name, value in model.pool.state_dict().items())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`size=3`, `length=5`, `top_k=4`"):
        PromptPool(8, size=3, top_k=4)
    for backbone in (nn.Flatten(), create_backbone("small_cnn")):
        with pytest.raises(TypeError, match="takes no prompts, expected one of timm's vision transformers"):
            PromptedTransformer(backbone, PromptPool(8))
