"""Private names of PyTorch, each with a public way for versions that lack it.

No other file of the package uses such names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor


def makes_graph() -> bool:
    """Whether the current code runs to record a graph: in ``torch.compile``, export or a trace."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def is_transformed(x: Tensor) -> bool:
    """Whether a tensor is wrapped by a transform of ``torch.func``, such as ``vmap``.

    Without the private names nothing counts as wrapped: strides are then chosen as for a plain
    tensor, which costs time only.
    """
    try:
        kinds = torch._C._functorch
        return kinds.is_functorch_wrapped_tensor(x) or kinds.is_legacy_batchedtensor(x)
    except AttributeError:
        return False


@cache
def onednn_computes(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for oneDNN to compute in a type.

    Without the private names only float32 counts, so that half precision is reported as slow.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    try:
        if dtype == torch.bfloat16:
            return ops._is_mkldnn_bf16_supported()
        if dtype == torch.float16:
            return ops._is_mkldnn_fp16_supported()
    except AttributeError:
        return False
    return dtype == torch.float32


def allow_recompiles(count: int) -> None:
    """Raises the number of graphs that ``torch.compile`` keeps for one function to ``count``.

    It holds for the whole process. Without the private name PyTorch's limit stays (8), and what
    exceeds it runs eagerly.
    """
    config = getattr(torch._dynamo, 'config', None)
    if hasattr(config, 'recompile_limit'):
        config.recompile_limit = max(config.recompile_limit, count)


@contextmanager
def quiet_onnx_export() -> Iterator[None]:
    """Keeps ``torch.onnx`` from printing the whole graph where an export fails.

    Without the private name it is printed.
    """
    log = getattr(torch._C, '_jit_onnx_log', None)
    if log is not None:
        torch._C._jit_onnx_log = lambda *texts: None
    try:
        yield
    finally:
        if log is not None:
            torch._C._jit_onnx_log = log
