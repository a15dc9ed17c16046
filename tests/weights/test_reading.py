import os
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from res2net_mm.weights import CheckpointError, read_checkpoint


class Hostile:
    """Pickles as a call of ``os.system``."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f'touch {self.path}',)


def test_what_mmengine_writes_is_read(tmp_path):
    history = HistoryBuffer([1.0, 2.0], [1, 1])
    saved = dict(
        state_dict=OrderedDict(weight=torch.arange(3.0)),
        message_hub=dict(log_scalars=dict(loss=history), runtime_info=dict(last=np.float64(0.5))),
        meta=dict(seed=3, dataset_meta=dict(classes=('a', 'b'), palette=[(1, 2, 3)])),
        array=np.arange(4, dtype=np.int64),
    )
    path = tmp_path / 'epoch_1.pth'
    torch.save(saved, path)
    read = read_checkpoint(path)
    assert read['state_dict']['weight'].equal(saved['state_dict']['weight'])
    assert read['message_hub']['log_scalars']['loss'].mean() == history.mean() == 1.5
    assert read['meta'] == saved['meta'] and read['message_hub']['runtime_info']['last'] == 0.5
    assert read['array'].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize('zipped', [True, False])
def test_code_is_refused_by_name_and_not_run(tmp_path, zipped):
    mark = tmp_path / 'was_run'
    path = tmp_path / 'hostile.pth'
    saved = dict(state_dict={}, meta=Hostile(mark))
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r'asks for (posix|os)\.system.*--trust-checkpoint'):
        read_checkpoint(path)
    assert not mark.exists()
    read_checkpoint(path, trust=True)
    assert mark.exists(), 'the file was no threat, and the test none either'


def test_getattr_reaches_no_further_than_histories(tmp_path):
    class Reach:
        def __reduce__(self):
            return getattr, (np.ndarray, 'tofile')  # an allowed class, a method that writes

    path = tmp_path / 'reach.pth'
    torch.save(dict(x=Reach()), path)
    with pytest.raises(CheckpointError, match='asks for getattr:ndarray.tofile '):
        read_checkpoint(path)


def test_damaged_files(tmp_path):
    path = tmp_path / 'whole.pth'
    torch.save(dict(state_dict=dict(w=torch.rand(64, 64))), path)
    content = path.read_bytes()
    broken = tmp_path / 'broken.pth'
    rng = random.Random(0)
    lengths = [0, 1, 10, *(rng.randrange(len(content)) for _ in range(30))]
    for length in lengths:
        broken.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match='broken.pth.* damaged or no checkpoint'):
            read_checkpoint(broken)
    broken.write_text('this is a text file, which somebody renamed')
    with pytest.raises(CheckpointError, match='damaged or no checkpoint'):
        read_checkpoint(broken)


def test_wrong_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.pth does not exist'):
        read_checkpoint(tmp_path / 'nothing.pth')
    with pytest.raises(CheckpointError, match='is a folder'):
        read_checkpoint(tmp_path)
    path = tmp_path / 'list.pth'
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match='holds a list'):
        read_checkpoint(path)
