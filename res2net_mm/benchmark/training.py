"""One step of training of a Res2Net in several projects, and of ours recomputing stages.

Each has a process of its own; those of ours in channels_last keep freed memory, as our tools do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from ..engine.errors import ToolError
from ..ops.trained_conv import train_convolutions
from .backbones import check_batches, group_name, parse_sizes
from .measure import circumstances, exact_float32, interleave, peak_memory, type_name
from .peers import (
    CHOICES,
    VARIANT,
    State,
    check_equal,
    make_state,
    mmdets,
    multiply_adds,
    normal_image,
    ours,
    timms,
)
from .processes import KEPT, own_process, without_kept
from .profiling import least_profiles

COMPILED = 'ours compile'  # minutes of compilation: only where it is named
LEVELS = ('C2', 'C3', 'C4', 'C5')
# In double precision: in float32 rounding alone moves the first gradient by 1e-3 and more.
BOUND = 1e-6
BOUND_OF_HALF = 1e-2  # of the loss; gradients differ by more, and are not compared
BOUND_OF_FLOAT32 = 1e-2  # what is timed is compared too, with room for that
_COMPARED = 4  # first convolutions
_SMALL = 192  # pixels, most of a side where what is computed does not depend on it


@dataclass(frozen=True)
class Contender:
    """One way to train a backbone.

    Attributes:
        build: From a variant and its weights in our names.
        arguments: Of the backbone, all stages being trained.
        rule: First-block rule of ours whose loss and first gradient it must have.
        channels_last: Memory format of weights and images.
        autocast: Type of the forward pass; None is float32.
        keeps_memory: Freed memory stays with the process, as our tools have it.
    """

    build: Callable[..., nn.Module]
    arguments: dict[str, Any] = field(default_factory=lambda: dict(norm_eval=False))
    rule: str = 'official'
    channels_last: bool = False
    autocast: torch.dtype | None = None
    keeps_memory: bool = False


def _ours(
    channels_last: bool = False, autocast: torch.dtype | None = None, **arguments: Any
) -> Contender:
    arguments = dict(norm_eval=False, **arguments)
    # in channels_last all is as train.py has it
    return Contender(ours, arguments, 'official', channels_last, autocast, channels_last)


CONTENDERS = {
    'mmdet': Contender(mmdets, rule='mmdet'),
    'mmdet channels_last': Contender(mmdets, rule='mmdet', channels_last=True),
    f'mmdet{KEPT}': Contender(mmdets, rule='mmdet', keeps_memory=True),
    'timm': Contender(timms, {}),
    'timm channels_last': Contender(timms, {}, channels_last=True),
    'ours': _ours(),
    'ours channels_last': _ours(channels_last=True),
    COMPILED: _ours(channels_last=True, compile=True),
    'ours bfloat16 channels_last': _ours(channels_last=True, autocast=torch.bfloat16),
    'mmdet bfloat16': Contender(mmdets, rule='mmdet', autocast=torch.bfloat16),
    **{
        f'ours with_cp {name}': _ours(True, with_cp=tuple(other == name for other in LEVELS))
        for name in LEVELS
    },
    'ours with_cp': _ours(True, with_cp=True),
}


class Step:
    """Forward pass, backward pass and a step of SGD.

    The loss is the sum of the levels' mean squares.

    Args:
        net: It gives levels.
        image: (N, 3, H, W).
        channels_last: Memory format of weights and image.
        autocast: Type of the forward pass; None is float32.
        norm_eval: Batch norm keeps its statistics.
    """

    def __init__(
        self,
        net: nn.Module,
        image: Tensor,
        channels_last: bool = False,
        autocast: torch.dtype | None = None,
        norm_eval: bool = False,
    ) -> None:
        self.form = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(image.device, memory_format=self.form)
        self.net.train()  # mmdet's returns None
        for module in self.net.modules():
            if norm_eval and isinstance(module, _BatchNorm):
                module.eval()
        self.image = image.contiguous(memory_format=self.form)
        self.autocast = autocast
        self.sgd = torch.optim.SGD(net.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4)

    def forward(self) -> Tensor:
        """The loss."""
        kind, typed = self.image.device.type, self.autocast is not None
        with torch.autocast(kind, self.autocast) if typed else nullcontext():
            levels = self.net(self.image)
        # an autocast level is squared in float32, a double one in double
        types = [torch.promote_types(level.dtype, torch.float32) for level in levels]
        # (the gradient of a mean is NCHW, which no layer after a backbone would give)
        squares = (x.to(t).square().sum() for x, t in zip(levels, types, strict=True))
        return sum(x / level.numel() for x, level in zip(squares, levels, strict=True))

    def __call__(self) -> None:
        self.sgd.zero_grad()
        self.forward().backward()
        self.sgd.step()

    def results(self) -> tuple[Tensor, ...]:
        """The loss and gradients of convolutions; nothing is updated but statistics."""
        self.sgd.zero_grad()
        loss = self.forward()
        loss.backward()
        # the stem's and the first and the last 1x1, which have the same place everywhere
        convs = [m for m in self.net.modules() if isinstance(m, nn.Conv2d)]
        convs = [*convs[:_COMPARED], [m for m in convs if m.kernel_size == (1, 1)][-1]]
        return loss.detach(), *(conv.weight.grad.clone() for conv in convs)


def make_step(
    name: str,
    variant: str,
    state: State,
    image: Tensor,
    dtype: torch.dtype = torch.float32,
    norm_eval: bool = False,
) -> Step:
    """A contender's step, with weights of a type."""
    contender = CONTENDERS[name]
    net = contender.build(variant, state, **contender.arguments).to(dtype)
    if contender.build is ours and contender.channels_last:
        train_convolutions(net)  # as train.py does
    return Step(net, image.to(dtype), contender.channels_last, contender.autocast, norm_eval)


def prepare(
    name: str, variant: str, size: tuple[int, int], batch: int, device: str, norm_eval: bool
) -> Callable[[], None]:
    """A step that ran on a small image, so that what is loaded once and gradients are there."""
    image = normal_image(size, batch, device)
    small = normal_image((64, 64), 2, device)
    step = make_step(name, variant, make_state(variant), small, norm_eval=norm_eval)
    step()
    step.image = image.contiguous(memory_format=step.form)
    return step


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    parser.add_argument(
        '--size', nargs='+', default=['320x320'], metavar='HxW', help='of the images (320x320)'
    )
    parser.add_argument('--batch', type=int, default=2, metavar='N', help='images a step (2)')
    parser.add_argument('--variant', choices=tuple(CHOICES), default=VARIANT)
    parser.add_argument(
        '--peers',
        nargs='+',
        metavar='NAME',
        help=f'of {", ".join(map(repr, CONTENDERS))}; first the yardstick (all but {COMPILED})',
    )
    parser.add_argument(
        '--dtype',
        nargs='+',
        choices=('float32', 'bfloat16'),
        default=['float32', 'bfloat16'],
        help='types of the peers, where --peers does not name them (all)',
    )
    parser.add_argument(
        '--norm',
        choices=('fixed', 'batch'),
        default='fixed',
        help="statistics of batch norm: fixed as in detectors, or the batch's (fixed)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times a step of each contender and measures its memory.

    Returns:
        The record.

    Raises:
        ToolError: An argument does not make sense, a package is missing, or a contender has
            another loss or gradient than ours.
    """
    sizes = parse_sizes(args.size)
    if len(sizes) > 1:
        raise ToolError(f'--size must be one, but got {" ".join(args.size)}')
    check_batches([args.batch])
    names = _choose(args.peers, args.dtype, args.device)
    size, state = sizes[0], make_state(args.variant)
    fixed = args.norm == 'fixed'
    apart = _compared(names, args, size, state)
    with ExitStack() as stack:
        steps = {}
        for name in tqdm(names, desc='starting', unit='process'):
            given = name, args.variant, size, args.batch, args.device, fixed
            keeps = CONTENDERS[name].keeps_memory
            own = own_process(name, args.device, keeps, prepare, *given)
            steps[name] = stack.enter_context(own)
        times = interleave(steps, args.rounds, args.device)
        # recomputing does nothing that is of another kind
        plain = [name for name in names[1:] if 'with_cp' not in name]
        profile = least_profiles({name: steps[name].profile for name in (names[0], *plain)})
    shape = (args.batch, 3, *size)
    macs = multiply_adds(ours(args.variant, norm_eval=False), shape, train=True)
    rows = [
        dict(
            name=name,
            dtype=type_name(CONTENDERS[name].autocast or torch.float32),
            times=times[name],
            memory_mib=peak_memory(
                prepare,
                *(name, args.variant, size, args.batch, args.device, fixed),
                device=args.device,
                prepared=True,
                keep=CONTENDERS[name].keeps_memory,
            ),
            gmacs=macs,  # what is computed a second time is no useful work
            difference=apart[name],
            note='keeps freed memory' if steps[name].keeps else '',
        )
        for name in tqdm(names, desc='memory', unit='step')
    ]
    return dict(
        task='train',
        title=f'Training step of {args.variant}, {group_name(size, args.batch)}, '
        f'{"fixed statistics" if args.norm == "fixed" else "statistics of the batch"}',
        yardstick=rows[0]['name'],
        rows=rows,
        profile=profile,
        **circumstances(args, {c.autocast or torch.float32: None for c in _of(names)}),
    )


def _choose(names: Sequence[str] | None, dtypes: Sequence[str], device: str) -> list[str]:
    for name in names or ():
        if name not in CONTENDERS:
            raise ToolError(f'--peers must be of {", ".join(CONTENDERS)}, but got {name!r}')
    if names is not None and len({*names}) < len(names):
        raise ToolError(f'--peers must differ, but are {", ".join(names)}')
    return list(names or ()) or [
        name
        for name in without_kept(CONTENDERS, device)
        if type_name(CONTENDERS[name].autocast or torch.float32) in dtypes and name != COMPILED
    ]


def _of(names: Iterable[str]) -> list[Contender]:
    return [CONTENDERS[name] for name in names]


def _compared(
    names: Sequence[str], args: argparse.Namespace, size: tuple[int, int], state: State
) -> dict[str, float]:
    """How far steps are from what ours gives."""
    height, width = (min(side, _SMALL) for side in size)
    small = normal_image((height, width), max(args.batch, 2), args.device)
    references: dict[str, tuple[Tensor, ...]] = {}
    fixed = args.norm == 'fixed'
    apart = {}
    for name in tqdm(names, desc='comparing', unit='step'):
        contender = CONTENDERS[name]
        exact = contender.autocast is None
        rule = contender.rule
        if rule not in references:
            net = ours(args.variant, state, norm_eval=False, first_block=rule).double()
            references[rule] = Step(net, small.double(), norm_eval=fixed).results()
        with exact_float32():
            given = name, args.variant, state, small
            results = make_step(*given, norm_eval=fixed).results()
            double = make_step(*given, torch.float64, fixed).results() if exact else None
        label = f"ours (first_block='{rule}', float64)"
        if double is not None:
            check_equal(name, results, label, references[rule], BOUND_OF_FLOAT32)
            apart[name] = check_equal(name, double, label, references[rule], BOUND)
        else:
            loss = references[rule][:1]
            apart[name] = check_equal(name, results[:1], label, loss, BOUND_OF_HALF)
    return apart
