"""Streams that the tests of this folder break off, by name; a config can name the classes by their paths."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from lightning_cil import IncrementalTrainer, Stage, Task
from lightning_cil.callbacks import EarlyStopping, ReplayBuffer, StreamCheckpoint
from lightning_cil.data import ImageFolderTasks, IncrementalDataModule, MultiLabelDigits
from lightning_cil.methods import (
    AGCN,
    CSC,
    ER,
    KRT,
    L2P,
    MEMO,
    NFL,
    TOPIC,
    Coil,
    DERPlusPlus,
    FineTune,
    ICaRL,
    IncrementalModule,
    LwF,
    MLDERPlusPlus,
    MLPODNet,
    MMICaRL,
    MultimodalCIL,
    NFLPlus,
    RebLL,
)
from lightning_cil.networks import MIFE, Backbone, CifarResNet, Fusion
from lightning_cil.networks.audioclip import Prompts
from tests.callbacks.conftest import TinyTasks
from tests.streams import ROUND, sgd, spoken


class DropoutNet(nn.Module):
    """A backbone that draws random numbers and keeps running statistics."""

    num_features = 8

    def __init__(self, pixels: int = 36) -> None:
        super().__init__()
        self.linear = nn.Linear(pixels, self.num_features, bias=False)
        self.norm = nn.BatchNorm1d(self.num_features)
        self.dropout = nn.Dropout(0.3)

    def forward(self, image: Tensor) -> Tensor:
        return self.dropout(self.norm(self.linear(image.flatten(1))).relu())


class PlainNet(nn.Module):
    """A backbone that several processes train to the same weights as one."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(36, self.num_features)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(image.flatten(1)).relu()


class ThreeStages(FineTune):
    """Head, body and head, then everything, each with an optimizer of its own."""

    def stages(self, task: Task) -> list[Stage]:
        return [
            Stage("head", 1, train=["head.*"], optimizer=lambda p: torch.optim.Adam(p, lr=0.01)),
            Stage("body", 2, train=["backbone.*"]),
            Stage("all", 1),
        ]


class BreakFromEnvironment(Callback):
    """Sends its process the signal `BREAK_WITH` before step `BREAK_AT`."""

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == int(os.environ.get("BREAK_AT", -1)):
            os.kill(os.getpid(), signal.Signals[os.environ["BREAK_WITH"]])


def step_lr(optimizer: Any) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)


def tiny(method: type[IncrementalModule], **options: Any) -> IncrementalModule:
    return method(**{"backbone": DropoutNet(), "epochs": 2, "optimizer": sgd, "lr_scheduler": step_lr, **options})


NETWORKS: dict[str, tuple[type[IncrementalModule], dict[str, Any]]] = {
    "csc": (CSC, {"graph_width": 16}),
    "krt": (KRT, {"positions": 16, "width": 16, "num_heads": 2, "weight_std": 0.1}),
    "ml_podnet": (MLPODNet, {}),
    "agcn": (AGCN, {"vectors": "random", "vector_size": 8, "graph_width": 16, "graph_weight": 1.0}),
    "l2p": (L2P, {"backbone": Backbone("test_vit", in_channels=1)}),
}
"""Methods with networks of their own, on maps of `small_cnn` or a transformer."""

TOWERS: dict[str, tuple[type[IncrementalModule], dict[str, Any]]] = {
    "multimodal": (
        MultimodalCIL,
        {
            "mife": MIFE(rank=4, freeze_after_task=1),
            "fusion": Fusion(threshold="quantile:0.5"),
            "prompts": Prompts(templates=3, sample=2),
            "optimizer": sgd,
        },
    ),
    "mm_icarl": (MMICaRL, {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3)}),
    "topic": (
        TOPIC,
        {
            "num_nodes": 8,
            "new_nodes": 6,
            "anchor_target": "features",
            "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3),
        },
    ),
}
"""Methods on AudioCLIP's towers, for pictures with sounds."""


def build(case: dict[str, Any]) -> tuple[IncrementalModule, IncrementalDataModule, list[Callback], dict[str, Any]]:
    """Module, data, callbacks and the trainer's options of a case."""
    name = case["name"]
    data: IncrementalDataModule = TinyTasks(**case.get("data", {}))
    callbacks: list[Callback] = []
    if case.get("checkpoint", {}) is not None:
        callbacks.append(StreamCheckpoint(**case.get("checkpoint", {})))
    if name == "er":
        module, callbacks = tiny(ER), [ReplayBuffer(total=12), *callbacks]
    elif name == "derpp":
        memory = ReplayBuffer(total=8, update="batch", columns=["logits"], num_draws=2)
        module, callbacks = tiny(DERPlusPlus), [memory, *callbacks]
    elif name == "icarl":
        module, callbacks = tiny(ICaRL), [ReplayBuffer(total=8, selection="herding"), *callbacks]
    elif name == "coil":
        module = tiny(Coil, solve_every=2, retrospective_weight=0.1)
        callbacks = [ReplayBuffer(total=8, selection="herding"), *callbacks]
    elif name == "memo":
        module = tiny(MEMO, backbone=CifarResNet(8, in_channels=1), first_epochs=1)
        callbacks = [ReplayBuffer(total=8, selection="herding"), *callbacks]
    elif name in NETWORKS:
        data = MultiLabelDigits(train_images=40, test_images=20, sizes=[4, 3, 3], batch_size=8)
        method, options = NETWORKS[name]
        module = tiny(method, **{"backbone": Backbone("small_cnn", in_channels=1), **options})
    elif name in ("rebll", "ml_derpp"):
        data = MultiLabelDigits(train_images=40, test_images=20, sizes=[4, 3, 3], batch_size=8)
        if name == "rebll":
            module = tiny(RebLL, backbone=DropoutNet(256))
        else:
            memory = ReplayBuffer(
                per_class=1, update="batch", columns=["logits"], num_draws=2, repeat=False, dedupe=True
            )
            module, callbacks = tiny(MLDERPlusPlus, backbone=DropoutNet(256)), [memory, *callbacks]
    elif name == "lwf":
        module = tiny(LwF)
    elif name == "nfl":
        module = tiny(NFL, **{**ROUND, "epochs": 1, **case["method"]})
    elif name == "nfl_plus":
        phases = {"autoencoder_epochs": 1, "gamma_epochs": 1, "holdout": 0.2}
        module = tiny(NFLPlus, **{**ROUND, **phases, "epochs": 1, **case["method"]})
    elif name == "stages":
        module = tiny(ThreeStages, lr_scheduler=None)
    elif name == "plain":
        module = tiny(FineTune, backbone=PlainNet())
    elif name == "early":
        module = tiny(FineTune, epochs=4)
        callbacks = [EarlyStopping("val/class_il", mode="max", patience=1, min_delta=1.0), *callbacks]
    elif name in TOWERS:
        data = spoken(Path(case["sounds"]), batch_size=8, num_tasks=None, sizes=[4, 6])
        method, options = TOWERS[name]
        module = method(**{"towers": "tiny", "epochs": 1, **options})  # type: ignore[arg-type]
    elif name == "files":
        folder = case["images"]
        data = ImageFolderTasks(folder, image_size=32, sizes=[2, 2], batch_size=4, num_workers=case["workers"])
        module = tiny(ER, backbone=Backbone("small_cnn", in_channels=3), lr_scheduler=None)
        callbacks = [ReplayBuffer(total=8, selection="herding"), *callbacks]
    else:
        raise ValueError(name)
    options = dict(case.get("trainer", {}))
    if "scaler" in case:
        scaler = torch.amp.GradScaler("cpu", **case["scaler"])
        options["plugins"] = [MixedPrecision("16-mixed", "cpu", scaler=scaler)]
    return module, data, callbacks, options


def fit(case: dict[str, Any], root: Path, ckpt_path: str | None, extra: list[Callback]) -> IncrementalTrainer:
    """One run of a case, in this process."""
    seed_everything(5, verbose=False)
    module, data, callbacks, options = build(case)
    defaults = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "log_every_n_steps": 2}
    trainer = IncrementalTrainer(callbacks=[*extra, *callbacks], default_root_dir=root, **{**defaults, **options})
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer
