"""Files in onnxruntime: whether they give what PyTorch gives, and how fast."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .exportable import INPUT, Exportable, make_exportable, without_harmless_output

TOLERANCE = 1e-4
Shape = tuple[int, int, int, int]


class ExportError(ValueError):
    """A model that could not be exported, or a file that gives other values than its model."""


def require_onnx() -> None:
    """Raises ``ImportError`` saying what to install, unless onnx and onnxruntime are there."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export to ONNX needs onnx and onnxruntime: pip install 'res2net_mm[export]' ({error})"
        ) from error


def normal_image(shape: Shape) -> Tensor:
    """Normal-distributed values, the same at every call; the global random state is not used."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float32, device='cpu')


def other_shape(shape: Shape) -> Shape:
    """Another batch and an odd size: larger where the shape is small, else smaller."""
    batch, channels, *size = shape
    height, width = ((n * 3 // 4) | 1 if n >= 128 else (n + 33) | 1 for n in size)
    return 1 if batch > 1 else 2, channels, height, width


def open_session(path: Path, threads: int = 0) -> Any:
    """A session of stock onnxruntime on the CPU; ``threads`` 0 is its own choice."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors, which come as exceptions
    # its threads would wait by spinning, which slows PyTorch's
    options.add_session_config_entry('session.force_spinning_stop', '1')
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


@torch.no_grad()
@without_harmless_output()
def worst_error(path: Path, net: Exportable, shapes: Sequence[Shape]) -> float:
    """Largest difference from PyTorch's outputs, relative to the largest value of each.

    Args:
        path: The file.
        net: What it was exported from.
        shapes: Of the images, of normal-distributed values, that are compared.

    Raises:
        ExportError: A difference of 1e-4 or more, another shape, or onnxruntime cannot run it.
    """
    worst = 0.0
    try:
        session = open_session(path)
    except Exception as error:  # its exceptions have no base of their own
        raise ExportError(f'onnxruntime does not take the exported file: {error}') from error
    for shape in shapes:
        image = normal_image(shape)
        expected = dict(zip(net.outputs, net(image), strict=True))
        try:
            given = session.run(list(expected), {INPUT: image.numpy()})
        except Exception as error:
            raise ExportError(
                f'onnxruntime does not run the exported file at {shape}: {error}'
            ) from error
        for (name, reference), output in zip(expected.items(), given, strict=True):
            if not reference.isfinite().all():
                raise ExportError(f'PyTorch gives values that are NaN or infinite: {name}, {shape}')
            if output.shape != reference.shape:
                raise ExportError(
                    f'the exported file does not give what PyTorch gives: {name} at {shape} has '
                    f'shape {output.shape}, not {tuple(reference.shape)}'
                )
            difference = (torch.from_numpy(output) - reference).abs().max().item()
            error = difference / (reference.abs().max().item() or 1.0)
            if not error < TOLERANCE:  # NaN is not
                raise ExportError(
                    f'the exported file does not give what PyTorch gives: {name} at {shape} has a '
                    f'relative error of {error:.2g}, and less than {TOLERANCE:g} is needed'
                )
            worst = max(worst, error)
    return worst


@dataclass(frozen=True)
class Speed:
    """Seconds for one batch, the medians of alternating runs.

    Attributes:
        shape: Of the batch.
        threads: That both used.
        rounds: How often each ran.
    """

    shape: Shape
    threads: int
    rounds: int
    onnxruntime: float
    pytorch: float

    @property
    def ratio(self) -> float:
        """Time of onnxruntime over PyTorch's: below 1, onnxruntime is faster."""
        return self.onnxruntime / self.pytorch

    def __str__(self) -> str:
        size = ' x '.join(map(str, self.shape))
        return (
            f"{size}: onnxruntime's time / PyTorch eager's {self.ratio:.2f} (medians of "
            f'{self.rounds} alternating runs, {self.threads} threads)'
        )


@torch.no_grad()
@without_harmless_output()
def measure_speed(
    model: nn.Module, path: str | Path, input_shape: Sequence[int], rounds: int = 7
) -> Speed:
    """Times a file in onnxruntime against its model in PyTorch, on the CPU.

    Args:
        model: What the file was exported from; not changed.
        path: The file.
        input_shape: (N, C, H, W), in pixels.
        rounds: How often each runs, after one run that is not timed.

    Returns:
        Medians of both.
    """
    require_onnx()
    net, shape, threads = make_exportable(model), tuple(input_shape), torch.get_num_threads()
    session, image = open_session(Path(path), threads), normal_image(shape)
    runs = (lambda: session.run(None, {INPUT: image.numpy()}), lambda: net(image))
    times: tuple[list[float], ...] = ([], [])
    for _ in range(rounds + 1):
        for run, taken in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return Speed(shape, threads, rounds, *(median(taken[1:]) for taken in times))
