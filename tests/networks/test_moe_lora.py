"""Experts, routers, gates, growth, freezing, counts, checkpoints, PEFT's format."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_cil.networks import MIFE
from lightning_cil.networks.audioclip import create_audioclip
from lightning_cil.networks.audioclip.transformer import Block
from lightning_cil.networks.mife import Mixtures
from lightning_cil.networks.moe_lora import MoEAdapter
from lightning_cil.networks.peft_format import load_peft, save_peft
from tests.ranks import all_well, run_ranks

PLAIN = {"noisy": False, "dropout": 0.0, "router_std": 1.0}


class Towers(nn.Module):
    """Blocks of the sizes of CLIP ViT-B/16, or of one width."""

    def __init__(self, widths=((768, 12), (512, 12))) -> None:
        super().__init__()
        self.image, self.text = (nn.ModuleList(Block(w, w // 4, False) for _ in range(n)) for w, n in widths)

    def blocks(self) -> dict[str, Block]:
        return {name: part for name, part in self.named_modules() if isinstance(part, Block)}


def small() -> Towers:
    return Towers(((8, 2), (12, 1)))


def spread(module: nn.Module, seed: int = 0) -> None:
    """Other values than those at the start, zeros included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def adapter(**options) -> MoEAdapter:
    made = MoEAdapter(8, **{"rank": 3, **PLAIN, **options})
    spread(made)
    return made


def batch(size: int = 5, width: int = 8, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 4, width, generator=generator), torch.randn(size, width, generator=generator)


def literal(module: MoEAdapter, h: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """One sample, expert by expert."""
    scores = module.routers[-1].gate @ token
    chosen = sorted(range(len(scores)), key=lambda e: -scores[e].item())[: module.top_k]
    gates = F.softmax(scores[chosen], dim=0)
    out = torch.zeros_like(h)
    for g, e in zip(gates, chosen, strict=True):
        expert = module.experts[e]
        inner = expert.lora_A(h)
        out = out + g * expert.lora_B(F.relu(inner) if module.activation == "relu" else inner)
    return module.scale * out


@pytest.mark.parametrize("options", [{}, {"activation": "relu", "bias": True, "top_k": 1}, {"top_k": 4}])
def test_branch_equals_the_sum_over_the_chosen_experts(options):
    module = adapter(**options)
    h, token = batch()
    expected = torch.stack([literal(module, *sample) for sample in zip(h, token, strict=True)])
    torch.testing.assert_close(module(h, token), expected)


def test_first_token_can_be_the_gate():
    module = adapter(gate_token="first")
    h, token = batch()
    torch.testing.assert_close(module(h, token), adapter()(h, h[:, 0]))


def test_every_expert_gets_a_gradient_which_is_zero_without_samples():
    module = adapter()
    h, token = batch(size=1)
    module(h, token).square().sum().backward()
    used = (module.gates(token) > 0)[0].tolist()
    assert used.count(True) == 2
    for expert, is_used in zip(module.experts, used, strict=True):
        for parameter in expert.parameters():
            assert parameter.grad is not None
            assert bool(parameter.grad.any()) == is_used


def test_training_starts_from_the_towers_as_they_are():
    model = create_audioclip("tiny")
    image = torch.randn(2, 3, 16, 16)
    tokens = torch.tensor([[1, 5, 257, 0], [3, 257, 0, 0]])
    before = model.encode_image(image), model.encode_text(tokens)
    mixtures = MIFE(rank=4).insert(model)
    for got, expected in zip((model.encode_image(image), model.encode_text(tokens)), before, strict=True):
        torch.testing.assert_close(got, expected)
    for part in mixtures.adapters.values():
        spread(part)
    assert not torch.allclose(model.encode_image(image), before[0])
    assert not torch.allclose(model.encode_text(tokens), before[1])
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(".adapter." in name for name in trained)


@pytest.mark.parametrize(("rank", "expected"), [(4, 491_520), (8, 983_040), (16, 1_966_080)])
def test_expert_parameters_of_24_blocks(rank, expected):
    with torch.device("meta"):
        adapters = [MoEAdapter(width, rank=rank) for width in (768, 512)]
    assert 12 * sum(p.numel() for a in adapters for p in a.experts.parameters()) == expected


def test_parameters_of_moe_adapters():
    spec = MIFE.moe_clip()
    with torch.device("meta"):
        towers = Towers()
        mixtures = spec.insert(towers)
    sizes = {a.width: sum(p.numel() for p in a.experts[0].parameters()) for a in mixtures.adapters.values()}
    assert sizes == {768: 99_136, 512: 66_112}
    assert sum(p.numel() for p in mixtures.parameters()) == 4_027_392
    assert {(a.top_k, a.gate_token, a.noisy, a.scale, a.dropout) for a in mixtures.adapters.values()} == {
        (2, "first", True, 0.1, 0.1)
    }


def test_noise_and_dropout_act_in_training_only():
    module = MoEAdapter(8, rank=3, dropout=0.5, noisy=True)
    spread(module)
    h, token = batch(64)
    torch.manual_seed(0)
    assert not torch.equal(module(h, token), module(h, token))
    assert not torch.equal(module.gates(token), module.gates(token))
    module.eval()
    torch.testing.assert_close(module(h, token), module(h, token), rtol=0, atol=0)


def test_noise_breaks_the_ties_of_a_new_router():
    module = MoEAdapter(8, rank=3)
    torch.manual_seed(0)
    module.gates(batch(64)[1])
    assert (module.counter.pending[:4] > 0).all()


def test_usage_and_entropy_are_counted():
    module = adapter()
    mixtures = handle(module)
    _, token = batch(64)
    gates = module.gates(token)
    module.eval().gates(token)
    mixtures.merge_counts()
    assert module.usage.tolist() == (gates > 0).sum(dim=0).tolist()
    assert module.counter.total[-1] == 64
    expected = -(gates * gates.clamp(min=1e-30).log()).sum(dim=1).mean()
    torch.testing.assert_close(mixtures.mean_entropy(), expected, rtol=1e-4, atol=1e-4)
    assert mixtures.usage()["image.0"].sum().item() == pytest.approx(2)
    assert 0 < mixtures.mean_entropy() < math.log(2)


def handle(module: MoEAdapter, **options) -> Mixtures:
    block = Block(8, 2, False)
    block.adapter = module
    return Mixtures(MIFE(rank=3, **{**PLAIN, **options}), {"image.0": block})


def test_the_most_used_experts_are_frozen_after_a_task():
    module = adapter()
    mixtures = handle(module, freeze_after_task=2)
    module.counter.pending += torch.tensor([1, 7, 0, 9, 0, 17])
    mixtures.merge_counts()
    mixtures.end_task()
    assert module.frozen.tolist() == [False, True, False, True]
    assert not module.counter.total.any()
    module.requires_grad_(True)
    mixtures.apply_freezing()
    assert [e.lora_A.weight.requires_grad for e in module.experts] == [True, False, True, False]
    before = copy.deepcopy(module.state_dict())
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.1)
    h, token = batch(64)
    for _ in range(2):
        module(h, token).square().sum().backward()
        optimizer.step()
    changed = {n for n, v in module.state_dict().items() if n.startswith("experts") and not torch.equal(v, before[n])}
    assert {n.split(".")[1] for n in changed} == {"0", "2"}


def test_new_experts_for_each_task_leave_the_old_ones_as_they_are():
    module = adapter()
    mixtures = handle(module, expand_per_task=2)
    h, token = batch()
    mixtures.start_task(0)
    before = module(h, token)
    for _ in range(2):  # a second call changes nothing
        mixtures.start_task(1)
    assert (module.num_experts, len(module.routers)) == (6, 1)
    assert module.frozen.tolist() == [True] * 4 + [False] * 2
    assert not module.experts[5].lora_B.weight.any()
    with torch.no_grad():
        module.routers[0].gate[4:] = 0
    scores = token @ module.routers[0].gate[:4].T
    alone = scores.topk(2, dim=1).values[:, 1] > 0  # the new experts' scores are 0
    assert alone.any()
    torch.testing.assert_close(module(h, token)[alone], before[alone])
    other = handle(MoEAdapter(8, rank=3, **PLAIN), expand_per_task=2)
    restored = other.adapters["image.0"]
    restored.load_state_dict(module.state_dict())
    torch.testing.assert_close(restored(h, token), module(h, token))
    assert restored.frozen.tolist() == module.frozen.tolist()
    trained = [expert.lora_A.weight.requires_grad for expert in restored.experts]
    assert trained == [False] * 4 + [True] * 2  # what an optimizer takes when a run goes on inside the task


def test_a_router_for_each_task_is_chosen_for_each_sample():
    module = adapter()
    mixtures = handle(module, router="per_task", expand_per_task=1)
    h, token = batch()
    first = module(h, token)
    mixtures.start_task(1)
    spread(module.routers[1], seed=5)
    with torch.no_grad():
        module.experts[4].lora_B.weight.normal_()
    second = module(h, token)
    mixtures.select_router(0)
    torch.testing.assert_close(module(h, token), first)  # the first router does not know the new expert
    mixtures.select_router(torch.tensor([0, 1, -1, 1, 0]), "image")
    expected = torch.stack([first[0], second[1], torch.zeros_like(first[2]), second[3], first[4]])
    torch.testing.assert_close(module(h, token), expected)
    mixtures.select_router(-1, "text")
    torch.testing.assert_close(module(h, token), expected)
    mixtures.select_router(-1)
    assert not module(h, token).any()
    mixtures.select_router(None)
    torch.testing.assert_close(module(h, token), second)
    mixtures.apply_freezing()
    assert [r.gate.requires_grad for r in module.routers] == [False, True]
    restored = MoEAdapter(8, rank=3, **PLAIN)
    restored.load_state_dict(module.state_dict())
    restored.selected = torch.tensor([0, 1, -1, 1, 0])
    torch.testing.assert_close(restored(h, token), expected)


def test_balance_loss_is_that_of_importance_and_load():
    module = adapter(balance_weight=0.5)
    mixtures = handle(module)
    _, token = batch(16)
    gates = module.gates(token)
    numbers = [gates.sum(dim=0), (gates > 0).sum(dim=0).float()]
    expected = 0.5 * sum(x.var() / x.mean() ** 2 for x in numbers)
    balance = mixtures.balance()
    torch.testing.assert_close(balance, expected)
    balance.backward()
    assert module.routers[0].gate.grad.any()
    assert mixtures.balance() is None
    module.eval().gates(token)
    assert mixtures.balance() is None


def test_expected_load_counts_what_the_noise_would_choose():
    module = MoEAdapter(8, rank=3, balance_weight=1.0)
    spread(module)
    _, token = batch(8)
    torch.manual_seed(3)
    module.gates(token)
    torch.manual_seed(3)
    scores = token @ module.routers[0].gate.T
    deviation = F.softplus(token @ module.routers[0].noise.T) + 1e-2
    noisy = scores + torch.randn_like(scores) * deviation
    load = torch.zeros(4)
    for i in range(8):
        for e in range(4):
            others = sorted((noisy[i, k].item() for k in range(4) if k != e), reverse=True)
            load[e] += torch.special.ndtr((scores[i, e] - others[1]) / deviation[i, e])
    gates = noisy.masked_fill(noisy < noisy.topk(2, dim=1).values[:, 1:], -math.inf).softmax(dim=1)
    expected = sum(x.var() / x.mean() ** 2 for x in (gates.sum(dim=0), load))
    torch.testing.assert_close(module.balance, expected)


def test_first_values_depend_on_the_seed_and_the_block_alone():
    def weights(seed: int) -> list[torch.Tensor]:
        mixtures = MIFE(rank=2, seed=seed, router_std=0.1).insert(small())
        return [p for part in mixtures.adapters.values() for p in part.parameters() if p.any()]

    torch.manual_seed(0)
    first = weights(0)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    again = weights(0)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], weights(1)[1])
    assert first[0].shape != first[-1].shape or not torch.equal(first[0], first[-1])
    torch.set_rng_state(state)
    before = torch.get_rng_state()
    MoEAdapter(8, rank=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_peft_reads_the_experts_back(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel

    towers = small()
    mixtures = MIFE(rank=3, scale=0.3, router_std=0.1).insert(towers)
    for part in mixtures.adapters.values():
        spread(part)
    save_peft(mixtures, tmp_path / "adapter")

    base = small()
    for name, block in base.blocks().items():
        block.adapter = nn.Module()
        width = mixtures.adapters[name].width
        block.adapter.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(4))
        nn.init.zeros_(block.adapter.experts[0].weight)
        for layer in block.adapter.experts:
            nn.init.zeros_(layer.weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    for name, part in mixtures.adapters.items():
        x = torch.randn(2, part.width)
        for e, expert in enumerate(part.experts):
            wrapped = base.get_submodule(f"{name}.adapter.experts.{e}")
            torch.testing.assert_close(wrapped(x), 0.3 * expert.lora_B(expert.lora_A(x)))

    other = MIFE(rank=3, scale=0.3, router_std=0.1, seed=9).insert(small())
    load_peft(other, tmp_path / "adapter")
    for ours, theirs in zip(mixtures.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_peft_files_that_do_not_fit_are_refused(tmp_path):
    mixtures = MIFE(rank=3).insert(small())
    save_peft(mixtures, tmp_path)
    with pytest.raises(ValueError, match=r"experts.0.lora_A.weight: \[3, 8\] there, \[2, 8\] here"):
        load_peft(MIFE(rank=2).insert(small()), tmp_path)
    with pytest.raises(ValueError, match=r"give `scale=0\.1`"):
        load_peft(MIFE(rank=3, scale=1.0).insert(small()), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        load_peft(mixtures, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="LoRA pairs only"):
        save_peft(MIFE.moe_clip(rank=4).insert(small()), tmp_path)


class Stack(nn.Module):
    """The blocks of one tower with mixtures that only some experts of which are used."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = Towers(((8, 2), (8, 0)))
        mixtures = MIFE(rank=2, num_experts=6, top_k=1, towers="image", **PLAIN).insert(self.towers)
        for part in mixtures.adapters.values():
            spread(part)
        self.mixtures = mixtures

    def forward(self, h):
        for block in self.towers.blocks().values():
            h = block(h)
        return h


def step(model: nn.Module, stack: Stack, h: torch.Tensor, reduce=None) -> dict[str, torch.Tensor]:
    """The state after a step of SGD."""
    optimizer = torch.optim.SGD(list(stack.mixtures.parameters()), lr=0.01)
    (model(h).square().sum() / len(h)).backward()
    assert all(p.grad is not None for p in stack.mixtures.parameters())
    optimizer.step()
    stack.mixtures.merge_counts(reduce)
    return stack.state_dict()


def rank_step(folder) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    torch.manual_seed(0)
    stack = Stack()

    def reduce(counts):
        torch.distributed.all_reduce(counts)
        return counts

    state = step(nn.parallel.DistributedDataParallel(stack), stack, batch(4)[0][2 * rank : 2 * rank + 2], reduce)
    torch.save(state, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_with_unused_experts_equal_one_process(tmp_path):
    assert all_well(run_ranks(lambda: rank_step(tmp_path), tmp_path))
    torch.manual_seed(0)
    stack = Stack()
    expected = step(stack, stack, batch(4)[0])
    counts = [part.usage for part in stack.mixtures.adapters.values()]
    assert all(usage.sum() == 4 and (usage == 0).any() for usage in counts)
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt", weights_only=True).items():
            torch.testing.assert_close(value, expected[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("options", [{"balance_weight": 0.1}, {"activation": "relu", "bias": True}])
def test_nothing_is_read_back_from_another_device(options):
    """On the meta device there are no values: `.item()` or a branch on them would fail."""
    with torch.device("meta"):
        module = MoEAdapter(8, rank=3, **options)
        assert module(torch.empty(5, 4, 8), torch.empty(5, 8)).shape == (5, 4, 8)
        module.selected = torch.zeros(5, dtype=torch.int64)
        assert module(torch.empty(5, 4, 8), torch.empty(5, 8)).device.type == "meta"


def test_half_precision_computes_gates_and_branch():
    module = adapter()
    h, token = batch()
    with torch.autocast("cpu", torch.bfloat16):
        half = module(h, token)
    torch.testing.assert_close(half.float(), module(h, token), atol=0.1, rtol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MoEAdapter(8, top_k=5), "top_k=5"),
        (lambda: MoEAdapter(8, rank=9), "rank=9"),
        (lambda: MoEAdapter(8, rank=2, dropout=1.0), r"dropout=1\.0"),
        (lambda: MoEAdapter(8, rank=2, activation="gelu"), "'gelu'"),
        (lambda: MIFE(router="each"), "'each'"),
        (lambda: MIFE(freeze_after_task=-1), "freeze_after_task=-1"),
        (lambda: MIFE(rank=2).insert(Towers(((8, 0), (12, 1)))), "image tower has no transformer block"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
