"""`FiniteLoss`: ends a run whose loss is NaN or infinite, before a checkpoint of it is written."""

import inspect
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_cil.callbacks.base import StreamCallback
from lightning_cil.callbacks.checkpoint import StreamCheckpoint
from lightning_cil.callbacks.interruption import given_option, interruption
from lightning_cil.callbacks.stream_state import stream_state

LONGEST_WAIT = 1000
"""Batches between two looks where nothing is logged for longer."""


SMALLEST_SCALE = 1e-4
"""Of the loss under `16-mixed`, halved 30 times from its first value; fairseq's `min_loss_scale`."""


class NonFiniteError(RuntimeError):
    """The loss, the weights or all gradients are NaN or infinite. Raised on all ranks at once."""


class FiniteLoss(StreamCallback):
    """Stops training at a loss that is not finite, so that the last checkpoint is always a good one.

    | hook | effect |
    |---|---|
    | `on_train_batch_end` | keeps the loss where it is; on logging steps looks at those since the last look |
    | `on_train_epoch_end` | looks |
    | `on_save_checkpoint` | looks, at the parameters too; nothing is written when something is wrong |
    | `on_train_end` | the same |

    A look is one host synchronisation, and with several processes one small collective, so that all of them stop.
    Gradients that overflow under 16-bit precision are no error: the scaler leaves such steps out. Where it leaves out
    all of them, nothing is learned any more: its scale falls below `SMALLEST_SCALE`, which the next look finds.

    Raises:
        NonFiniteError: With the place of the first bad loss and the checkpoint to go on from.
    """

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._places: list[tuple[int, int]] = []
        self._step = 0
        self._resumed = False
        self._error: NonFiniteError | None = None

    def on_stream_start(self, trainer: Trainer, module: LightningModule, resumed: bool) -> None:
        """Know whether there is an earlier checkpoint."""
        self._resumed = resumed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with no loss."""
        self._losses, self._places, self._error = [], [], None
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss; it is read later."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, Tensor):  # a step that was left out
            return
        step = trainer.global_step
        self._losses.append(loss.detach())
        self._places.append((batch_idx, step))
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        stepped, self._step = step != self._step, step  # under accumulation not after every batch
        if (every and stepped and step % every == 0) or len(self._losses) >= LONGEST_WAIT:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look before the checkpoint callbacks write."""
        self._look(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to write a checkpoint that nobody can go on from."""
        if self._error is not None:
            raise self._error
        self._look(trainer)
        self._look_at_parameters(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what the stage has learned."""
        self._look(trainer)
        self._look_at_parameters(trainer, pl_module)

    def _look(self, trainer: Trainer) -> None:
        losses, places = self._losses, self._places
        if not losses:
            return
        self._losses, self._places = [], []
        values = torch.stack(losses).float().flatten()
        first = (~values.isfinite()).float().argmax()
        found = _worst(trainer, torch.stack([first.float(), values[first]]))
        if found is not None:
            batch, step = places[int(found[0])]
            self._fail(trainer, f"The loss became {found[1]:g} at batch {batch + 1} of ", step)
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and (scale := scaler.get_scale()) < SMALLEST_SCALE:  # the same on all ranks
            what = "The gradients of one step after the other are not finite, so that the scaler leaves all steps out "
            self._fail(trainer, f"{what}(it halved the loss scale to {scale:g}), in ", places[-1][1], many=True)

    def _look_at_parameters(self, trainer: Trainer, module: LightningModule) -> None:
        parameters = [(n, p) for n, p in module.named_parameters() if p.is_floating_point()]
        if not parameters:
            return
        # a shard of its own for each rank under FSDP
        local = [getattr(p, "to_local", lambda p=p: p)().detach() for _, p in parameters]
        bad = torch.stack([~p.isfinite().all() for p in local]).float()
        value = torch.where(bad.any(), torch.nan, 0.0).to(bad)
        found = _worst(trainer, torch.stack([bad.argmax().to(bad), value]))
        if found is not None:
            name = parameters[int(found[0])][0]
            self._fail(
                trainer, f"The weights are not finite any more (first `{name}`) after ", trainer.global_step, many=True
            )

    def _fail(self, trainer: Trainer, what: str, step: int, many: bool = False) -> None:
        rate = next((g["lr"] for o in trainer.optimizers for g in o.param_groups), None)
        place = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        state = stream_state(trainer)
        if state is not None and state.current_task is not None and state.current_stage is not None:
            place += f", task {state.current_task.index + 1}/{state.num_tasks}, stage {state.current_stage.name!r}"
        place += f", global step {step}"
        if rate is not None:
            place += f", learning rate {float(rate):g}"
        expected = "expected finite ones. " if many else "expected a finite loss. "
        self._error = NonFiniteError(f"{what}{place}; {expected}{self._way_on(trainer, rate)}")
        raise self._error

    def _way_on(self, trainer: Trainer, rate: Any) -> str:
        """Which checkpoint to go on from, with which option."""
        state = stream_state(trainer)
        finished = state.current_task.index - 1 if state is not None and state.current_task is not None else -1
        last, task = self._file(trainer, "last.ckpt"), self._file(trainer, f"task_{finished}.ckpt")
        listener = interruption(trainer)
        first = given_option(listener.command if listener else None, "--ckpt_path") if self._resumed else None
        clip = float(trainer.gradient_clip_val or 0)
        ways = [(last or first, "trainer.gradient_clip_val", f"{clip / 10:g}" if clip else "1.0")]
        if rate and takes_argument(type(trainer.lightning_module), "optimizer"):
            ways += [(task or first, "model.optimizer.lr", f"{float(rate) / 10:g}")]
        clipped = "gradients clipped at a smaller value" if clip else "clipped gradients"
        start = "the checkpoint that this run went on from" if self._resumed else "the start"
        if last is not None:
            text = f"Last good checkpoint: {last}. Go on from it with {clipped}, or from "
            text += f"{'the last finished task' if task else start} with a smaller learning rate"
        elif self._resumed:
            text = f"Go on from the same checkpoint as this run did, with {clipped} or a smaller learning rate"
        else:
            text = f"No checkpoint was written before; start again with {clipped} or a smaller learning rate"
        if str(trainer.precision).startswith("16"):
            text += ", or with `precision='bf16-mixed'`, for 16 bits overflow early"
        config = newest_config(Path(trainer.log_dir or trainer.default_root_dir))
        named = _optimizer_options(config, trainer.optimizers)
        commands = [_command(config, *way, before=named if "optimizer" in way[1] else "") for way in ways]
        return "\n  ".join([f"{text}:", *commands])

    def _file(self, trainer: Trainer, name: str) -> Path | None:
        """A checkpoint that this run wrote, or found in its folder when it went on there."""
        writer = next((c for c in trainer.callbacks if isinstance(c, StreamCheckpoint)), None)  # type: ignore[attr-defined]
        if writer is None or not (name in writer.written or self._resumed):
            return None
        path = writer.directory(trainer) / name
        return path if path.exists() else None


def _worst(trainer: Trainer, found: Tensor) -> tuple[float, float] | None:
    """The first (position, value) of all ranks whose value is not finite."""
    if trainer.world_size > 1:
        found = trainer.strategy.all_gather(found)
    rows = [(p, v) for p, v in found.reshape(-1, 2).tolist() if not math.isfinite(v)]
    return min(rows, key=lambda row: row[0], default=None)


def newest_config(folder: Path) -> Path | None:
    """The config that was used last in a run folder: `config.yaml`, or that of the last time the run went on."""
    resumed = [p for p in folder.glob("config_resumed_*.yaml") if p.stem.rpartition("_")[2].isdecimal()]
    config = max(resumed, key=lambda p: int(p.stem.rpartition("_")[2]), default=folder / "config.yaml")
    return config if config.exists() else None


def takes_argument(kind: type, name: str) -> bool:
    """Whether a class's constructor has an argument, its own or, through `**kwargs`, that of a base."""
    for base in kind.__mro__:
        make: Any = vars(base).get("__init__")
        if make is not None:
            parameters = inspect.signature(make).parameters
            if name in parameters:
                return True
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                return False
    return False


def _optimizer_options(config: Path | None, optimizers: Sequence[Optimizer]) -> str:
    """Names the optimizer where a config leaves it to the method: only then can one of its settings be given."""
    model = yaml.safe_load(config.read_text(encoding="utf-8"))["model"] if config is not None else {}
    if not optimizers or (model.get("init_args") or {}).get("optimizer", "") is not None:
        return ""
    kind, group = type(optimizers[0]), optimizers[0].param_groups[0]
    defaults = {
        name: p.default for name, p in inspect.signature(kind).parameters.items() if name not in ("params", "lr")
    }
    given = {name: group[name] for name in defaults if name in group and group[name] != defaults[name]}
    options = {"": f"{kind.__module__}.{kind.__name__}", **{f".{name}": value for name, value in given.items()}}
    return "".join(f" --model.optimizer{name} {value}" for name, value in options.items())


def _command(config: Path | None, checkpoint: Path | str | None, key: str, value: str, before: str = "") -> str:
    """What to type, or what to give in a script."""
    if config is None:
        start = f"ckpt_path='{checkpoint}', " if checkpoint else ""
        return f"{start}{key.rpartition('.')[2]}={value}"
    start = f" --ckpt_path {shlex.quote(str(checkpoint))}" if checkpoint else ""
    return f"lightning-cil fit --config {shlex.quote(str(config))}{start}{before} --{key} {value}"
