"""KRT's attention against one literal attention a task, and what growing must keep."""

import copy

import pytest
import torch
import torch.nn.functional as F

from lightning_cil.networks import TaskAttention, set_trainable

CHANNELS, WIDTH, HEADS = 6, 8, 2


def make(*sizes, seed=0):
    torch.manual_seed(1)
    head = TaskAttention(CHANNELS, positions=4, width=WIDTH, num_heads=HEADS, seed=seed)
    for size in sizes:
        head.grow(size)
    return head


def random(head):
    """Values of the size of trained ones."""
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return head


def literal(head, maps):
    """Every task's sequence [u, r, patches] through the whole block by itself."""
    patches = maps.flatten(2).transpose(1, 2) @ head.project.weight.T + head.project.bias + head.position
    logits, embeddings = [], []
    for task in head.tasks:
        tokens = torch.stack([head.transfer, task.token]).expand(len(maps), 2, WIDTH)
        sequence = head.norm(torch.cat([tokens, patches], dim=1))
        split = (len(maps), sequence.shape[1], HEADS, WIDTH // HEADS)
        q, k, v = (layer(sequence).view(split).transpose(1, 2) for layer in (head.query, head.key, head.value))
        attended = F.scaled_dot_product_attention(q[:, :, :1], k, v).transpose(1, 2).reshape(len(maps), WIDTH)
        e = head.transfer + head.out(attended)
        e = e + head.mlp(head.mlp_norm(e))
        embeddings.append(e)
        logits.append(task.linear(task.norm(e)))
    return torch.cat(logits, dim=1), torch.stack(embeddings, dim=1)


def test_shared_keys_give_what_each_task_gives_by_itself():
    head = random(make(2, 3, 1)).double()
    maps = torch.randn(3, CHANNELS, 2, 2, dtype=torch.float64)
    logits, embeddings = head(maps, with_embeddings=True)
    for actual, expected in zip((logits, embeddings), literal(head, maps), strict=True):
        torch.testing.assert_close(actual, expected)
    assert torch.equal(head(maps), logits)


def test_new_task_leaves_logits_of_old_ones():
    head, maps = random(make(2, 3)), torch.randn(3, CHANNELS, 2, 2)
    old = head(maps)
    head.grow(2)
    torch.testing.assert_close(head(maps)[:, :5], old)


def test_first_values_are_the_papers():
    torch.manual_seed(0)
    head = TaskAttention(CHANNELS, positions=49, width=384)
    head.grow(50)
    task = head.tasks[0]
    assert 0.018 < task.token.std() < 0.022
    assert 0.018 < head.position.std() < 0.022
    assert all(0.009 < w.std() < 0.011 for w in (task.linear.weight, head.query.weight, head.mlp[0].weight))
    assert not task.linear.bias.any()
    assert head.query.bias is None


def test_new_values_depend_on_seed_and_task_only():
    once = make(2, 3)
    torch.manual_seed(7)
    random_state = torch.get_rng_state()
    again = make(2)
    torch.set_rng_state(random_state)
    again.grow(3)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in once.state_dict().items())
    assert not torch.equal(make(2, 3, seed=1).tasks[1].token, once.tasks[1].token)
    assert not torch.equal(once.tasks[0].token, once.tasks[1].token)


@pytest.mark.parametrize("sizes", [(), (2,), (1, 1, 1), (2, 3, 1)])
def test_checkpoint_brings_its_own_sizes(sizes):
    stored, head = make(*sizes), make(2, 3, seed=5)
    head.load_state_dict(stored.state_dict())
    maps = torch.randn(2, CHANNELS, 2, 2)
    assert torch.equal(head(maps), stored(maps))


def test_old_tasks_freeze_by_name():
    head = make(2, 3)
    set_trainable(head, ["[!t]*", "transfer", "tasks.1.*"])
    frozen = copy.deepcopy(head.tasks[0].state_dict())
    head(torch.randn(3, CHANNELS, 2, 2)).square().sum().backward()
    torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=0.1).step()
    assert all(torch.equal(value, frozen[name]) for name, value in head.tasks[0].state_dict().items())
    assert all(p.grad.any() for name, p in head.named_parameters() if not name.startswith("tasks.0."))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"9 positions \(3×3\), and the attention was made for 4. Give `model"):
        make(2)(torch.randn(1, CHANNELS, 3, 3))
    with pytest.raises(ValueError, match="`width=10`, `num_heads=4`"):
        TaskAttention(4, width=10, num_heads=4)
