"""Random numbers that are a pure function of (seed, epoch, image, name, slot).

They come from no generator with a state, so an image is augmented the same alone or in any batch, on any device, with
any number of processes, and after a resume.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_right(x: Tensor, bits: int) -> Tensor:
    # torch shifts int64 arithmetically; splitmix64 needs zeros from the left
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014) for int64 tensors that stand for unsigned numbers."""
    x = (x ^ _shift_right(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift_right(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift_right(x, 31)


@lru_cache(maxsize=256)
def _name_key(name: str) -> int:
    return _signed(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))


class Draws:
    """A source of random numbers for each image of a batch.

    Neither a dataclass nor a tensor, so that Lightning's batch transfer leaves it on the CPU, where operations make
    their decisions without waiting for the device.

    >>> draws = Draws.of(seed=0, epoch=3, pictures=torch.tensor([7, 8]))
    >>> draws.stream("flip").uniform(1).shape
    torch.Size([2, 1])
    """

    def __init__(self, keys: Tensor, origin: tuple[int, int, Tensor] | None = None) -> None:
        self.keys = keys  # int64 (N,)
        self._origin = origin  # (seed, epoch, images); None for a stream

    @classmethod
    def of(cls, seed: int, epoch: int, pictures: Tensor) -> Draws:
        """Draws for `pictures`, int64 (N,): a number unique to each image within the epoch, usually its index."""
        keys = torch.full_like(pictures, _signed(seed * _GOLDEN + 1))
        keys = splitmix64(keys) + _signed((epoch + 1) * _GOLDEN)
        keys = splitmix64(splitmix64(keys) + (pictures + 1) * _signed(_GOLDEN))
        return cls(keys, (seed, epoch, pictures))

    @property
    def epoch(self) -> int:
        """Epoch of the draws; streams do not have one."""
        return self._source[1]

    @property
    def of_all_epochs(self) -> Draws:
        """Other numbers for the same images, equal in every epoch."""
        seed, _, pictures = self._source
        return Draws.of(seed, -1, pictures)

    @property
    def _source(self) -> tuple[int, int, Tensor]:
        if self._origin is None:
            raise ValueError("a stream has no epoch; use the Draws that it was made from")
        return self._origin

    def __len__(self) -> int:
        return len(self.keys)

    def stream(self, name: str) -> Draws:
        """Other numbers for the same images, so that the draws of one operation do not change those of another."""
        return Draws(splitmix64(self.keys ^ _name_key(name)))

    def of_pictures(self, positions: Tensor) -> Draws:
        """The draws of the images at `positions` in the batch."""
        origin = (*self._origin[:2], self._origin[2][positions]) if self._origin is not None else None
        return Draws(self.keys[positions], origin)

    def uniform(self, slots: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """float32 (N, slots), uniform in [low, high)."""
        steps = torch.arange(1, slots + 1, device=self.keys.device) * _signed(_GOLDEN)
        bits = splitmix64(self.keys[:, None] + steps)
        unit = _shift_right(bits, 40).to(torch.float32) * 2.0**-24
        return unit if (low, high) == (0.0, 1.0) else low + unit * (high - low)

    def integers(self, slots: int, below: int) -> Tensor:
        """int64 (N, slots), uniform in 0..below-1, for `below` up to 2**16."""
        return (self.uniform(slots) * below).to(torch.int64).clamp_(max=below - 1)
