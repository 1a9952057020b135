"""`extract_features` against the module called directly."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_cil.callbacks.features import extract_features
from lightning_cil.methods import FineTune
from tests.callbacks.conftest import Net, NormNet, TinyTasks, stock_fit, vectors
from tests.streams import fit, make

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A trained network with BatchNorm and its data."""
    torch.manual_seed(0)
    module, data = make(FineTune, backbone=NormNet()), TinyTasks()
    trainer = fit(tmp_path_factory.mktemp("features"), module, data, stop_after_task=0)
    return SimpleNamespace(trainer=trainer, module=module, data=data)


def direct(module: Any, image: Tensor) -> Tensor:
    modes = {name: m.training for name, m in module.named_modules()}
    module.eval()
    with torch.no_grad():
        out = module.features(image)
    for name, part in module.named_modules():
        part.training = modes[name]
    return out


def test_features_are_the_modules_own(stream: SimpleNamespace) -> None:
    index = torch.tensor([40, 3, 17, 61, 5, 8, 30, 2, 70, 44])  # two batches of 7
    features, found = extract_features(stream.trainer, stream.module, stream.data.eval_loader(index))
    assert found.tolist() == sorted(index.tolist())
    images = stream.data.augment(stream.data.stored_images(found))
    torch.testing.assert_close(features, direct(stream.module, images))
    assert (features.dtype, features.device.type, features.requires_grad) == (torch.float32, "cpu", False)


def test_modes_and_statistics_stay(stream: SimpleNamespace) -> None:
    module = stream.module
    module.train()
    module.backbone.norm.eval()  # a part that a stage has frozen
    modes = {name: m.training for name, m in module.named_modules()}
    before = {name: v.clone() for name, v in module.state_dict().items()}
    extract_features(stream.trainer, module, stream.data.eval_loader(torch.arange(20)))
    assert {name: m.training for name, m in module.named_modules()} == modes
    assert all(torch.equal(v, before[name]) for name, v in module.state_dict().items())
    module.train()


def test_modes_of_all_kinds_come_back(stream: SimpleNamespace) -> None:
    for mode in (True, False):
        stream.module.train(mode)
        extract_features(stream.trainer, stream.module, stream.data.eval_loader(torch.arange(5)))
        assert {m.training for m in stream.module.modules()} == {mode}
    stream.module.train()


def test_pairs_are_numbered_as_they_come() -> None:
    net, data = Net(), vectors([0, 1, 2])
    trainer = stock_fit(net, data, [])
    features, index = extract_features(trainer, net, DataLoader(data, batch_size=7))
    assert index.tolist() == list(range(30))
    torch.testing.assert_close(features, direct(net, data.tensors[0]))


class Scaled(Net):
    calls = 0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls += 1
        return [batch[0] / 4, batch[1]]


def test_the_users_batch_transform_runs_once() -> None:
    net, data = Scaled(), vectors([0, 1])
    trainer = stock_fit(net, data, [])
    net.calls = 0
    features, _ = extract_features(trainer, net, DataLoader(data, batch_size=10))
    assert net.calls == 2
    torch.testing.assert_close(features, direct(net, data.tensors[0] / 4))


def test_pairs_are_the_same_on_all_ranks_and_not_gathered() -> None:
    """Every rank goes over the whole data set: gathering would repeat each sample."""
    net, data = Net(), vectors([0, 1])
    trainer = stock_fit(net, data, [])
    two: Any = SimpleNamespace(strategy=trainer.strategy, precision_plugin=trainer.precision_plugin, world_size=2)
    _, index = extract_features(two, net, DataLoader(data, batch_size=10))
    assert index.tolist() == list(range(20))


def test_shares_of_all_ranks_are_put_in_order(stream: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks with a share each: what `all_gather_object` of the other gives is merged by index."""
    index = torch.arange(10)
    expected, _ = extract_features(stream.trainer, stream.module, stream.data.eval_loader(index))
    other = [index[1::2], expected[1::2]]

    def gather(parts: list[Any], own: Any) -> None:
        parts[0], parts[1] = own, other

    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    trainer: Any = SimpleNamespace(
        strategy=stream.trainer.strategy, precision_plugin=stream.trainer.precision_plugin, world_size=2
    )
    features, found = extract_features(trainer, stream.module, stream.data.eval_loader(index[::2]))
    assert found.tolist() == index.tolist()
    torch.testing.assert_close(features, expected)


def test_the_trainers_precision_is_used_and_float32_given(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []

    class Typed(Net):
        def features(self, x: Tensor) -> Tensor:
            seen.append(torch.nn.functional.linear(x, self.body[0].weight).dtype)
            return super().features(x)

    net, data = Typed(), vectors([0, 1])
    trainer = stock_fit(net, data, [], precision="bf16-mixed")
    seen.clear()
    features, _ = extract_features(trainer, net, DataLoader(data, batch_size=20))
    assert seen == [torch.bfloat16]
    assert features.dtype == torch.float32


def test_a_module_without_features_is_refused() -> None:
    data = TensorDataset(torch.zeros(1, 3), torch.zeros(1))
    with pytest.raises(TypeError, match=r"Linear has no method `features\(image\)`.*selection='balanced'"):
        extract_features(None, torch.nn.Linear(3, 2), DataLoader(data))  # type: ignore[arg-type]
