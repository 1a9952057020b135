"""Whole rounds of NFL and NFL+ against a plain loop that shares no code with them, on the same batches."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cil.callbacks import StreamCallback
from lightning_cil.methods import NFL, NFLPlus
from lightning_cil.schedulers import FractionStepLR
from tests.callbacks.conftest import NormNet, TinyTasks
from tests.streams import fit, make

EPOCHS = {"2": 4, "3": 4, "4": 2, "5": 2, "gamma": 2}
TEMPERATURE = 2.5
PLUS = {"eta": 0.3, "phi": 0.8, "rho": 0.2, "tau": 0.4, "holdout": 0.2, "code_features": 5}


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.08, momentum=0.9, weight_decay=0.01)


class Recorder(StreamCallback):
    """The old model of every task, what its first stage and Γ start from, its batches, and what step 5 ends with."""

    def __init__(self) -> None:
        self.old: dict[int, Any] = {}
        self.gamma: dict[int, dict[str, Tensor]] = {}
        self.start: dict[int, dict[str, Tensor]] = {}
        self.end: dict[int, dict[str, Tensor]] = {}
        self.batches: dict[tuple[int, str, int], list[tuple[Tensor, Tensor]]] = {}

    def on_task_start(self, trainer: Any, module: Any, task: Any) -> None:
        self.old[task.index] = copy.deepcopy(module).eval().requires_grad_(False)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        state = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.start.setdefault(pl_module.task.index, state)
        if pl_module.stage.name == "gamma":
            self.gamma[pl_module.task.index] = state

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        key = pl_module.task.index, pl_module.stage.name.removeprefix("step "), trainer.current_epoch
        self.batches.setdefault(key, []).append((batch["image"].clone(), batch["target"].clone()))

    def on_stage_end(self, trainer: Any, module: Any, task: Any, stage: Any) -> None:
        if stage.name == "step 5":
            self.end[task.index] = {name: value.clone() for name, value in module.state_dict().items()}


def distillation(teacher: Tensor, student: Tensor, sizes: list[int]) -> Tensor:
    pairs = zip((teacher / TEMPERATURE).split(sizes, 1), (student / TEMPERATURE).split(sizes, 1), strict=True)
    return torch.stack([-(t.softmax(1) * s.log_softmax(1)).sum(1).mean() for t, s in pairs]).sum()


def plain_round(found: Recorder, t: int, plus: bool, options: dict[str, Any]) -> dict[str, Tensor]:
    """Body, heads and Γ after the round of task t, of tasks of two classes."""
    body_old, heads_old, start = found.old[t].backbone, found.old[t].head.blocks, found.start[t]
    sizes = [2] * t if options["scenario"] == "task_il" else [2 * t]
    body, heads, new = copy.deepcopy(body_old), [copy.deepcopy(h) for h in heads_old], nn.Linear(8, 2)
    new.load_state_dict({name: start[f"head.blocks.{t}.{name}"] for name in ("weight", "bias")})
    old_part = [p for head in heads for p in head.parameters()]
    everything = [*body.parameters(), *old_part, *new.parameters()]

    def old_logits(u: Tensor) -> Tensor:
        return torch.cat([head(u) for head in heads], 1)

    def original(u: Tensor) -> Tensor:
        return torch.cat([head(u) for head in heads_old], 1)

    def cross_entropy(u: Tensor, y: Tensor) -> Tensor:
        if options["ce_scope"] == "seen":
            return F.cross_entropy(torch.cat([old_logits(u), new(u)], 1), y)
        return F.cross_entropy(new(u), y - 2 * t)

    def train(step: str, params: list[Any], loss: Any, rate: float, decay: bool, mode: bool = True) -> None:
        for p in everything:
            p.requires_grad_(False)
        for p in params:
            p.requires_grad_(True)
        body.train(mode)
        optimizer, epochs = sgd(params), EPOCHS[step]
        for epoch in range(epochs):
            drops = sum(epoch >= share * epochs for share in (0.5, 0.75)) if decay else 0
            optimizer.param_groups[0]["lr"] = rate * 0.1**drops
            for x, y in found.batches[t, step, epoch]:
                optimizer.zero_grad()
                loss(x, y).backward()
                optimizer.step()

    def tuning(weight: float) -> Any:
        def loss(x: Tensor, y: Tensor) -> Tensor:
            u = body(x)
            return distillation(original(body_old(x)), old_logits(u), sizes) + weight * cross_entropy(u, y)

        return loss

    train("2", [*new.parameters()], lambda x, y: cross_entropy(body(x), y), 0.08, decay=True, mode=False)
    train("3", [*body.parameters(), *old_part], tuning(0.7), 0.08, decay=True)
    train("4", [*body.parameters(), *new.parameters()], tuning(1.3), 0.008, decay=False)
    tuned = copy.deepcopy(body).eval().requires_grad_(False)
    encoder = start["encoders.0.encoder.weight"] if plus else None
    factors = []
    if plus:
        factors = [nn.Parameter(found.gamma[t][f"gammas.0.{name}"].clone()) for name in ("weight", "bias")]

        def gamma(x: Tensor) -> Tensor:
            rows = body_old(x) @ encoder.T @ factors[0].T + factors[1]
            return rows.repeat_interleave(2, 1) if options["gamma_reading"] == "task" else rows

        def gamma_loss(x: Tensor, y: Tensor) -> Tensor:
            rows = body_old(x) @ encoder.T @ factors[0].T + factors[1]
            identity = (rows - 1).square().sum(1).mean()
            if options["gamma_objective"] == "identity":
                return identity
            corrected = gamma(x) * original(body_old(x))
            return 0.4 * identity + 0.3 * distillation(corrected, original(body(x)), sizes)

        train("gamma", factors, gamma_loss, 0.08, decay=False, mode=False)

    def final(x: Tensor, y: Tensor) -> Tensor:
        u, u_old = body(x), body_old(x)
        target = (gamma(x).detach() if plus else 1) * original(u_old)
        loss = 0.3 * distillation(target, original(u), sizes) + 0.8 * cross_entropy(u, y)
        loss = loss + 0.7 * distillation(original(tuned(x)), old_logits(u), sizes)
        if plus:
            loss = loss + 0.2 * ((u @ encoder.T).sigmoid() - (u_old @ encoder.T).sigmoid()).square().sum(1).mean()
        return loss

    train("5", everything, final, 0.008, decay=False)
    parts = {"backbone": body, **{f"head.blocks.{k}": head for k, head in enumerate([*heads, new])}}
    ends = {f"{part}.{name}": v for part, module in parts.items() for name, v in module.state_dict().items()}
    return ends | {f"gammas.0.{name}": v.detach() for name, v in zip(("weight", "bias"), factors, strict=False)}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (NFL, {"scenario": "task_il", "ce_scope": "seen"}),
        (
            NFLPlus,
            {"scenario": "class_il", "ce_scope": "new", "gamma_reading": "sample", "gamma_objective": "identity"},
        ),
        (NFLPlus, {"scenario": "task_il", "ce_scope": "new", "gamma_reading": "task", "gamma_objective": "kd"}),
    ],
    ids=["NFL", "NFL+", "NFL+ with kd"],
)
def test_rounds_equal_a_plain_loop(tmp_path: Path, method: Any, options: dict[str, Any]) -> None:
    """Fresh optimizers, learning rates, modes, targets and copies of all steps, over two tasks with BatchNorm."""
    plus, found = method is NFLPlus, Recorder()
    chosen = {**PLUS, "autoencoder_epochs": 2, "gamma_epochs": 2, "gamma_optimizer": sgd} if plus else {}
    chosen |= {} if plus else {"alpha": 0.3, "beta": 0.8}
    steps = {f"step{k}_epochs": EPOCHS[str(k)] for k in (2, 3, 4, 5)}
    chosen |= {"lambda_": 0.7, "omega": 1.3, "temperature": TEMPERATURE, "lr_scheduler": FractionStepLR, **steps}
    torch.manual_seed(0)
    module = make(method, backbone=NormNet(), optimizer=sgd, **chosen, **options)
    fit(tmp_path, module, TinyTasks(), [found])
    for t in (1, 2):
        for name, value in plain_round(found, t, plus, options).items():
            assert torch.allclose(value, found.end[t][name], atol=1e-5), name
        before, after = found.start[t]["backbone.linear.weight"], found.end[t]["backbone.linear.weight"]
        assert (after - before).abs().max() > 1e-3
