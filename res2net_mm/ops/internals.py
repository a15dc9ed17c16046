"""The private names of PyTorch that this package uses, each with a public way to do without.

No other file uses private names of PyTorch, torchvision or mmengine
(``tests/ops/test_internals.py`` holds the exceptions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
import torchvision
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
    """Whether something watches the calls of a module; without the private names, always."""
    try:
        return bool(
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        )
    except AttributeError:
        return True


@cache
def onednn_computes(dtype: torch.dtype) -> bool:
    """Whether this processor has instructions for oneDNN to compute in a type.

    Without the private names the answer is yes for float32 only, so half precision is reported as
    slow.
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
    """Lets ``torch.compile`` keep at least ``count`` graphs for each function.

    This holds for the whole process, and a line in the log says so. Without the private name
    PyTorch's limit (8) stays, and calls beyond it run eagerly.
    """
    config = getattr(getattr(torch, '_dynamo', None), 'config', None)
    limit = getattr(config, 'recompile_limit', count)
    if limit < count:
        config.recompile_limit = count
        print_log(
            f'torch.compile now keeps up to {count} graphs for each function of this process '
            f'({limit} before)',
            logger='current',
        )


def bag_products(grad: Tensor, rows: Tensor, index: Tensor) -> Tensor:
    """Gradient of the weights of ``F.embedding_bag(index, rows, mode='sum')``.

    Without the private name the rows are copied for a matrix product, which is slower.

    Args:
        grad: (bags, C), gradient of the sums.
        rows: (rows, C).
        index: (bags, size), the rows in each bag.

    Returns:
        (bags, size): ``grad[i] @ rows[index[i, j]]``.
    """
    bags, size = index.shape
    kernel = getattr(torch.ops.aten, '_embedding_bag_per_sample_weights_backward', None)
    if kernel is None:
        return torch.bmm(rows[index], grad[:, :, None]).squeeze(2)
    numbers = dict(dtype=index.dtype, device=index.device)
    starts = torch.arange(0, index.numel(), size, **numbers)
    owner = torch.arange(bags, **numbers).repeat_interleave(size)
    return kernel(grad, rows, index.view(-1), starts, owner, 0, -1).view(bags, size)


def torchvisions_gradient(
    grad: Tensor,
    rois: Tensor,
    shape: Sequence[int],
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Gradient of ``torchvision.ops.roi_align`` for an input of a shape, by its own kernel.

    Without the private name the forward pass runs too.
    """
    size = tuple(grad.shape[2:])
    kernel = getattr(torch.ops.torchvision, '_roi_align_backward', None)
    if kernel is not None:
        return kernel(grad, rois, spatial_scale, *size, *shape, sampling_ratio, aligned)
    with torch.enable_grad():
        features = grad.new_zeros(tuple(shape), requires_grad=True)
        bins = torchvision.ops.roi_align(
            features, rois, size, spatial_scale, sampling_ratio, aligned
        )
    return torch.autograd.grad(bins, features, grad)[0]


def register_configs(package: str, find: Callable[[str], Path | None]) -> None:
    """Makes mmengine read ``package::name`` as a base of a config.

    mmengine knows the packages of OpenMMLab, only with a folder in the name, and has no public way
    to add one. Without the private name it refuses such a base, as it did before.

    Args:
        package: Bases of other packages are not touched.
        find: The file of a name; None if there is none.
    """
    path_of = getattr(Config, '_get_cfg_path', None)
    if path_of is None:
        return

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
