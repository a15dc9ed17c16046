"""Inference and training steps of backbones: the tasks backbone, sweep, train and dcn.

All contenders of a task have the same weights and images, and their results are compared before
anything is timed: levels in inference; in training the loss and gradients of some convolutions.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from res2net_mm.deploy import optimize_for_inference
from res2net_mm.engine.errors import ToolError
from res2net_mm.ops import DeformConv2d
from res2net_mm.ops.deform_conv import VARIABLE, choose_way

from .contenders import (
    BUILDERS,
    CHOICES,
    DCN,
    INFERENCE,
    LEVELS,
    TRAINING,
    VARIANT,
    Contender,
    State,
    Work,
    check_equal,
    choose,
    make_state,
    normal_image,
    on_torchvision,
)
from .measure import exactly, make_record, measure, type_name

CONTENDERS = {
    INFERENCE: (
        *('mmdet', 'mmdet channels_last', 'timm', 'timm channels_last', 'resnet50'),
        *('ours', 'ours fast', 'mmdet bfloat16', 'ours fast bfloat16', 'ours fast float16'),
        *('mmdet kept memory', 'timm channels_last kept memory', 'resnet50 kept memory'),
        'mmdet bfloat16 kept memory',
    ),
    TRAINING: (
        *('mmdet', 'mmdet channels_last', 'mmdet kept memory', 'timm', 'timm channels_last'),
        *('ours', 'ours channels_last', 'ours compile'),
        *('ours bfloat16 channels_last', 'mmdet bfloat16'),
        *(f'ours with_cp {level}' for level in LEVELS),
        'ours with_cp',
    ),
}
OF_DCN = {
    INFERENCE: (
        *('torchvision', 'torchvision kept memory', 'torchvision fast', 'ours', 'ours fast'),
    ),
    TRAINING: ('torchvision', 'torchvision kept memory', 'ours', 'ours channels_last'),
}
BOUND, BOUND_OF_HALF, BOUND_OF_DCN = 1e-5, 3e-2, 1e-4  # of levels
# Gradients are compared in double precision: in float32 rounding moves the first one by 1e-3 and
# more. What is timed is compared too, with room for that; of bfloat16 only the loss.
BOUND_OF_GRADIENTS, BOUND_OF_TIMED = 1e-6, 1e-2
_COMPARED = 4  # first convolutions
_SMALL = 192  # pixels: gradients are compared on images with sides of at most this


class Inference:
    """The levels of ``image``, which comes in NCHW: converting it is part of the call."""

    def __init__(
        self,
        net: nn.Module,
        image: Tensor,
        channels_last: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.form = torch.channels_last if channels_last else torch.contiguous_format
        self.net = net.to(memory_format=self.form) if channels_last else net
        self.image, self.autocast = image, autocast

    def levels(self) -> tuple[Tensor, ...]:
        """C2 to C5, (N, C, H, W) each."""
        image = self.image.contiguous(memory_format=self.form)
        kind, typed = image.device.type, self.autocast is not None
        with torch.autocast(kind, self.autocast) if typed else nullcontext():
            levels = self.net(image)
        return tuple(levels.values() if isinstance(levels, dict) else levels)

    def __call__(self) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return self.levels()

    results = __call__


class Step(Inference):
    """Forward and backward pass and a step of SGD; the loss is the sum of levels' mean squares."""

    rate = 1e-4

    def __init__(self, *args: Any, norm_eval: bool = False) -> None:
        super().__init__(*args)
        self.net.train()
        for module in self.net.modules():
            if norm_eval and isinstance(module, _BatchNorm):
                module.eval()
        weights = self.net.parameters()
        self.sgd = torch.optim.SGD(weights, lr=self.rate, momentum=0.9, weight_decay=1e-4)

    def forward(self) -> Tensor:
        """The loss."""
        levels = self.levels()
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
        modules = [*self.net.modules()]
        # the stem's and the first and the last 1x1, which have the same place everywhere
        convs = [m for m in modules if isinstance(m, nn.Conv2d)]
        convs = [*convs[:_COMPARED], [m for m in convs if m.kernel_size == (1, 1)][-1]]
        convs += [m.conv_offset for m in modules if isinstance(m, DeformConv2d)]
        return loss.detach(), *(conv.weight.grad.clone() for conv in convs)


def make_call(
    contender: Contender,
    work: Work,
    state: State,
    image: Tensor,
    dtype: torch.dtype = torch.float32,
) -> Inference:
    """A contender's call: :class:`Inference`, or :class:`Step` with weights of a type."""
    build = BUILDERS[contender.source]
    net = build(work.variant, state, **contender.arguments).to(image.device, dtype)
    net.eval()  # mmdet's returns None
    autocast = None if contender.dtype == torch.float32 else contender.dtype
    if contender.fast:
        net, autocast = optimize_for_inference(net, contender.dtype), None
    if contender.source == 'torchvision':
        on_torchvision(net)
    given = net, image.to(dtype), contender.channels_last, autocast
    return Inference(*given) if work.kind == INFERENCE else Step(*given, norm_eval=work.norm_eval)


def prepare(
    name: str, work: Work, size: tuple[int, int], batch: int, device: str
) -> Callable[[], object]:
    """A call that ran on a small image, so that what is loaded once and gradients are there."""
    small = normal_image((64, 64), 2, device)
    call = make_call(Contender(name), work, make_state(work.variant), small)
    call()
    image = normal_image(size, batch, device)
    call.image = image.contiguous(memory_format=call.form) if work.kind == TRAINING else image
    return call


def compare(
    contenders: dict[str, Contender], work: Work, state: State, image: Tensor
) -> dict[str, float | None]:
    """How far each contender's results are from ours; a ToolError if further than the bound."""
    exact = torch.float32 if work.kind == INFERENCE else torch.float64
    references: dict[str, tuple[Tensor, ...]] = {}
    apart: dict[str, float | None] = {}
    for name, contender in tqdm(contenders.items(), desc='comparing', unit='contender'):
        rule, half = contender.rule, contender.dtype != torch.float32
        if rule is None:
            apart[name] = None
            continue
        # types of the weights, how many of the results are compared, bound
        if work.kind == INFERENCE:
            full = BOUND_OF_DCN if work.variant == DCN else BOUND
            checks = [(torch.float32, None, BOUND_OF_HALF if half else full)]
        elif half:
            checks = [(torch.float32, 1, BOUND_OF_TIMED)]
        else:
            checks = [(torch.float32, None, BOUND_OF_TIMED), (exact, None, BOUND_OF_GRADIENTS)]
        with exactly():
            if rule not in references:
                plain = Contender('ours')
                plain.arguments['first_block'] = rule
                references[rule] = make_call(plain, work, state, image, exact).results()
            label = f"ours (first_block='{rule}', {type_name(exact)})"
            for dtype, most, bound in checks:
                found = make_call(contender, work, state, image, dtype).results()
                apart[name] = check_equal(name, found[:most], label, references[rule][:most], bound)
    return apart


def parse_sizes(words: Sequence[str], several: bool = True) -> list[tuple[int, int]]:
    """Height and width of each size in ``800x1216 512x512``, or of the one in ``800 1216``."""
    if len(words) == 2 and all(word.isdecimal() for word in words):
        words = ['x'.join(words)]
    sizes = []
    for word in words:
        found = re.fullmatch(r'(\d+)x(\d+)', word)
        if not found or min(map(int, found.groups())) < 32:
            raise ToolError(f'--size must be HxW, each of 32 pixels or more, but got {word!r}')
        sizes.append((int(found[1]), int(found[2])))
    if len({*sizes}) < len(sizes):
        raise ToolError(f'--size must differ, but are {" ".join(words)}')
    if len(sizes) > 1 and not several:
        raise ToolError(f'--size must be one, but got {" ".join(words)}')
    return sizes


def check_batches(*batches: int) -> None:
    """Raises ``ToolError`` unless all are positive and differ."""
    if min(batches) < 1 or len({*batches}) < len(batches):
        listed = ' '.join(map(str, batches))
        raise ToolError(f'--batch must be at least 1, and no two the same, but got {listed}')


def group_name(size: Sequence[int], batch: int) -> str:
    """``'2x3x512x512'``: rows of one group are compared with each other."""
    return f'{batch}x3x{size[0]}x{size[1]}'


def add_arguments(parser: argparse.ArgumentParser, task: str) -> None:
    """Adds the options of a task."""
    sizes = dict(backbone=['512x512'], sweep=['256x256', '512x512', '800x1216'])
    batch = dict(backbone=1, sweep=[1, 2, 4])
    add_shape(parser, sizes.get(task, ['320x320']), batch.get(task, 2))
    parser.set_defaults(variant=VARIANT, peers=None, dtype=None, norm='fixed', part=INFERENCE)
    if task == 'dcn':
        text = 'one of the two, with a profile of it (both)'
        parser.add_argument('--part', choices=(INFERENCE, TRAINING), default=None, help=text)
        parser.set_defaults(variant=DCN)
        return
    parser.add_argument('--variant', choices=tuple(CHOICES), default=VARIANT)
    names = CONTENDERS[TRAINING if task == 'train' else INFERENCE]
    default = ['mmdet', 'ours fast'] if task == 'sweep' else None
    text = f'such as {", ".join(names)}; the first one is the yardstick '
    text += f'({", ".join(default or ["all of these, but not ours compile"])})'
    parser.add_argument('--peers', nargs='+', default=default, metavar='NAME', help=text)
    if task != 'sweep':
        types = [*dict.fromkeys(type_name(Contender(name).dtype) for name in names)]
        text = 'types of the peers, if --peers does not name them (all)'
        parser.add_argument('--dtype', nargs='+', choices=types, default=types, help=text)
    if task == 'train':
        text = "statistics of batch norm: fixed as in detectors, or the batch's (fixed)"
        parser.add_argument('--norm', choices=('fixed', 'batch'), default='fixed', help=text)
        parser.set_defaults(part=TRAINING)


def add_shape(parser: argparse.ArgumentParser, sizes: list[str], batch: int | list[int]) -> None:
    """Adds ``--size`` and ``--batch``."""
    text = f'of the images; H W of one, too ({" ".join(sizes)})'
    parser.add_argument('--size', nargs='+', default=sizes, metavar='HxW', help=text)
    several = dict(nargs='+') if isinstance(batch, list) else {}
    text = f'images at a time ({batch})'
    parser.add_argument('--batch', type=int, default=batch, metavar='N', help=text, **several)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """The record of a task; with a profile if it has one size, batch and part."""
    task, variant, norm_eval = args.task, args.variant, args.norm == 'fixed'
    sizes = parse_sizes(args.size, several=task in ('backbone', 'sweep'))
    batches = args.batch if isinstance(args.batch, list) else [args.batch]
    check_batches(*batches)
    tables = OF_DCN if task == 'dcn' else CONTENDERS
    works = [Work(kind, variant, norm_eval) for kind in tables if args.part in (kind, None)]
    chosen = {w: choose(tables[w.kind], w, args.device, args.peers, args.dtype) for w in works}
    state = make_state(variant)
    places = [(work, size, batch) for work in works for size in sizes for batch in batches]
    rows, profile = [], None
    for work, size, batch in places:
        contenders, training = chosen[work], work.kind == TRAINING
        sides = [min(side, _SMALL) for side in size] if training else size
        image = normal_image(sides, max(batch, 2) if training else batch, args.device)
        apart = compare(contenders, work, state, image)
        first, *others = contenders
        # recomputation does nothing that is of another kind
        profiled = [first, *(name for name in others if 'with_cp' not in name)]
        found, profile = measure(
            {name: contender.keeps_memory for name, contender in contenders.items()},
            prepare,
            *(work, size, batch, args.device),
            settings=args,
            profiled=profiled if len(places) == 1 else (),
        )
        for row in found:
            contender = contenders[row['name']]
            other = 'another network, folded, channels_last' if contender.rule is None else ''
            row.update(
                group=dict(train='', dcn=work.kind).get(task, group_name(size, batch)),
                size=list(size),
                batch=batch,
                dtype=type_name(contender.dtype),
                difference=apart[row['name']],
                note=', '.join(filter(None, (other, row['note']))),
            )
        rows += found
    at = f', {group_name(sizes[0], batches[0])}' if len(sizes) == 1 else ''
    statistics = 'fixed statistics' if norm_eval else 'statistics of the batch'
    title = dict(
        backbone=f'Inference of {variant}{at}',
        sweep=f'Inference of {variant} by size of image and batch',
        train=f'Training step of {variant}{at}, {statistics}',
        dcn=f'{variant}{at}',
    )
    record = make_record(args, title[task], rows, profile)
    if task == 'dcn':
        record['settings'][VARIABLE] = choose_way(torch.device(args.device))
    return record
