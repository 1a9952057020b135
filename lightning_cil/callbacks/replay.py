"""`ReplayBuffer`: exemplars of old classes, mixed into training batches."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_cil._random import counter_hash, fold_seed, permutation
from lightning_cil._transfer import to_device
from lightning_cil.callbacks.base import StreamCallback, refuse_processes_that_end
from lightning_cil.callbacks.features import extract_features
from lightning_cil.callbacks.stream_state import StreamState, in_stream, stream_state
from lightning_cil.replay import (
    ExemplarStore,
    Remainder,
    class_quotas,
    draw_rows,
    first_per_class,
    herding,
    herding_inner_product,
    last_writers,
    random_choice,
    reservoir_slots,
)
from lightning_cil.types import Task

CHECKPOINT_KEY = "lightning_cil.ReplayBuffer"
COPIED_AT_ONCE = 1024
"""Images between two places, so that choosing exemplars takes little memory beside them."""
LARGEST_STORED = 64

Selection = Literal["reservoir", "balanced", "herding", "herding_inner_product"]
BY_FEATURES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "herding": herding,
    "herding_inner_product": herding_inner_product,
}


class ReplayBuffer(StreamCallback):
    """Keeps exemplars and adds some to every training batch.

    | hook | effect |
    |---|---|
    | `on_train_batch_start` | dict batches: `replay_image`, `replay_target`, `replay_task`, `replay_index` and `replay_<column>`, of a second draw `replay2_image` and so on; `[x, y]` lists: exemplars are appended to x and y |
    | `on_train_batch_end` | `update='batch'`: the batch is offered to the reservoir, with what the step returned for `columns` |
    | `on_task_end` | `update='task'`: exemplars of the task are selected |
    | `on_fit_start` | stock fit: refuses processes that end with it |
    | `on_train_end` | stock fit: the same as `on_task_end`, from the fit's dataset |
    | checkpoint | the store under an own key, weights_only-safe |

    Multi-label (reservoir only): `target` float `[R, C]`, `known` and `annotated` bool `[R, C]` are stored, and are in the
    batch as `replay_target`, `replay_known`, `replay_annotated`. A stock fit has y float `[B, C]`, NaN where unknown.

    The budget is global: it does not grow with the number of processes, and the store is the same on all of them.
    Draws are functions of (seed, step): nothing else need be saved.

    Args:
        total: Budget in exemplars, shared by all classes seen.
        per_class: Budget in exemplars for each class; of a reservoir, times the classes of the stream. Exactly one of
            `total` and `per_class`.
        selection: `reservoir`: every sample has the same chance; `balanced`: equal shares of classes,
            chosen at random; `herding`: equal shares, in iCaRL's order (needs `module.features`);
            `herding_inner_product`: the same by the rule of iCaRL's script.
        update: When samples are offered: `task`: each once, at the end of its task; `batch`: with every batch of
            every epoch, as in online replay (reservoir only).
        batch_size: Exemplars added to each process's batch; by default as many as the batch has samples.
        storage: `uint8`: images; `index`: positions in the training set, read again when drawn; `auto`: `uint8` up to
            64 pixels a side.
        allow_missing_classes: Accept a budget below the number of classes: some classes then have no exemplar.
        columns: What is stored beside image and label: keys of the dict that `training_step` returns, each `[B, …]`
            (`update='batch'` only), such as the logits of the augmented images.
        num_draws: Independent draws a step, each of `batch_size`.
        repeat: Whether a batch that asks for more exemplars than there are has some of them more than once; otherwise
            it gets as many as there are.
        grow: A reservoir with `per_class` grows with the classes seen: the first samples of a task fill the new room.
            Otherwise it has its full size from the first task on.
        dedupe: Store each image once (multi-label, where it comes again in other tasks): what a later task annotates
            in a stored image is added to its labels.
        remainder: What becomes of the part of `total` that the classes cannot share equally: `first_classes`: they have
            one exemplar more; `unused`: nothing, as in iCaRL, so that a budget below the number of classes holds none.
        seed: Of a stock fit; a stream has its own.

    Raises:
        ValueError: For a budget that is missing, doubled, or below 1, and for combinations that cannot be.
    """  # noqa: E501

    part_of_method = True

    def __init__(
        self,
        total: int | None = None,
        per_class: int | None = None,
        selection: Selection = "reservoir",
        update: Literal["task", "batch"] = "task",
        batch_size: int | None = None,
        storage: Literal["auto", "uint8", "index"] = "auto",
        allow_missing_classes: bool = False,
        columns: Sequence[str] = (),
        num_draws: int = 1,
        repeat: bool = True,
        grow: bool = False,
        dedupe: bool = False,
        remainder: Remainder = "first_classes",
        seed: int = 0,
    ) -> None:
        if (total is None) == (per_class is None):
            raise ValueError(
                f"got `total={total}` and `per_class={per_class}`; expected exactly one of them: `total` exemplars for "
                "all classes, or `per_class` for each."
            )
        for name, number in (("total", total), ("per_class", per_class), ("batch_size", batch_size)):
            if number is not None and number < 1:
                raise ValueError(
                    f"`{name}={number}`: expected at least 1. To train without exemplars, choose a method that needs "
                    "none, such as `FineTune` or `LwF`, and take the callback out; a method that replays would add "
                    "its own."
                )
        if selection not in ("reservoir", "balanced", *BY_FEATURES):
            raise ValueError(
                f"`selection={selection!r}`: expected 'reservoir', 'balanced', 'herding' or 'herding_inner_product'."
            )
        if grow and (selection != "reservoir" or per_class is None):
            raise ValueError(
                f"`grow=True` with `selection={selection!r}`, `total={total}`: only a reservoir with `per_class` grows."
            )
        if update == "batch" and selection != "reservoir":
            raise ValueError(f"`update='batch'` with `selection={selection!r}`: only a reservoir fills batch by batch.")
        if isinstance(columns, str) or (columns and update != "batch"):
            raise ValueError(
                f"got `columns={columns!r}` with `update={update!r}`; expected a list of names, and `update='batch'`, "
                "as a training step's outputs are there with its batch only."
            )
        if num_draws < 1:
            raise ValueError(f"`num_draws={num_draws}`: expected at least 1 draw a step.")
        shared = total is not None and selection != "reservoir"
        if remainder not in ("first_classes", "unused") or (remainder == "unused" and not shared):
            raise ValueError(
                f"got `remainder={remainder!r}` with `selection={selection!r}`, `per_class={per_class}`; expected "
                "'first_classes', or 'unused' where equal shares of `total` leave something over."
            )
        self.total = total
        self.per_class = per_class
        self.remainder: Remainder = remainder
        self.selection: Selection = selection
        self.update = update
        self.batch_size = batch_size
        self.storage = storage
        self.allow_missing_classes = allow_missing_classes
        self.columns = list(columns)
        self.num_draws = num_draws
        self.repeat = repeat
        self.grow = grow
        self.dedupe = dedupe
        self.seed = seed
        self.store = ExemplarStore(capacity=total)
        self.num_offered = 0
        self._image_bytes = 0
        self._by_index = False
        self._fits = 0
        self._ahead: dict[int, tuple[int, int, Future[Tensor]]] = {}
        """Step, size and decoded images of the draws that come next, by their number in the step."""

    def __repr__(self) -> str:
        budget = f"total={self.total}" if self.total is not None else f"per_class={self.per_class}"
        return f"ReplayBuffer({budget}, selection={self.selection!r}, update={self.update!r})"

    def __len__(self) -> int:
        """Exemplars stored."""
        return len(self.store)

    def __bool__(self) -> bool:
        """A callback, not a container: always true."""
        return True

    def digest(self) -> str:
        """SHA-256 of the contents, equal on all ranks."""
        return hashlib.sha256(f"{self.store.digest()}{self.num_offered}".encode()).hexdigest()

    # ------------------------------------------------------------------ drawing

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Add exemplars to the batch."""
        _check_batch(trainer, batch)
        if not isinstance(batch, dict) and (self.columns or self.num_draws > 1):
            raise TypeError(
                f"`ReplayBuffer` with `columns={self.columns}`, `num_draws={self.num_draws}` got a list [x, y], to "
                "which they cannot be added; expected the dict of an `IncrementalDataModule`. Leave both out."
            )
        if not len(self.store):
            return
        current = batch["image"] if isinstance(batch, dict) else batch[0]
        size, step = self.batch_size or len(current), trainer.fit_loop.total_batch_idx
        if not self.repeat:
            size = min(size, max(1, len(self.store) // trainer.world_size))
        if isinstance(batch, dict):
            for number in range(self.num_draws):
                key = "replay" if number == 0 else f"replay{number + 1}"
                drawn = self.draw(trainer, size, step, number)
                batch[f"{key}_image"] = self._images(trainer, drawn, size, step, number, current.device)
                for name in (n for n in drawn if n not in ("image", "key")):
                    batch[f"{key}_{name}"] = to_device(drawn[name], current.device)
        else:
            drawn = self.draw(trainer, size, step)
            x, y = drawn["image"], drawn["target"]
            if self.update == "task":  # stored as the dataset gives them: the user's batch transforms are still to come
                x, y = trainer.strategy.batch_to_device([x, y])
            batch[0] = torch.cat([batch[0], x.to(batch[0])])
            batch[1] = torch.cat([batch[1], y.to(batch[1])])

    def draw(self, trainer: Trainer, size: int, step: int, number: int = 0) -> dict[str, Tensor]:
        """This rank's share of the step's exemplars, as stored, with their augmentation `key`.

        Draws of one step that differ in `number` are independent.
        """
        seed = self._seed(trainer)
        words = [step, number] if number else [step]
        rows = draw_rows(len(self.store), size * trainer.world_size, seed, 3, *words)
        drawn = self.store.gather(rows[trainer.global_rank * size : (trainer.global_rank + 1) * size])
        position = torch.arange(trainer.global_rank * size, (trainer.global_rank + 1) * size)
        return {**drawn, "key": counter_hash(position, seed, 4, *words)}

    def _images(
        self, trainer: Trainer, drawn: dict[str, Tensor], size: int, step: int, number: int, device: torch.device
    ) -> Tensor:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        image = drawn["image"] if "image" in drawn else self._decoded(trainer, drawn, size, step, number)
        image, key = to_device(image, device), to_device(drawn["key"], device)
        if image.dtype == torch.uint8:
            image = datamodule.transform(image, key)
        return image

    def _decoded(self, trainer: Trainer, drawn: dict[str, Tensor], size: int, step: int, number: int) -> Tensor:
        """The images of a draw, read while the last step was computed; starts to read those of the next."""
        load = trainer.datamodule.load_augmented  # type: ignore[attr-defined]
        ahead = self._ahead.pop(number, None)
        if ahead is not None and ahead[:2] == (step, size):
            image = ahead[2].result()
        else:
            image = load(drawn["index"], drawn["key"])
        if self.update == "task" and not trainer.is_last_batch:
            # a function of the step: the store stays as it is until then
            upcoming = self.draw(trainer, size, step + 1, number)
            reader = ThreadPoolExecutor(1)
            self._ahead[number] = (step + 1, size, reader.submit(load, upcoming["index"], upcoming["key"]))
            reader.shutdown(wait=False)
        return image

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing has been read ahead for this fit; a reservoir without a size is refused."""
        self._ahead = {}
        if self.selection == "reservoir":
            self._capacity(trainer)

    # ------------------------------------------------------------------ filling

    def on_stream_start(self, trainer: Trainer, module: LightningModule, resumed: bool) -> None:
        """A new stream starts without exemplars.

        Raises:
            ValueError: For multi-label data and a selection by class, or `dedupe` without such data.
        """
        multi = _is_multi(trainer)
        if (multi and self.selection != "reservoir") or (self.dedupe and not multi):
            raise ValueError(
                f"`selection={self.selection!r}`, `dedupe={self.dedupe}` with "
                f"{'multi' if multi else 'single'}-label data; expected 'reservoir' for multi-label data, where an "
                "image has no single class, and `dedupe` only there."
            )
        if not resumed:
            self.store.clear()
            self.num_offered = self._image_bytes = 0
        if self.per_class is not None and not len(self.store):  # all memory at once: growing would copy it
            self.store.capacity = self.per_class * trainer.datamodule.num_classes  # type: ignore[attr-defined]

    def on_task_start(self, trainer: Trainer, module: LightningModule, task: Task) -> None:
        """Check the budget against the classes to come."""
        self._check_budget(trainer.datamodule.num_classes)  # type: ignore[attr-defined]

    def _check_budget(self, num_classes: int) -> None:
        if self.total is not None and self.total < num_classes and not self.allow_missing_classes:
            raise ValueError(
                f"`total={self.total}` exemplars are fewer than the {num_classes} classes, so that some "
                "would have none. Raise `total`, or accept it with `allow_missing_classes=True`."
            )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Offer the batch to the reservoir."""
        if self.update != "batch":
            return
        if isinstance(batch, dict):
            given = {name: batch[name] for name in ("index", "target", "task")} | self._returned(outputs, batch)
            if "known" in batch:
                given |= {"known": batch["known"], "annotated": batch["known"]}
            rows, slots = self._reservoir(trainer, len(batch["index"]) * trainer.world_size)
            if len(rows):  # later batches change less and less: only those that do wait for the device
                columns = {n: _gather(trainer, v)[rows.to(v.device)].cpu() for n, v in given.items()}
                self._write(trainer, *(self._new_images(slots, columns) if self.dedupe else (slots, columns)))
        else:
            size = len(batch[0]) - (self.batch_size or len(batch[0]) // 2 if len(self.store) else 0)
            x, y = _gather(trainer, batch[0][:size].detach()), _gather(trainer, batch[1][:size])
            rows, slots = self._reservoir(trainer, len(x))
            self.store.write(slots, {"image": x.cpu()[rows], "target": y.cpu()[rows]})

    def _returned(self, outputs: Any, batch: Any) -> dict[str, Tensor]:
        """What the training step returned for `columns`."""
        found: dict[str, Tensor] = {}
        for name in self.columns:
            value = outputs.get(name) if isinstance(outputs, Mapping) else None
            if not isinstance(value, Tensor) or len(value) != len(batch["index"]):
                shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise TypeError(
                    f"`columns` names {name!r}, for which `training_step` returned {shape}; expected a tensor "
                    f"[{len(batch['index'])}, …]. Return {{'loss': loss, {name!r}: …}}, or leave the column out."
                )
            found[name] = value.detach()
        return found

    def on_task_end(self, trainer: Trainer, module: LightningModule, task: Task) -> None:
        """Select exemplars of the finished task and shorten those of older ones."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        index = datamodule.train_indices([task.index])
        if self.dedupe and len(self.store):
            index = self._add_annotations(datamodule, index, task)
        if self.update == "batch":
            return
        if _is_multi(trainer):
            self._offer_multi(trainer, index[permutation(len(index), self._seed(trainer), 5, task.index)], task)
            return
        target = datamodule.labels("train")[index]
        seed = self._seed(trainer)
        if self.selection == "reservoir":
            order = permutation(len(index), seed, 5, task.index)
            self._offer_indices(trainer, index[order], target[order], torch.full_like(index, task.index))
            return
        quotas = self.quotas(task.num_seen)
        rule = BY_FEATURES.get(self.selection)
        if rule is not None:
            features, index = extract_features(trainer, module, datamodule.eval_loader(index))
            target = datamodule.labels("train")[index]
            chosen = _by_class(target, quotas, lambda members, m: rule(features[members], m))
            chosen = trainer.strategy.broadcast(chosen)
        else:
            chosen = _by_class(target, quotas, lambda members, m: random_choice(index[members], m, seed, 6))
        if len(self.store):
            self.store.keep(first_per_class(self.store.column("target"), quotas))
        task_of = torch.full_like(chosen, task.index)
        for part in torch.split(torch.arange(len(chosen)), COPIED_AT_ONCE):
            rows = chosen[part]
            columns = {"index": index[rows], "target": target[rows], "task": task_of[part]}
            self.store.append(self._with_images(trainer, columns))

    def quotas(self, num_seen: int) -> Tensor:
        """Exemplars of each class seen: `per_class`, or equal shares of `total`; long `[num_seen]`."""
        if self.per_class is not None:
            return torch.full((num_seen,), self.per_class)
        assert self.total is not None
        return class_quotas(self.total, num_seen, self.remainder)

    def _add_annotations(self, datamodule: Any, index: Tensor, task: Task) -> Tensor:
        """Give stored images what the task annotates in them; the images that are not stored yet."""
        stored = self.store.column("index")
        again = torch.isin(stored, index).nonzero().flatten()
        target, known = datamodule.task_labels(stored[again], task)
        for name, values in (("target", target), ("known", known), ("annotated", known)):
            column = self.store.column(name)
            column[again] = torch.where(known, values.to(column.dtype), column[again])
        return index[~torch.isin(index, stored)]

    def _new_images(self, slots: Tensor, columns: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Leave out what is stored already or comes twice; slots behind the last row close up."""
        index, stored = columns["index"], self.store.column("index") if len(self.store) else columns["index"][:0]
        order = index.argsort(stable=True)
        twice = torch.zeros_like(index, dtype=torch.bool)
        twice[order[1:]] = index[order][1:] == index[order][:-1]
        kept = ~(twice | torch.isin(index, stored))
        slots = slots[kept]
        behind = slots >= len(stored)
        slots[behind] = len(stored) + torch.arange(int(behind.sum()))
        return slots, {name: values[kept] for name, values in columns.items()}

    def _offer_multi(self, trainer: Trainer, index: Tensor, task: Task) -> None:
        rows, slots = self._reservoir(trainer, len(index))
        target, known = trainer.datamodule.task_labels(index[rows], task)  # type: ignore[attr-defined]
        columns = {"target": target, "known": known, "annotated": known}
        self._write(trainer, slots, {"index": index[rows], "task": torch.full_like(rows, task.index), **columns})

    def _offer_indices(self, trainer: Trainer, index: Tensor, target: Tensor, task: Tensor) -> None:
        rows, slots = self._reservoir(trainer, len(index))
        self._write(trainer, slots, {"index": index[rows], "target": target[rows], "task": task[rows]})

    def _write(self, trainer: Trainer, slots: Tensor, columns: dict[str, Tensor]) -> None:
        for part in torch.split(torch.arange(len(slots)), COPIED_AT_ONCE) if len(slots) else ():  # they ascend: no gap
            values = {name: column[part] for name, column in columns.items()}
            self.store.write(slots[part], self._with_images(trainer, values))

    def _reservoir(self, trainer: Trainer, offered: int) -> tuple[Tensor, Tensor]:
        """Rows of the offered samples that are stored, and their slots: free ones first."""
        capacity, stored = self._capacity(trainer), len(self.store)
        free = min(offered, max(0, capacity - stored))
        seed = fold_seed(self._seed(trainer), 7)
        drawn = reservoir_slots(self.num_offered + free, offered - free, capacity, seed)
        self.num_offered += offered
        return last_writers(torch.cat([torch.arange(stored, stored + free), drawn]))

    def _capacity(self, trainer: Trainer) -> int:
        """Slots of the reservoir at the time."""
        if self.total is not None:
            return self.total
        assert self.per_class is not None
        state = stream_state(trainer)
        if state is None or state.current_task is None:
            raise ValueError(
                f"`per_class={self.per_class}` with `selection='reservoir'` in a fit without a stream, where the "
                "number of classes is not known; expected `total`, or selection='balanced'."
            )
        classes = state.current_task.num_seen if self.grow else trainer.datamodule.num_classes  # type: ignore[attr-defined]
        return self.per_class * int(classes)

    def _with_images(self, trainer: Trainer, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        index = columns["index"]
        if not len(index):
            return columns if self._by_index else {**columns, "image": datamodule.stored_images(index)}
        if not self._image_bytes:
            sample = datamodule.stored_images(index[:1])
            self._image_bytes = sample.nbytes
            large = max(sample.shape[-2:]) > LARGEST_STORED
            self._by_index = self.storage == "index" or (self.storage == "auto" and large)
        return columns if self._by_index else {**columns, "image": datamodule.stored_images(index)}

    # ------------------------------------------------------------------ stock fit

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stock fit: refuse spawned and forked processes.

        Raises:
            ValueError: In them.
        """
        refuse_processes_that_end(trainer, "ReplayBuffer", "the exemplars")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stock fit: the fit is a task; select from its dataset."""
        if in_stream(trainer) or self.update == "batch":
            return
        dataset = getattr(trainer.train_dataloader, "dataset", None)
        if dataset is None or not hasattr(dataset, "__len__"):
            raise TypeError(
                "`ReplayBuffer` selects at the end of a fit from `trainer.train_dataloader.dataset`, expected one with "
                "a length; got none. Give `trainer.fit` a DataLoader, or use `update='batch'`."
            )
        self._fits += 1
        if self.selection == "reservoir":
            order = permutation(len(dataset), self.seed, 5, self._fits)
            rows, slots = self._reservoir(trainer, len(dataset))
            if len(rows):
                self.store.write(slots, _collate(dataset, order[rows]))
            return
        everything = _collate(dataset, torch.arange(len(dataset)))
        target = everything["target"]
        if target.ndim != 1:
            raise ValueError(
                f"`selection={self.selection!r}` chooses by class, and the labels have shape {list(target.shape)}; "
                "expected one class for each sample. Use selection='reservoir' for multi-label data."
            )
        stored = self.store.column("target").clone() if len(self.store) else target[:0]
        seen = torch.unique(torch.cat([target, stored]))
        self._check_budget(len(seen))
        quotas = torch.zeros(int(seen[-1]) + 1, dtype=torch.int64).index_copy(0, seen, self.quotas(len(seen)))
        rule = BY_FEATURES.get(self.selection)
        if rule is not None:
            loader = torch.utils.data.DataLoader(dataset, batch_size=256)
            features, _ = extract_features(trainer, pl_module, loader)
            chosen = _by_class(target, quotas, lambda members, m: rule(features[members], m))
            chosen = trainer.strategy.broadcast(chosen)  # statistics of BatchNorm may differ between ranks
        else:
            chosen = _by_class(target, quotas, lambda members, m: members_choice(members, m, self.seed))
        if len(self.store):
            kept = first_per_class(stored, quotas)
            self.store.keep(kept[~torch.isin(stored[kept], target)])  # a class that came again is chosen anew
        self.store.append({name: column[chosen] for name, column in everything.items()})

    # ------------------------------------------------------------------ state

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save the exemplars and how many samples were offered."""
        checkpoint[CHECKPOINT_KEY] = {
            "store": self.store.state_dict(copy=False),  # written before training goes on; async writers copy it
            "num_offered": self.num_offered,
            "image_bytes": self._image_bytes,
            "by_index": self._by_index,
            "fits": self._fits,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take them back."""
        saved = checkpoint.get(CHECKPOINT_KEY)
        if saved is None:
            return
        stored = len(saved["store"].get("target", ()))
        if self.total is not None and stored > self.total:
            raise ValueError(
                f"`total={self.total}` exemplars, and the checkpoint holds {stored}; expected at least as many. Give "
                "the `ReplayBuffer` of the run that wrote it (its config.yaml), or a larger `total`."
            )
        self.store.load_state_dict(saved["store"])
        self.num_offered, self._fits = int(saved["num_offered"]), int(saved["fits"])
        self._image_bytes, self._by_index = int(saved["image_bytes"]), bool(saved["by_index"])

    def footprint(self) -> dict[str, int]:
        """Bytes of the exemplars' images (wherever they are kept), of their labels and positions, and of `columns`."""
        sizes = dict(self.store.nbytes())
        images = sizes.pop("image", self._image_bytes * len(self.store))
        logits = sum(sizes.pop(name, 0) for name in self.columns)
        lines = {"exemplar_bytes": images, "exemplar_label_bytes": sum(sizes.values())}
        return {**lines, "stored_logit_bytes": logits} if self.columns else lines

    def _seed(self, trainer: Trainer) -> int:
        state: StreamState | None = stream_state(trainer)
        return state.seed if state is not None and state.num_tasks else self.seed


def _check_batch(trainer: Trainer, batch: Any) -> None:
    stream = hasattr(trainer.datamodule, "stored_images")  # type: ignore[attr-defined]
    if not (isinstance(batch, dict) and stream) and not (isinstance(batch, list) and len(batch) == 2):
        given = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, list) else type(batch).__name__
        raise TypeError(
            f"`ReplayBuffer` got a batch of type {given}, to which it cannot add; expected a list [x, y], or the dict "
            "of an `IncrementalDataModule`. Let the collate function return [x, y], and put `Teacher` behind."
        )


def members_choice(members: Tensor, size: int, seed: int) -> Tensor:
    """Random members of a class, the first `size` of a fixed priority list."""
    return random_choice(members, size, seed, 6)


def _by_class(target: Tensor, quotas: Tensor, choose: Any) -> Tensor:
    """Rows chosen for each class in `target`, classes in ascending order, each in order of priority."""
    chosen = []
    for label in torch.unique(target).tolist():
        members = (target == label).nonzero().flatten()
        chosen.append(members[choose(members, int(quotas[label]))])
    return torch.cat(chosen)


def _gather(trainer: Trainer, tensor: Tensor) -> Tensor:
    if trainer.world_size == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(trainer.world_size)]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def _collate(dataset: Any, indices: Tensor) -> dict[str, Tensor]:
    pairs = [dataset[i] for i in indices.tolist()]
    image = torch.stack([torch.as_tensor(x) for x, *_ in pairs])
    labels = [torch.as_tensor(y) for _, y, *_ in pairs]
    multi = bool(labels) and labels[0].ndim > 0
    return {"image": image, "target": torch.stack(labels) if multi else torch.tensor([int(y) for y in labels])}


def _is_multi(trainer: Trainer) -> bool:
    return getattr(trainer.datamodule, "label_kind", "single") == "multi"  # type: ignore[attr-defined]
