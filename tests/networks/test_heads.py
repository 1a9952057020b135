import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_cil.networks import CosineHead, LinearHead, MultiHead
from lightning_cil.types import GrowingHead

HEADS = [LinearHead, MultiHead, CosineHead]
DIM = 6
FROZEN = [0.287675202, 0.35628745, -0.019785175]


def grown(cls, sizes, **kwargs):
    head = cls(DIM, **kwargs)
    for size in sizes:
        head.grow(size)
    return head


def class_weights(head):
    """float [classes, DIM], whatever the head's layout."""
    if isinstance(head, MultiHead):
        return torch.cat([block.weight for block in head.blocks]).detach()
    return head.weight.detach()


def class_biases(head):
    if isinstance(head, MultiHead):
        return torch.cat([block.bias for block in head.blocks]).detach()
    return head.bias.detach()


def randomised(head, seed=1):
    """Other values than a fresh head has, so that a copy can be told from a restart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return head


@pytest.fixture
def features():
    return torch.randn(5, DIM, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("cls", HEADS)
class TestAllHeads:
    def test_starts_empty(self, cls, features):
        head = cls(DIM)
        assert isinstance(head, GrowingHead)
        assert head(features).shape == (5, 0)
        assert head.num_classes == 0
        assert head.task_slices() == []
        assert head.sizes.dtype == torch.long
        assert head.sizes.shape == (0,)

    def test_counts_after_growth(self, cls, features):
        head = grown(cls, [3, 1, 2])
        assert head(features).shape == (5, 6)
        assert head.num_classes == 6
        assert head.task_slices() == [slice(0, 3), slice(3, 4), slice(4, 6)]
        assert head.sizes.tolist() == [3, 1, 2]
        assert "sizes" in dict(head.named_buffers())

    def test_growth_keeps_old_rows_bit_for_bit(self, cls, features):
        head = randomised(grown(cls, [3, 2]))
        weights, before = class_weights(head).clone(), head(features).detach()
        head.grow(4)
        assert torch.equal(class_weights(head)[:5], weights)
        torch.testing.assert_close(head(features)[:, :5], before)
        if cls is not CosineHead:
            biases = class_biases(head)[:5].clone()
            head.grow(1)
            assert torch.equal(class_biases(head)[:5], biases)

    def test_preview_equals_growth(self, cls, features):
        head = randomised(grown(cls, [3]))
        preview = head.preview(features, [2, 1, 4])
        assert preview.shape == (5, 7)
        for size in (2, 1, 4):
            head.grow(size)
        torch.testing.assert_close(preview, head(features)[:, 3:])

    def test_preview_of_an_empty_head_and_of_nothing(self, cls, features):
        head = cls(DIM)
        torch.testing.assert_close(head.preview(features, [2, 3]), grown(cls, [2, 3])(features))
        assert head.preview(features, []).shape == (5, 0)

    def test_preview_is_drawn_once_and_anew_after_growth(self, cls, features, monkeypatch):
        head, drawn, new_block = grown(cls, [3]), [], cls._new_block
        monkeypatch.setattr(cls, "_new_block", lambda self, *args: drawn.append(args) or new_block(self, *args))
        with torch.inference_mode():
            first = head.preview(features, [2, 1])
        wanted = features.clone().requires_grad_()
        head.preview(wanted, [2, 1]).sum().backward()  # not bound to the mode of the first call
        assert torch.equal(head.preview(features, [2, 1]), first)
        assert drawn == [(1, 2), (2, 1)]
        head.grow(2)
        torch.testing.assert_close(head.preview(features, [1]), first[:, 2:])

    def test_preview_leaves_the_head_alone(self, cls, features):
        head = grown(cls, [2])
        before = copy.deepcopy(head.state_dict())
        head.preview(features, [3])
        after = head.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_blocks_depend_on_seed_and_task_only(self, cls):
        torch.manual_seed(1)
        first = class_weights(grown(cls, [2, 3]))
        torch.manual_seed(2)
        second = class_weights(grown(cls, [5, 3]))
        assert torch.equal(first[2:], second[5:])
        assert not torch.equal(first[:2], class_weights(grown(cls, [2], seed=1)))
        same_size = class_weights(grown(cls, [3, 3]))
        assert not torch.equal(same_size[:3], same_size[3:])

    def test_growing_and_preview_leave_the_global_random_state(self, cls, features):
        state = torch.get_rng_state()
        head = grown(cls, [2, 3])
        head.preview(features, [4])
        head.load_state_dict(grown(cls, [1, 1, 1]).state_dict())
        assert torch.equal(torch.get_rng_state(), state)

    def test_blocks_start_as_nn_linear_does(self, cls):
        head = cls(64)
        head.grow(400)
        weights, bound = class_weights(head), 1 / math.sqrt(64)
        assert weights.abs().max() <= bound
        assert weights.abs().max() > 0.99 * bound
        assert weights.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert weights.mean().abs() < 0.02 * bound

    def test_first_values_are_frozen(self, cls):
        # A changed generator would change every seeded result: then say so in the changelog.
        weights = class_weights(grown(cls, [2, 2], seed=3))
        torch.testing.assert_close(weights[2, :3], torch.tensor(FROZEN), rtol=0, atol=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_keeps_dtype_even_when_empty(self, cls, dtype, features):
        head = cls(DIM).to(dtype)
        head.grow(2)
        head.grow(1)
        assert {p.dtype for p in head.parameters()} == {dtype}
        assert head(features.to(dtype)).dtype == dtype
        assert torch.equal(class_weights(head), class_weights(grown(cls, [2, 1])).to(dtype))
        assert head.preview(features.to(dtype), [1]).dtype == dtype
        assert head.sizes.dtype == torch.long

    def test_keeps_device_even_when_empty(self, cls):
        head = cls(DIM).to("meta")
        head.grow(2)
        head.grow(1)
        assert {t.device.type for t in (*head.parameters(), *head.buffers())} == {"meta"}
        assert head(torch.empty(5, DIM, device="meta")).shape == (5, 3)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_gpu_blocks_equal_cpu_blocks(self, cls):
        head = cls(DIM).cuda()
        head.grow(3)
        assert head.sizes.is_cuda
        assert torch.equal(class_weights(head).cpu(), class_weights(grown(cls, [3])))

    def test_growing_ignores_the_default_device(self, cls):
        head = grown(cls, [2])
        with torch.device("meta"):
            head.grow(3)
        assert {t.device.type for t in (*head.parameters(), *head.buffers())} == {"cpu"}
        assert torch.equal(class_weights(head), class_weights(grown(cls, [2, 3])))

    def test_deepcopy_is_independent(self, cls, features):
        head = randomised(grown(cls, [2]))
        twin = copy.deepcopy(head)
        assert torch.equal(twin(features), head(features))
        twin.grow(3)
        randomised(twin, seed=5)
        assert (head.num_classes, twin.num_classes) == (2, 5)
        assert not torch.equal(class_weights(twin)[:2], class_weights(head))
        assert twin.task_slices()[-1] == slice(2, 5)

    def test_training_reaches_old_and_new_outputs(self, cls, features):
        head = grown(cls, [2, 2])
        before = class_weights(head).clone()
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
        F.cross_entropy(head(features), torch.tensor([0, 1, 2, 3, 0])).backward()
        optimizer.step()
        assert (class_weights(head) != before).any(dim=1).all()

    @pytest.mark.parametrize("size", [0, -1])
    def test_refuses_tasks_without_classes(self, cls, features, size):
        head = grown(cls, [2])
        with pytest.raises(ValueError, match=f"got {size} classes for task 1, expected at least 1"):
            head.grow(size)
        with pytest.raises(ValueError, match=f"got {size} classes for task 2, expected at least 1"):
            head.preview(features, [1, size])
        assert head.num_classes == 2

    def test_refuses_no_features(self, cls):
        with pytest.raises(ValueError, match="`in_features=0`, expected at least 1"):
            cls(0)


@pytest.mark.parametrize("cls", HEADS)
@pytest.mark.parametrize("old", [[], [2], [3, 2, 4], [5, 5, 5, 5], [2, 3, 4]], ids=str)
@pytest.mark.parametrize("strict", [True, False])
class TestLoading:
    def test_takes_the_checkpoints_shapes_and_values(self, cls, old, strict, features):
        source = randomised(grown(cls, [3, 2, 4]))
        head = grown(cls, old, seed=9)
        head.load_state_dict(source.state_dict(), strict=strict)
        assert head.sizes.tolist() == [3, 2, 4]
        assert head.task_slices() == source.task_slices()
        assert torch.equal(head(features), source(features))
        assert head.state_dict().keys() == source.state_dict().keys()
        assert all(parameter.requires_grad for parameter in head.parameters())

    def test_goes_on_as_the_original(self, cls, old, strict, features):
        source = randomised(grown(cls, [3, 2, 4]))
        head = grown(cls, old)
        head.load_state_dict(source.state_dict(), strict=strict)
        for each in (head, source):
            each.grow(2)
            optimizer = torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9)
            F.cross_entropy(each(features), torch.tensor([0, 4, 8, 9, 10])).backward()
            optimizer.step()
        assert head.sizes.tolist() == [3, 2, 4, 2]
        assert torch.equal(head(features), source(features))

    def test_works_inside_a_larger_module(self, cls, old, strict, features):
        source = nn.ModuleDict({"backbone": nn.Linear(3, DIM), "head": randomised(grown(cls, [3, 2, 4]))})
        module = nn.ModuleDict({"backbone": nn.Linear(3, DIM), "head": grown(cls, old)})
        module.load_state_dict(source.state_dict(), strict=strict)
        assert torch.equal(module["head"](features), source["head"](features))

    def test_empty_checkpoint_empties_the_head(self, cls, old, strict, features):
        head = grown(cls, old)
        head.load_state_dict(cls(DIM).state_dict(), strict=strict)
        assert head(features).shape == (5, 0)
        assert head.sizes.tolist() == []


@pytest.mark.parametrize("cls", HEADS)
class TestLoadingKeeps:
    @pytest.mark.parametrize("old", [[], [2], [3, 2, 4], [9, 9, 9, 9]], ids=str)
    def test_dtype(self, cls, old):
        head = grown(cls, old).to(torch.float64)
        source = randomised(grown(cls, [3, 2, 4]))
        head.load_state_dict(source.state_dict())
        assert {p.dtype for p in head.parameters()} == {torch.float64}
        assert torch.equal(class_weights(head), class_weights(source).to(torch.float64))

    def test_device(self, cls):
        head = cls(DIM).to("meta")
        with pytest.warns(UserWarning, match="no-op"):  # torch's word on values for the meta device
            head.load_state_dict(grown(cls, [3, 2]).state_dict())
        assert head.num_classes == 5
        assert {t.device.type for t in (*head.parameters(), *head.buffers())} == {"meta"}

    def test_frozen_parameters(self, cls):
        for old in ([2], [9, 9, 9]):
            head = grown(cls, old).requires_grad_(False)
            head.load_state_dict(grown(cls, [3, 2, 4][: len(old)]).state_dict())
            assert not any(p.requires_grad for p in head.parameters())

    def test_everything_when_only_another_part_is_loaded(self, cls, features):
        head = randomised(grown(cls, [2, 1]))
        before = head(features).detach()
        module = nn.ModuleDict({"body": nn.Linear(1, 1), "head": head})
        module.load_state_dict({"body.weight": torch.ones(1, 1), "body.bias": torch.ones(1)}, strict=False)
        assert torch.equal(head(features), before)
        assert head.sizes.tolist() == [2, 1]

    def test_assign(self, cls, features):
        source = randomised(grown(cls, [3, 2]))
        head = grown(cls, [1]).requires_grad_(False)
        head.load_state_dict(source.state_dict(), assign=True)
        assert torch.equal(head(features), source(features))
        assert head.sizes.tolist() == [3, 2]


@pytest.mark.parametrize("strict", [True, False])
class TestBadCheckpoints:
    def check(self, head, state, strict, match):
        before = {name: value.clone() for name, value in head.state_dict().items()}
        with pytest.raises(RuntimeError, match=match):
            head.load_state_dict(state, strict=strict)
        after = head.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert head.num_classes == int(head.sizes.sum())

    @pytest.mark.parametrize("cls", HEADS)
    def test_without_sizes(self, cls, strict):
        state = grown(cls, [3]).state_dict()
        del state["sizes"]
        self.check(cls(DIM), state, strict, "hold no valid `sizes`")

    @pytest.mark.parametrize(
        "sizes",
        [torch.tensor([3, 0]), torch.tensor([3.0]), torch.tensor(3), [3], torch.tensor([3], device="meta")],
        ids=str,
    )
    def test_with_impossible_sizes(self, sizes, strict):
        state = {**grown(LinearHead, [3]).state_dict(), "sizes": sizes}
        self.check(LinearHead(DIM), state, strict, "hold no valid `sizes`")

    @pytest.mark.parametrize("cls", HEADS)
    def test_with_other_sizes(self, cls, strict):
        state = {**grown(cls, [3]).state_dict(), "sizes": torch.tensor([2])}
        self.check(cls(DIM), state, strict, r"weight` is \[3, 6\], expected \[2, 6\]")

    def test_without_weight(self, strict):
        state = grown(LinearHead, [3]).state_dict()
        del state["weight"]
        self.check(LinearHead(DIM), state, strict, r"`weight` is missing, expected \[3, 6\]")

    def test_with_a_task_too_many(self, strict):
        state = {**grown(MultiHead, [3, 2]).state_dict(), "sizes": torch.tensor([3])}
        self.check(MultiHead(DIM), state, strict, r"`blocks.1.weight` is \[2, 6\], expected no such entry")

    def test_of_another_width(self, strict):
        state = LinearHead(4).state_dict()
        self.check(LinearHead(DIM), state, strict, r"`in_features=6`: `weight` is \[0, 4\], expected \[0, 6\]")

    def test_of_another_bias(self, strict):
        with_bias, without = grown(LinearHead, [3]).state_dict(), grown(LinearHead, [3], bias=False).state_dict()
        self.check(LinearHead(DIM), without, strict, r"`bias` is missing, expected \[3\]")
        self.check(LinearHead(DIM, bias=False), with_bias, strict, r"`bias` is \[3\], expected no such entry")

    def test_of_another_head(self, strict):
        self.check(LinearHead(DIM), grown(MultiHead, [3]).state_dict(), strict, "LinearHead at 'the top level'")
        self.check(MultiHead(DIM), grown(LinearHead, [3]).state_dict(), strict, "MultiHead at 'the top level'")


@pytest.mark.parametrize("cls", HEADS)
def test_missing_head_is_an_error_only_when_strict(cls):
    module = nn.ModuleDict({"head": grown(cls, [2])})
    module.load_state_dict({}, strict=False)
    with pytest.raises(RuntimeError, match=r"Missing key.*head\.sizes"):
        module.load_state_dict({})


@pytest.mark.parametrize("cls", [LinearHead, MultiHead])
class TestBias:
    def test_logits_are_linear(self, cls, features):
        head = randomised(grown(cls, [2, 3]))
        expected = torch.stack(
            [
                torch.stack([(u * w).sum() + b for w, b in zip(class_weights(head), class_biases(head), strict=True)])
                for u in features
            ]
        )
        torch.testing.assert_close(head(features), expected)

    def test_without_bias(self, cls, features):
        head = grown(cls, [2, 3], bias=False)
        assert not [name for name, _ in head.named_parameters() if "bias" in name]
        torch.testing.assert_close(head(features), features @ class_weights(head).T)
        torch.testing.assert_close(head.preview(features, [2]), grown(cls, [2, 3, 2], bias=False)(features)[:, 5:])

    def test_bias_does_not_change_the_weights(self, cls):
        assert torch.equal(class_weights(grown(cls, [3, 2])), class_weights(grown(cls, [3, 2], bias=False)))


@pytest.mark.parametrize("cls", [LinearHead, CosineHead])
def test_matrix_heads_keep_requires_grad(cls):
    head = grown(cls, [2])
    assert head.weight.requires_grad
    head.requires_grad_(False).grow(3)
    assert not any(p.requires_grad for p in head.parameters())


def test_linear_head_has_one_weight_and_one_bias():
    shapes = {name: tuple(p.shape) for name, p in grown(LinearHead, [2, 3]).named_parameters()}
    assert shapes == {"weight": (5, DIM), "bias": (5,)}


class TestMultiHead:
    def test_names_and_shapes(self):
        shapes = {name: tuple(p.shape) for name, p in grown(MultiHead, [2, 3]).named_parameters()}
        assert shapes == {
            "blocks.0.weight": (2, DIM),
            "blocks.0.bias": (2,),
            "blocks.1.weight": (3, DIM),
            "blocks.1.bias": (3,),
        }

    def test_equals_the_linear_head(self, features):
        torch.testing.assert_close(grown(MultiHead, [2, 3])(features), grown(LinearHead, [2, 3])(features))

    def test_frozen_blocks_stay_frozen_and_the_same_objects(self):
        head = grown(MultiHead, [2])
        old = head.blocks[0].requires_grad_(False)
        head.eval().grow(3)
        assert head.blocks[0] is old
        assert [p.requires_grad for p in head.parameters()] == [False, False, True, True]
        assert not head.blocks[1].training

    def test_loading_keeps_requires_grad_of_each_block(self):
        head = grown(MultiHead, [2, 2])
        head.blocks[0].requires_grad_(False)
        head.load_state_dict(grown(MultiHead, [3, 2, 4]).state_dict())
        assert [p.requires_grad for p in head.parameters()] == [False, False, True, True, True, True]


class TestCosineHead:
    def test_logits_are_scaled_cosines(self, features):
        head = randomised(grown(CosineHead, [2, 1]))
        expected = [
            [head.scale.item() * F.cosine_similarity(u, w, dim=0).item() for w in head.weight] for u in features
        ]
        torch.testing.assert_close(head(features), torch.tensor(expected))

    def test_hand_checked_value(self):
        head = CosineHead(2, scale=10.0)
        head.grow(2)
        with torch.no_grad():
            head.weight.copy_(torch.tensor([[3.0, 0.0], [0.0, -0.5]]))
        torch.testing.assert_close(head(torch.tensor([[3.0, 4.0]])), torch.tensor([[6.0, -8.0]]))

    def test_scale_is_learnable_and_survives_growth(self, features):
        head = grown(CosineHead, [2], scale=4.0)
        head(features).sum().backward()
        assert head.scale.grad is not None
        head.grow(1)
        assert head.scale.item() == 4.0
        assert head.scale.shape == (1,)
        assert "bias" not in dict(head.named_parameters())

    def test_scale_comes_from_the_checkpoint(self):
        head = CosineHead(DIM)
        head.load_state_dict(grown(CosineHead, [2], scale=7.0).state_dict())
        assert head.scale.item() == 7.0

    def test_zero_features_give_zero_logits(self):
        assert torch.equal(grown(CosineHead, [3])(torch.zeros(2, DIM)), torch.zeros(2, 3))

    @pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
    def test_refuses_a_scale_that_is_not_positive(self, scale):
        with pytest.raises(ValueError, match="expected a positive, finite number"):
            CosineHead(DIM, scale=scale)


class Model(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.body = nn.Linear(3, DIM)
        self.head = head

    def forward(self, x):
        return self.head(self.body(x))


def on_two_ranks(rank, path):
    """Growth of sharded heads; run in a process of its own for each rank."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for cls in (LinearHead, CosineHead):
        check_growth_of_dtensors(cls, mesh)
    for cls in HEADS:
        check_growth_under_fsdp2(cls, mesh, rank)
    dist.destroy_process_group()


def check_growth_of_dtensors(cls, mesh):
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    head, whole = randomised(grown(cls, [3, 2])), randomised(grown(cls, [3, 2]))
    for name, parameter in list(head.named_parameters()):
        sharded = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
        setattr(head, name, nn.Parameter(sharded, requires_grad=name != "weight"))
    assert isinstance(head.weight, DTensor)
    assert head.weight.to_local().shape[0] < 5
    head.grow(4)
    whole.grow(4)
    assert not head.weight.requires_grad
    for name, parameter in head.named_parameters():
        assert not isinstance(parameter, DTensor), name
        assert torch.equal(parameter, whole.get_parameter(name)), name


def check_growth_under_fsdp2(cls, mesh, rank):
    """Two tasks of one step each equal the same steps in one process."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.manual_seed(0)
    model = Model(randomised(grown(cls, [3])))
    plain = copy.deepcopy(model)
    data = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    probe = torch.randn(2, DIM, generator=torch.Generator().manual_seed(2))
    for size in (2, 4):
        if size == 4:
            with pytest.raises(RuntimeError, match=r"replace it by `head.unsharded\(\)` first"):
                model.head.grow(size)
            with pytest.raises(RuntimeError, match=r"cannot load a checkpoint of sizes \[7\]"):
                model.head.load_state_dict(grown(cls, [7]).state_dict())
            assert model.head.num_classes == 5
        model.head = model.head.unsharded()
        assert not any(isinstance(p, DTensor) for p in model.head.parameters())
        model.head.grow(size)
        plain.head.grow(size)
        fully_shard(model.head, mesh=mesh)
        if size == 2:
            fully_shard(model, mesh=mesh)
        target = torch.tensor([0, 1, 2, plain.head.num_classes - 1])
        for module, x, y in ((model, data[rank], target), (plain, data.flatten(0, 1), target.repeat(2))):
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimizer.step()
        torch.testing.assert_close(model.head.preview(probe, [2]), plain.head.preview(probe, [2]))
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor), name
        torch.testing.assert_close(parameter.full_tensor(), plain.get_parameter(name))


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_sharded_heads_grow(tmp_path):
    torch.multiprocessing.spawn(on_two_ranks, args=(tmp_path / "store",), nprocs=2)


def test_unsharded_copies_a_plain_head(features):
    for cls in HEADS:
        head = randomised(grown(cls, [2, 3], seed=4)).to(torch.float64).eval()
        next(head.parameters()).requires_grad_(False)
        copied = head.unsharded()
        assert not copied.training
        assert [p.requires_grad for p in copied.parameters()] == [p.requires_grad for p in head.parameters()]
        assert {p.data_ptr() for p in copied.parameters()}.isdisjoint(p.data_ptr() for p in head.parameters())
        for each in (head, copied):
            each.grow(2)
        assert torch.equal(copied(features.double()), head(features.double()))
