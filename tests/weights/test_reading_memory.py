"""Tensors without values or with few, and the memory that reading takes."""

import pytest
import torch
from running import memory_for

from res2net_mm.weights import CheckpointError, read_checkpoint


def test_tensors_may_share_their_values(tmp_path):
    path = tmp_path / 'small.pth'
    shared = torch.arange(3.0)
    torch.save(dict(a=shared.expand(1000, 3), b=[shared.expand(2, 3)] * 9), path)
    assert read_checkpoint(path)['a'].sum() == 3000


def test_weights_without_values(tmp_path):
    path = tmp_path / 'meta.pth'
    torch.save(dict(state_dict=dict(w=torch.empty(2, device='meta'))), path)
    with pytest.raises(CheckpointError, match='asks for .*meta_tensor'):
        read_checkpoint(path)


def test_a_safetensors_file_takes_its_size_once(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / 'large.safetensors'
    save_file(dict(w=torch.arange(25 << 20, dtype=torch.float32)), path)
    with memory_for(250):  # it has 100, and is mapped
        read = read_checkpoint(path)['state_dict']['w']
    path.write_bytes(b'')  # nothing is read from it later
    assert read[-1] == (25 << 20) - 1
