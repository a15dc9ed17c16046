"""Freed memory is used again rather than given back."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import platform, resource, sys
import torch
from res2net_mm.ops.memory import keep_freed_memory

def faults():
    counts = []
    for _ in range(6):
        torch.ones(2**24)  # 64 MiB
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    return counts[-1] - counts[-2]

given_back = faults()
done = keep_freed_memory()
assert done is (platform.libc_ver()[0] == 'glibc' and not torch.cuda.is_available()), done
print(given_back, faults() if done else 0)
"""


HUGE = Path('/sys/kernel/mm/transparent_hugepage/enabled')


@pytest.mark.skipif(sys.platform != 'linux', reason='counts page faults')
@pytest.mark.skipif(HUGE.exists() and '[always]' in HUGE.read_text(), reason='pages are huge')
def test_no_new_pages_for_the_same_tensors():
    told = subprocess.check_output([sys.executable, '-c', SCRIPT], text=True)
    given_back, kept = map(int, told.split()[-2:])
    assert given_back > 1000 > 100 > kept
