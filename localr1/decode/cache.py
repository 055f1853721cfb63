"""The key-value cache of one conversation.

Owns one preallocated array [layers, capacity, row] and the tokens whose rows are committed in it. What a row means is
the model's affair (see `model.linear.Cache`): for MLA it is the normed latent and the rotated key, for grouped-query
attention keys and values. The invariant: `tokens` are exactly those whose rows every layer holds, and only the decode
loop changes them, after a whole forward.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from localr1.errors import ContextError, OutOfMemoryError
from localr1.model.latent_rows import pack_latents, row_bytes


class Stopped(Exception):
    """A forward was given up between two layers; what the cache holds is as it was."""


def never() -> bool:
    """For whoever is not to be stopped."""
    return False


def _rows(shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Tensor:
    try:
        with torch.inference_mode(False):  # or they could not be restored outside it
            return torch.empty(*shape, dtype=dtype, device=device)
    except RuntimeError as error:
        if device.type != "cpu":
            raise
        needed_gb = shape[0] * shape[1] * shape[2] * dtype.itemsize / 1e9
        raise OutOfMemoryError(
            f"a context of {shape[1]:,} tokens needs {needed_gb:,.1f} GB of RAM", "use a smaller --context"
        ) from error


class RowCache:
    """Rows for `layers` x `capacity` tokens of `width` numbers, float32 or bfloat16. Memory is touched as it fills.

    With `latent`, the first so many numbers of a row are kept as int8 with one scale for the row, and the rest as
    bfloat16. `first_layer` is the number of its first layer: an MTP layer's cache holds that one layer alone.
    `should_stop` is asked before every layer of a forward. OutOfMemoryError where RAM has no room for it; a GPU's lack
    of memory stays torch's error, for whoever can make room there.
    """

    should_stop: Callable[[], bool]

    def __init__(
        self,
        layers: int,
        width: int,
        capacity: int,
        dtype: torch.dtype,
        first_layer: int = 0,
        device: torch.device | str = "cpu",
        latent: int | None = None,
    ) -> None:
        self.capacity = capacity
        self._first_layer = first_layer
        self._latent = latent
        numbers = width if latent is None else row_bytes(latent, width)
        stored = dtype if latent is None else torch.int8
        self._make_rows = partial(_rows, (layers, capacity, numbers), stored, torch.device(device))
        self._take_memory()
        self._tokens: list[int] = []
        self.should_stop = never

    def _take_memory(self) -> None:
        self._rows_LSW = self._make_rows()
        bits = self._rows_LSW.view(torch.uint16) if self._rows_LSW.dtype == torch.bfloat16 else self._rows_LSW
        self._array_LSW: NDArray[Any] = bits.numpy() if bits.device.type == "cpu" else np.empty((0, 0, 0))
        self._released = False

    def release(self) -> None:
        """Forget all tokens, and give the memory back until the next ones come."""
        self._tokens.clear()
        self._rows_LSW, self._released = self._rows_LSW[:, :0].clone(), True
        self._array_LSW = np.empty((0, 0, 0))

    @property
    def length(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> Sequence[int]:
        return self._tokens

    @property
    def token_nbytes(self) -> int:
        """Bytes that one token takes over all layers."""
        layers, _, numbers = self._rows_LSW.shape
        return layers * numbers * self._rows_LSW.element_size()

    @property
    def nbytes(self) -> int:
        """Bytes in use by the committed tokens."""
        return self.length * self.token_nbytes

    def rows(self, layers: range, new: int) -> NDArray[Any]:
        """Those layers' rows with room for `new` ones at the end; bfloat16 as its bits. Raises as `append` does."""
        first, end = self._first_layer, self._end(new)
        return self._array_LSW[layers.start - first : layers.stop - first, :end]

    def append(self, layer: int, row_TW: Tensor) -> Tensor:
        """Write T rows after the committed ones; that layer's rows [S, W] as they are stored.

        Raises ContextError past the capacity, Stopped when told to stop.
        """
        layer_SW = self.room(layer, row_TW.shape[0])
        layer_SW[self.length :] = row_TW if self._latent is None else pack_latents(row_TW, self._latent)
        return layer_SW

    def room(self, layer: int, new: int) -> Tensor:
        """That layer's rows as they are stored, with room for `new` ones at the end. Raises as `append` does."""
        end = self._end(new)  # which may take the memory
        return self._rows_LSW[layer - self._first_layer, :end]

    def _end(self, new: int) -> int:
        if self.should_stop():
            raise Stopped
        end = self.length + new
        if end > self.capacity:
            raise ContextError(
                f"the context holds {self.capacity:,} tokens, {end:,} are needed",
                "start anew with /clear, or raise --context",
            )
        if self._released:
            self._take_memory()
        return end

    def layer_rows(self, layer: int) -> Tensor:
        """All rows [capacity, W] that the layer has room for; those after the committed ones hold anything."""
        assert not self._released, "a kernel would write to memory that was given back"
        return self._rows_LSW[layer - self._first_layer]

    def commit(self, tokens: Sequence[int]) -> None:
        """Every layer now holds the rows of these further tokens."""
        self._tokens.extend(tokens)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        del self._tokens[length:]

    def snapshot(self, length: int) -> Tensor:
        """The first tokens' rows [layers, length, numbers] as they are stored, in RAM; a view where they lie there."""
        if self._rows_LSW.device.type == "cpu":
            return self._rows_LSW[:, :length]
        # Layer by layer: a layer's rows lie in one piece, and the whole would be copied on the device first.
        return torch.stack([rows_SW[:length].cpu() for rows_SW in self._rows_LSW])

    def restore(self, tokens: Sequence[int], rows_LSW: Tensor) -> None:
        """Hold these tokens alone, with the rows that `snapshot` of such a cache gave."""
        self._tokens.clear()
        if self._released:
            self._take_memory()
        for mine_SW, given_SW in zip(self._rows_LSW, rows_LSW, strict=True):
            mine_SW[: len(tokens)].copy_(given_SW)
        self._tokens.extend(tokens)

    def keep_prefix(self, tokens: Sequence[int]) -> int:
        """Truncate to the longest common prefix with `tokens`, less its last one; how many tokens were kept.

        The last token of a prompt is always run again, since its logits are what decoding starts from.
        """
        kept = self.shared(tokens[:-1])
        self.truncate(kept)
        return kept

    def shared(self, tokens: Sequence[int]) -> int:
        """Length of the longest common prefix with `tokens`."""
        pairs = zip(self._tokens, tokens, strict=False)
        return next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), min(self.length, len(tokens)))
