"""Freed memory is used again rather than given back."""

import subprocess
import sys

import pytest

SCRIPT = """
import platform, resource, sys
import torch
from res2net_mm.engine.memory import keep_freed_memory
if sys.argv[1] == 'kept':
    done = keep_freed_memory()
    assert done is (platform.libc_ver()[0] == 'glibc' and not torch.cuda.is_available()), done

def faults():
    torch.ones(2**24)  # 64 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(5):
    before = faults()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='counts page faults')
def test_no_new_pages_for_the_same_tensors():
    counts = {
        way: int(subprocess.check_output([sys.executable, '-c', SCRIPT, way], text=True))
        for way in ('given back', 'kept')
    }
    assert counts['given back'] > 1000 > 100 > counts['kept']
