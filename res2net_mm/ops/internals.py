"""The private names of PyTorch, torchvision and mmengine that this package uses.

All supported releases have them (PyTorch 2.7.1 to 2.14.1), and no other file uses any
(``tests/ops/test_internals.py`` holds the exceptions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from torch import Tensor, nn


def makes_graph() -> bool:
    """Whether the current code runs to record a graph: in ``torch.compile``, export or a trace."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def exports_graph() -> bool:
    """Whether that graph is for other programs and other sizes: in an export or a trace.

    PyTorch 2.11 cannot tell ``torch.compile`` from an export here.
    """
    exporting = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
    return exporting or torch.jit.is_tracing()


def has_hooks(module: nn.Module) -> bool:
    """Whether something watches the calls of a module."""
    forward = module._forward_hooks or module._forward_pre_hooks
    return bool(forward or module._backward_hooks or module._backward_pre_hooks)


@cache
def onednn_computes(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for oneDNN to compute in a type."""
    if not torch.backends.mkldnn.is_available():
        return False
    ops = torch.ops.mkldnn
    if dtype == torch.bfloat16:
        return ops._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return ops._is_mkldnn_fp16_supported()
    return dtype == torch.float32


def allow_recompiles(count: int) -> None:
    """Lets ``torch.compile`` keep at least ``count`` graphs for each function.

    This holds for the whole process, and a line in the log says so.
    """
    config = torch._dynamo.config
    limit = config.recompile_limit
    if limit < count:
        config.recompile_limit = count
        print_log(
            f'torch.compile now keeps up to {count} graphs for each function of this process '
            f'({limit} before)',
            logger='current',
        )


def compilation_errors() -> type[Exception]:
    """What calling a compiled function raises where PyTorch cannot compile it."""
    return torch._dynamo.exc.TorchDynamoException


def bag_products(grad: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Gradient of the weights of ``F.embedding_bag(index, rows, mode='sum')``.

    Args:
        grad: (bags, C), gradient of the sums.
        rows: (rows, C).
        index: (bags, size), the rows in each bag.

    Returns:
        (bags, size): ``grad[i] @ rows[index[i, j]]``.
    """
    bags, size = index.shape
    numbers = dict(dtype=index.dtype, device=index.device)
    starts = torch.arange(0, index.numel(), size, **numbers)
    owner = torch.arange(bags, **numbers).repeat_interleave(size)
    compute = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return compute(grad, rows, index.view(-1), starts, owner, 0, -1).view(bags, size)


def torchvisions_gradient(
    grad: Tensor,
    rois: Tensor,
    shape: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Gradient of ``torchvision.ops.roi_align`` for an input of a shape."""
    sizes = *grad.shape[2:], *shape
    compute = torch.ops.torchvision._roi_align_backward
    return compute(grad, rois, spatial_scale, *sizes, sampling_ratio, aligned)


def register_configs(package: str, find: Callable[[str], Path | None]) -> None:
    """Makes mmengine read ``package::name`` as a base of a config.

    mmengine knows the packages of OpenMMLab, only with a folder in the name, and has no public way
    to add one.

    Args:
        package: Bases of other packages are not touched.
        find: The file of a name; None if there is none.
    """
    path_of = Config._get_cfg_path

    def with_ours(path: str, filename: str) -> tuple[str, str | None]:
        scope, _, name = path.partition('::')
        if scope != package or not name:
            return path_of(path, filename)
        file = find(name)
        if file is None:
            raise FileNotFoundError(f'{package} has no config {name}, which {filename} names')
        return str(file), None

    Config._get_cfg_path = staticmethod(with_ours)


@contextmanager
def quiet_onnx_export() -> Iterator[None]:
    """Keeps ``torch.onnx`` from printing the whole graph where an export fails."""
    with patch.object(torch._C, '_jit_onnx_log', create=True):
        yield
