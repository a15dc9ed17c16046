import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Dataset

from res2net_mm.engine.seeding import (
    SeededDataset,
    SeededInfiniteSampler,
    SeededSampler,
    seed_generators,
    seed_step,
)


class Draws(Dataset):
    """Samples that draw from all three generators."""

    metainfo = dict(classes=('a',))

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def run(workers, seed=3, epochs=2, rank=0):
    data = Draws()
    sampler = SeededSampler(DefaultSampler(data, seed=seed), seed, rank)
    loader = DataLoader(SeededDataset(data), 2, sampler=sampler, num_workers=workers)
    batches = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for batch in loader:
            batches += list(zip(*[part.tolist() for part in batch], strict=True))
    return batches


def test_samples_depend_on_seed_and_place_alone():
    plain = run(workers=0)
    torch.rand(5)  # the state of the process is of no account
    assert run(workers=0) == plain == run(workers=2) == run(workers=3)
    assert len(set(plain)) == 20, 'no two samples draw the same, in other epochs either'
    assert run(workers=0, seed=4) != plain
    first, other = run(workers=0), run(workers=0, rank=1)
    assert {x[1] for x in first}.isdisjoint({x[1] for x in other})


def test_endless_sampler_starts_where_it_is_told():
    data = Draws()

    def sampler():
        return SeededInfiniteSampler(InfiniteSampler(data, seed=3), 3, 0)

    def take(loader, n):
        return [b for b, _ in zip(loader, range(n), strict=False)]

    whole = take(DataLoader(SeededDataset(data), 2, sampler=sampler()), 14)
    if hasattr(InfiniteSampler, 'skip'):
        skipping = sampler()
        skipping.skip(2 * 9)
        rest = take(DataLoader(SeededDataset(data), 2, sampler=skipping), 5)
        assert str(rest) == str(whole[9:])
    passing = sampler()
    passing.pass_over(2 * 9)
    passed = take(DataLoader(SeededDataset(data), 2, sampler=passing, collate_fn=list), 14)
    assert passed[:9] == [[{}, {}]] * 9, 'nothing is loaded for steps that are done'
    drawn = [[sample[1] for sample in batch] for batch in passed[9:]]
    assert drawn == [batch[1].tolist() for batch in whole[9:]]


def test_wrappers_show_what_they_wrap():
    data = SeededDataset(Draws())
    assert data.metainfo == dict(classes=('a',)) and len(data) == 10
    assert data[4][0] == 4  # a plain index, as a user's own code asks
    with pytest.raises(AttributeError, match='nothing'):
        _ = data.nothing
    data.pipeline = 'another'  # what mmdet's PipelineSwitchHook does
    assert data.wrapped.pipeline == 'another'


def test_steps_and_samples_draw_differently():
    sampler = SeededSampler(DefaultSampler(Draws(), shuffle=False, seed=3), 3, 0)
    drawn = SeededDataset(Draws())[next(iter(sampler))][2]
    seed_step(3, 0, 0)
    assert np.random.rand() != drawn


def test_generators_are_seeded_from_all_parts_of_the_key():
    drawn = set()
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0)]:
        seed_generators(*key)
        drawn.add((random.random(), np.random.rand(), torch.rand(()).item()))
    assert len(drawn) == 4
    assert all(len({values[i] for values in drawn}) == 4 for i in range(3))
