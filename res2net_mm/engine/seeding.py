"""Random numbers that depend only on the seed and the place in the training run.

mmengine saves no state of the random generators and restarts data workers with the same seeds, so
a resumed run differs from one that was not interrupted. Here each training sample draws from
generators seeded by (seed, rank, epoch, place in the epoch), and each training step from generators
seeded by (seed, rank, step). There is no state to save, and neither the number of workers nor what
they prefetched matters.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

_SAMPLE, _STEP = 1, 2  # keep the keys of samples and of steps apart


def seed_step(seed: int, rank: int, step: int) -> None:
    """Seeds the generators for a training step."""
    seed_generators(_STEP, seed, rank, step)


def seed_generators(*key: int) -> None:
    """Seeds the generators of Python, numpy and torch (every device) from a tuple of integers."""
    words = np.random.SeedSequence(key).generate_state(6, np.uint32).tolist()
    random.seed(words[0] << 32 | words[1])
    np.random.seed(words[2:4])
    torch.manual_seed(words[4] << 32 | words[5])


@contextmanager
def generators_kept() -> Iterator[None]:
    """Puts the generators back, after the block, to where they were before it."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class SeededIndex(int):
    """The index of a sample with the key of its random numbers; None: do not load the sample."""

    key: tuple[int, ...] | None

    def __new__(cls, index: int, key: tuple[int, ...] | None) -> SeededIndex:
        self = super().__new__(cls, index)
        self.key = key
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return SeededIndex, (int(self), self.key)


class _Proxy:
    """Takes everything that it does not define from the wrapped object."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped

    def __getattr__(self, name: str) -> Any:
        if name == 'wrapped' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.wrapped, name)

    def __len__(self) -> int:
        return len(self.wrapped)

    def __deepcopy__(self, memo: dict) -> _Proxy:
        return self  # mmengine copies the config of a loader, with objects already built in it


class SeededSampler(_Proxy, Sampler):
    """Wraps a sampler so that its indices carry the keys of their random numbers."""

    def __init__(self, sampler: Sampler, seed: int, rank: int) -> None:
        super().__init__(sampler)
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self.start = 0
        self.served = 0  # indices handed out in all epochs
        self.passed_over = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, as the sampler's own method does."""
        self.epoch = epoch
        if hasattr(self.wrapped, 'set_epoch'):
            self.wrapped.set_epoch(epoch)

    def pass_over(self, samples: int) -> None:
        """Marks the first samples of the run as done: they count, but are not loaded."""
        self.passed_over = samples

    def __iter__(self) -> Iterator[SeededIndex]:
        for place, index in enumerate(self.wrapped, self.start):
            done = self.served < self.passed_over
            self.served += 1
            key = None if done else (self.seed, self.rank, self.epoch, place)
            yield SeededIndex(index, key)


class SeededInfiniteSampler(SeededSampler):
    """The same for an endless sampler that can start anywhere in its sequence."""

    def skip(self, samples: int) -> None:
        """Starts after the first samples."""
        self.wrapped.skip(samples)
        self.start = self.served = samples


class SeededDataset(_Proxy, Dataset):
    """Wraps a data set so that each sample draws from generators seeded by its index's key."""

    def __getitem__(self, index: int) -> Any:
        if not isinstance(index, SeededIndex):
            return self.wrapped[index]
        if index.key is None:
            return {}
        seed_generators(_SAMPLE, *index.key)
        return self.wrapped[int(index)]

    def __setattr__(self, name: str, value: Any) -> None:
        # a hook that sets the pipeline means the wrapped data set's
        if name == 'wrapped':
            super().__setattr__(name, value)
        else:
            setattr(self.wrapped, name, value)
