"""`StagedFreezing`: which parameters and statistics a stage changes, in a stream and in a stock fit."""

from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_cil import Stage
from lightning_cil.callbacks import StagedFreezing, StreamState
from lightning_cil.methods import FineTune
from tests.callbacks.conftest import Net, NormNet, Recorder, TinyTasks, stock_fit, vectors
from tests.streams import fit, make, results

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings(r"ignore:Found \d+ module\(s\) in eval mode"),
]

HEAD_THEN_ALL = [Stage("head", 1, ["head.*"]), Stage("all", 2)]


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: v.clone() for name, v in module.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# ---------------------------------------------------------------------- in a stream


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Each stage of a stream with two stages a task: what it changed, and what it trained."""
    seen: list[Any] = []

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_stage_start":
            seen.append(SimpleNamespace(task=args[0].index, name=args[1].name, before=state(module), epochs=0))
        elif hook == "on_train_batch_start":
            seen[-1].modes = {name: m.training for name, m in module.named_modules()}
            seen[-1].optimizer = trainer.optimizers[0]
            seen[-1].trained = sum(len(group["params"]) for group in trainer.optimizers[0].param_groups)
        elif hook == "on_train_epoch_end":
            seen[-1].epochs += 1
        elif hook == "on_stage_end":
            seen[-1].changed = changed(seen[-1].before, state(module))

    torch.manual_seed(0)
    module = make(FineTune, backbone=NormNet(), epochs=7)
    callbacks = [StagedFreezing(HEAD_THEN_ALL), Recorder(look)]
    trainer = fit(tmp_path_factory.mktemp("stages"), module, TinyTasks(val_fraction=0.2), callbacks)
    return SimpleNamespace(seen=seen, trainer=trainer)


def test_its_stages_take_the_place_of_the_methods(stages: SimpleNamespace) -> None:
    found = [(s.task, s.name, s.epochs) for s in stages.seen]
    assert found == [(task, *stage) for task in range(3) for stage in (("head", 1), ("all", 2))]
    named = [(t["task"], t["stage"]) for t in results(stages.trainer)["seconds"]]
    assert [(t, s) for t, s in named if s in ("head", "all")] == [(t, s) for t, s, _ in found]


def test_a_frozen_body_stays_bit_for_bit_with_its_statistics(stages: SimpleNamespace) -> None:
    for stage in stages.seen:
        if stage.name == "head":
            assert stage.changed == {"head.weight", "head.bias"}
        else:
            assert stage.changed == set(stage.before) - {"head.sizes"}


def test_frozen_parts_are_in_eval_mode_and_out_of_the_optimizer(stages: SimpleNamespace) -> None:
    for stage in stages.seen:
        body = {mode for name, mode in stage.modes.items() if name.startswith("backbone")}
        assert body == {stage.name == "all"}
        assert stage.modes["head"]
        assert stage.trained == (2 if stage.name == "head" else 5)
    assert len({id(s.optimizer) for s in stages.seen}) == len(stages.seen)


def test_a_pattern_without_a_parameter_is_named(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"pattern 'haed.\*' matches no parameter.*'head.\*'"):
        fit(tmp_path, make(FineTune), TinyTasks(), [StagedFreezing([Stage("head", 1, ["haed.*"])])])


# ---------------------------------------------------------------------- in a stock fit


class Validated(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


@pytest.fixture(scope="module")
def epochs() -> SimpleNamespace:
    """Each epoch of a stock fit with validation: what it changed."""
    torch.manual_seed(0)
    seen: list[Any] = []
    net = Validated()
    before = [state(net)]

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_train_batch_start":
            modes.append({name: m.training for name, m in module.named_modules()})
        if hook == "on_train_epoch_end":
            seen.append(changed(before[-1], state(module)))
            before.append(state(module))

    modes: list[Any] = []
    callback = StagedFreezing(HEAD_THEN_ALL)
    trainer = stock_fit(
        net,
        vectors([0, 1, 2, 3]),
        [callback, Recorder(look)],
        epochs=4,
        validation=DataLoader(vectors([0, 1, 2, 3]), batch_size=20),
        num_sanity_val_steps=1,
    )
    return SimpleNamespace(seen=seen, modes=modes, net=net, callback=callback, trainer=trainer)


def test_stock_fit_enters_the_stages_by_epoch(epochs: SimpleNamespace) -> None:
    everything = set(epochs.net.state_dict())
    assert epochs.seen == [{"head.weight", "head.bias"}, everything, everything, everything]


def test_stock_fit_keeps_the_modes_through_validation(epochs: SimpleNamespace) -> None:
    steps = len(epochs.modes) // 4
    for number, modes in enumerate(epochs.modes):
        assert {mode for name, mode in modes.items() if name.startswith("body")} == {number >= steps}
        assert modes["head"]


def test_stock_fit_leaves_nothing_frozen(epochs: SimpleNamespace) -> None:
    assert all(p.requires_grad for p in epochs.net.parameters())
    assert all(m.training for m in epochs.net.modules())


def test_a_stock_fit_that_ends_in_a_frozen_stage_leaves_nothing_frozen() -> None:
    net = Net()
    stock_fit(net, vectors([0, 1]), [StagedFreezing([Stage("head", 1, ["head.*"])])])
    assert all(p.requires_grad for p in net.parameters())
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize("frozen_after_all", [False, True])
def test_stock_fit_freezes_and_unfreezes_in_any_order(frozen_after_all: bool) -> None:
    """Momentum and weight decay of a part that was trained before do not move it while it is frozen."""
    order = [Stage("all", 1), Stage("head", 1, ["head.*"])]
    found: list[set[str]] = []
    net = Net()
    before = [state(net)]

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        if hook == "on_train_epoch_end":
            found.append(changed(before[-1], state(module)))
            before.append(state(module))

    stages = order if frozen_after_all else order[::-1]
    stock_fit(net, vectors([0, 1, 2, 3]), [StagedFreezing(stages), Recorder(look)], epochs=2)
    head, everything = {"head.weight", "head.bias"}, set(net.state_dict())
    assert found == ([everything, head] if frozen_after_all else [head, everything])


def test_stages_by_epoch() -> None:
    callback = StagedFreezing([Stage("a", 2, ["a"]), Stage("b", 1, ["b"]), Stage("c", 3, ["c"])])
    assert [callback.stage_at(epoch).name for epoch in range(8)] == list("aabccccc")


def test_a_fit_that_broke_off_does_not_confuse_the_next() -> None:
    callback, frozen = StagedFreezing([Stage("head", 5, ["head.*"])]), []

    class Broken(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            raise RuntimeError("broken off")

    def look(hook: str, trainer: Any, module: Any, *args: Any) -> None:
        frozen.append(not module.body[0].weight.requires_grad)

    with pytest.raises(RuntimeError, match="broken off"):
        stock_fit(Net(), vectors([0, 1]), [callback, Broken()])
    stock_fit(Net(), vectors([0, 1]), [callback, Recorder(look)])
    assert all(frozen)
    assert frozen


def test_a_fit_that_broke_off_leaves_nothing_frozen() -> None:
    """An optimizer of trainable parameters is made before the next fit's first epoch."""

    class Broken(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            raise KeyboardInterrupt

    net = Net()
    with pytest.raises(SystemExit):
        stock_fit(net, vectors([0, 1]), [StagedFreezing([Stage("head", 5, ["head.*"])]), Broken()])
    assert all(p.requires_grad for p in net.parameters())


def test_no_stage_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`stages=\[\]`: expected at least one"):
        StagedFreezing([])


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("in_stream", [False, True])
def test_ddp_is_refused_in_a_stock_fit_only(world_size: int, in_stream: bool) -> None:
    stream = StreamState()
    stream.current_stage = HEAD_THEN_ALL[0] if in_stream else None
    trainer: Any = SimpleNamespace(
        strategy=DDPStrategy(), world_size=world_size, callbacks=[stream] if in_stream else []
    )
    callback = StagedFreezing(HEAD_THEN_ALL)
    if world_size > 1 and not in_stream:
        with pytest.raises(ValueError, match=r"stock Trainer with DDP.*Use `IncrementalTrainer`"):
            callback.on_fit_start(trainer, Net())
    else:
        callback.on_fit_start(trainer, Net())
