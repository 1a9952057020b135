"""Where exemplars live: columns of equal length, addressed by row.

One tensor for each column (`image` as uint8 or `index` as long, `target`, `task`, `logits`, …). No rule of what to keep
is in here; `reservoir.py`, `quotas.py` and `herding.py` have them and give slots or rows.
"""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["ExemplarStore"]

_MOVED_AT_ONCE = 1024
"""Rows."""

_GROWTH = 1.5
"""Without a capacity, memory grows by this factor, so that n appended rows are copied O(n) times in all."""


class ExemplarStore:
    """Rows of named tensors.

    The first `append`, `write` or `load_state_dict` fixes the columns: their names, dtypes and row shapes. Later rows
    must fit them exactly; nothing is ever cast.

    Args:
        capacity: Most rows that can be stored. Memory for all of them is allocated once, with the first rows, and no
            more. `None`: no limit; memory grows with the rows and can be up to half as large again.
        device: Where the columns live.

    Raises:
        ValueError: If the capacity is negative.

    Example:
        >>> store = ExemplarStore(capacity=3)
        >>> store.append({"index": torch.tensor([10, 11]), "target": torch.tensor([0, 1])})
        >>> store.write(torch.tensor([2, 0]), {"index": torch.tensor([12, 13]), "target": torch.tensor([1, 1])})
        >>> store.gather(torch.tensor([0, 1, 2]))
        {'index': tensor([13, 11, 12]), 'target': tensor([1, 1, 1])}
    """

    def __init__(self, capacity: int | None = None, device: torch.device | str = "cpu") -> None:
        if capacity is not None and capacity < 0:
            raise ValueError(
                f"Got `capacity={capacity}`, expected at least 0 rows, or None for no limit. A method without "
                "memory needs no store."
            )
        self.capacity = capacity
        self.device = torch.device(device)
        self._columns: dict[str, Tensor] = {}  # the first `_length` rows are filled
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in the order of the first rows; none before them."""
        return tuple(self._columns)

    def column(self, name: str) -> Tensor:
        """Look at one column.

        Args:
            name: Which one.

        Returns:
            `[len(self), …]`: a view; what is written into it is stored. Valid until rows are added or removed.

        Raises:
            KeyError: If there is no such column.
        """
        if name not in self._columns:
            raise KeyError(f"Got column {name!r}, expected one of {list(self.names)}. Store it with the other columns.")
        return self._columns[name][: self._length]

    def append(self, columns: Mapping[str, Tensor]) -> None:
        """Add rows at the end.

        Args:
            columns: New values of all columns, each `[n, …]`.

        Raises:
            ValueError: If the columns do not fit, or the rows exceed the capacity.
        """
        added = self._check(columns)
        self._reserve(columns, self._length + added)
        for name, values in columns.items():
            self._columns[name][self._length : self._length + added] = values.detach()
        self._length += added

    def write(self, slots: Tensor, columns: Mapping[str, Tensor]) -> None:
        """Overwrite rows, or add them where the slot lies behind the last row.

        Args:
            slots: long `[n]`: row to write each new value to; no two alike, and no row between may stay unwritten.
            columns: New values of all columns, each `[n, …]`.

        Raises:
            ValueError: If the columns or the slots do not fit, or a slot exceeds the capacity.
        """
        written = self._check(columns)
        slots = slots.to(self.device)
        length = self._check_slots(slots, written)
        self._reserve(columns, length)
        for name, values in columns.items():
            self._columns[name].index_copy_(0, slots, values.detach().to(self.device))
        self._length = length

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but the given ones, and bring those into the given order.

        Args:
            rows: long `[kept]` or bool `[len(self)]`: the rows to keep.

        Raises:
            ValueError: If rows repeat beyond the capacity.
            IndexError: If there is no such row.
        """
        if self._keep_in_place(rows):
            return
        with torch.inference_mode(False):  # else later writes from outside inference mode fail
            kept = self.gather(rows)
        length = len(next(iter(kept.values()))) if kept else 0
        self._check_capacity(length)
        for name, values in kept.items():
            if self.capacity is None:
                self._columns[name] = values
            else:
                self._columns[name][:length] = values
        self._length = length

    def _keep_in_place(self, rows: Tensor) -> bool:
        """Move kept rows to the front, a part at a time; only for rows in ascending order. False: nothing is done."""
        rows = rows.to(self.device)
        if self.capacity is None or rows.dtype != torch.int64 or rows.ndim != 1 or not len(rows):
            return False
        if int(rows[0]) < 0 or int(rows[-1]) >= self._length or (rows[1:] <= rows[:-1]).any():
            return False
        for values in self._columns.values():
            for part in torch.split(torch.arange(len(rows), device=self.device), _MOVED_AT_ONCE):
                values[part] = values[rows[part]]  # a later row never stands before the place of an earlier one
        self._length = len(rows)
        return True

    def gather(self, rows: Tensor) -> dict[str, Tensor]:
        """Copy rows out.

        Args:
            rows: long `[n]`: which rows, repeats allowed; or bool `[len(self)]`.

        Returns:
            Every column's `[n, …]` values, in the order of `rows`; an empty dict if nothing was ever stored.

        Raises:
            IndexError: If there is no such row.
        """
        rows = rows.to(self.device)
        return {name: self.column(name)[rows] for name in self.names}

    def clear(self) -> None:
        """Forget all rows and columns and free their memory."""
        self._columns = {}
        self._length = 0

    def nbytes(self) -> dict[str, int]:
        """Count the bytes of the stored rows.

        Returns:
            Bytes for each column; memory that is reserved for further rows is not counted.
        """
        return {name: self.column(name).numel() * self.column(name).element_size() for name in self.names}

    def digest(self) -> str:
        """Hash the content.

        Returns:
            SHA-256 (hex) over names, dtypes, shapes and bytes of all columns: equal content, equal digest, whatever the
            capacity, the device or the order of the columns.
        """
        digest = hashlib.sha256()
        for name in sorted(self.names):
            values = self.column(name)
            digest.update(repr((name, str(values.dtype), list(values.shape))).encode())
            digest.update(values.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def state_dict(self, copy: bool = True) -> dict[str, Tensor]:
        """The content for a checkpoint.

        Args:
            copy: Whether the values are a snapshot; otherwise they share the store's memory (on the CPU) and must be
                written before rows are changed. A checkpoint then takes no memory beside the store.

        Returns:
            Every column's rows, without the memory reserved for more; loads with `torch.load(weights_only=True)`.
        """
        return {name: self.column(name).clone() if copy else _trimmed(self.column(name)) for name in self.names}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Replace the content by a checkpoint's.

        Args:
            state_dict: What `state_dict` returned; names, dtypes and row shapes are taken from it.

        Raises:
            ValueError: If the columns differ in length or exceed the capacity. The content is then as before.
        """
        loaded = ExemplarStore(self.capacity, self.device)
        if state_dict:
            loaded.append(state_dict)
        self._columns, self._length = loaded._columns, loaded._length

    def _check(self, columns: Mapping[str, Tensor]) -> int:
        """Return the number of new rows; raise if they do not fit the columns."""
        for name, values in columns.items():
            if not isinstance(values, Tensor) or values.ndim == 0:
                raise ValueError(
                    f"Got column {name!r} as {values!r}, expected a tensor [rows, …]. Stack the rows' values first."
                )
        if not columns:
            raise ValueError("Got no column, expected at least one. Pass a dict from name to tensor, one row a sample.")
        if self._columns and set(columns) != set(self._columns):
            raise ValueError(
                f"Got columns {sorted(columns)}, expected {sorted(self._columns)} as in the first rows. Give all of "
                "them each time, or call `clear()` before storing other ones."
            )
        rows = {len(values) for values in columns.values()}
        if len(rows) > 1:
            lengths = {name: len(values) for name, values in columns.items()}
            raise ValueError(f"Got columns of {lengths} rows, expected equally many. Cut them to the same samples.")
        for name, stored in self._columns.items():
            values = columns[name]
            if values.dtype != stored.dtype or values.shape[1:] != stored.shape[1:]:
                raise ValueError(
                    f"Got column {name!r} as {values.dtype} with rows of shape {list(values.shape[1:])}, expected "
                    f"{stored.dtype} and {list(stored.shape[1:])} as in the first rows. Convert it before storing."
                )
        return rows.pop()

    def _check_slots(self, slots: Tensor, written: int) -> int:
        """Return the number of rows after writing; raise if the slots are not distinct or would leave a gap."""
        if slots.ndim != 1 or slots.dtype != torch.int64 or len(slots) != written:
            raise ValueError(
                f"Got `slots` as {slots.dtype} of shape {list(slots.shape)} for {written} new rows, expected "
                f"torch.int64 of shape [{written}]. Select the columns' rows together with the slots."
            )
        ordered = slots.sort().values
        new = ordered[ordered >= self._length]
        gapless = torch.arange(self._length, self._length + len(new), device=slots.device)
        if (ordered < 0).any() or (ordered[1:] == ordered[:-1]).any() or (new != gapless).any():
            raise ValueError(
                f"Got `slots={slots.tolist()}` with {self._length} rows stored, expected slots from 0 on, each once, "
                "that leave no row in between unwritten. `last_writers` drops a reservoir's -1 and repeats."
            )
        return self._length + len(new)

    def _check_capacity(self, length: int) -> None:
        if self.capacity is not None and length > self.capacity:
            raise ValueError(
                f"Got {length} rows in all, expected at most `capacity={self.capacity}`. Drop rows with `keep` first, "
                "or make the store larger."
            )

    def _reserve(self, columns: Mapping[str, Tensor], length: int) -> None:
        """Make room for `length` rows."""
        self._check_capacity(length)
        for name, values in columns.items():
            old = self._columns.get(name)
            room = 0 if old is None else len(old)
            if old is not None and length <= room:
                continue
            size = self.capacity if self.capacity is not None else max(length, int(_GROWTH * room))
            with torch.inference_mode(False):  # else later writes from outside inference mode fail
                new = torch.empty((size, *values.shape[1:]), dtype=values.dtype, device=self.device)
            if old is not None:
                new[: self._length] = old[: self._length]
            self._columns[name] = new


def _trimmed(column: Tensor) -> Tensor:
    """The same memory as a tensor whose storage ends with its last row: `torch.save` writes whole storages."""
    if column.device.type != "cpu" or not column.numel():
        return column.clone()
    raw = torch.from_numpy(column.reshape(-1).view(torch.uint8).numpy())
    return raw.view(column.dtype).view(column.shape)
