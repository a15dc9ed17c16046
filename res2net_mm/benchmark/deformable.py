"""Res2NetDCN on this package's deformable convolution against the same network on torchvision's.

Two parts: inference of the network, as it comes and optimised, and a training step. Each network
has a process of its own, which keeps freed memory where ``optimize_for_inference`` or our tools do.
The offsets are about half a pixel. ``RES2NET_MM_DEFORM_CONV`` chooses our way of computing.
"""

from __future__ import annotations

import argparse
import copy
from contextlib import ExitStack
from functools import partial
from types import MethodType
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

from ..deploy import optimize_for_inference
from ..engine.errors import ToolError
from ..evaluation.complexity import describe_stages
from ..ops import DeformConv2d
from ..ops.deform_conv import VARIABLE, choose_way
from ..ops.trained_conv import train_convolutions
from .backbones import check_batches, group_name, parse_sizes
from .measure import circumstances, exact_float32, interleave, peak_memory
from .peers import check_equal, make_state, normal_image, ours
from .processes import KEPT, own_process, without_kept
from .profiling import least_profiles
from .training import Step

VARIANT = 'res2net50_v1b_26w_4s_dcn'
YARDSTICK = 'torchvision'
OURS = 'ours'
PARTS = {  # part -> networks; fast is optimize_for_inference, channels_last as train.py has it
    'inference': (YARDSTICK, YARDSTICK + KEPT, f'{YARDSTICK} fast', OURS, f'{OURS} fast'),
    'training step': (YARDSTICK, YARDSTICK + KEPT, OURS, f'{OURS} channels_last'),
}
_KEEP = (KEPT, ' fast', ' channels_last')
BOUND = 1e-4


def use_torchvision(net: nn.Module) -> nn.Module:
    """Makes a network's deformable convolutions call torchvision's operator, and nothing else."""
    for module in net.modules():
        if isinstance(module, DeformConv2d):
            module._convolve = MethodType(_by_torchvision, module)
    return net


def _by_torchvision(
    self: DeformConv2d, x: Tensor, offset: Tensor, mask: Tensor | None = None
) -> Tensor:
    places = self.stride, self.padding, self.dilation
    return torchvision.ops.deform_conv2d(x, offset, self.weight, self.bias, *places, mask)


def make_call(name: str, part: str, image: Tensor, state: dict[str, Tensor]) -> Any:
    """A call of one part: it gives the levels, or does a training step (a :class:`Step`)."""
    net = ours(VARIANT, state, norm_eval=False).to(image.device)
    if name.endswith(' fast'):
        net = optimize_for_inference(net)
    if name.startswith(YARDSTICK):
        use_torchvision(net)
    if part == 'training step':
        as_tools_do = name.endswith(' channels_last')
        net = train_convolutions(net) if as_tools_do else net
        return Step(net, image, channels_last=as_tools_do, norm_eval=True)
    return torch.inference_mode()(partial(net.to(image.device), image))


def prepare(name: str, part: str, size: tuple[int, int], batch: int, device: str) -> Any:
    """A call that ran on a small image, so that what is loaded once and gradients are there."""
    image = normal_image(size, batch, device)
    state = make_state(VARIANT)
    small = normal_image((64, 64), 2, device)
    call = make_call(name, part, small, state)
    call()
    if isinstance(call, Step):
        call.image = image.contiguous(memory_format=call.form)
        return call
    return make_call(name, part, image, state)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the task."""
    parser.add_argument(
        '--size', nargs='+', default=['320x320'], metavar='HxW', help='of the images (320x320)'
    )
    parser.add_argument('--batch', type=int, default=2, metavar='N', help='images at a time (2)')
    parser.add_argument(
        '--part', choices=tuple(PARTS), help='one of the two, with a profile of it (both)'
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Times the networks in each part, and measures their memory.

    Returns:
        The record.

    Raises:
        ToolError: An argument does not make sense, or the networks do not give the same.
    """
    sizes = parse_sizes(args.size)
    if len(sizes) > 1:
        raise ToolError(f'--size must be one, but got {" ".join(args.size)}')
    check_batches([args.batch])
    size, state = sizes[0], make_state(VARIANT)
    image = normal_image(size, args.batch, args.device)
    small = normal_image([min(side, 128) for side in size], max(args.batch, 2), args.device)
    macs = sum(stage.macs for stage in describe_stages(ours(VARIANT), *size)) * args.batch / 1e9
    rows, profile = [], None
    for part, names in PARTS.items():
        if args.part not in (None, part):
            continue
        training = part == 'training step'
        apart = compare(part, small if training else image, state)
        names = without_kept(names, args.device)
        given = {name: (name, part, size, args.batch, args.device) for name in names}
        with ExitStack() as stack:
            calls = {}
            for name in tqdm(names, desc='starting', unit='process'):
                own = own_process(name, args.device, name.endswith(_KEEP), prepare, *given[name])
                calls[name] = stack.enter_context(own)
            times = interleave(calls, args.rounds, args.device)
            if args.part:
                profile = least_profiles({name: call.profile for name, call in calls.items()})
        for name in tqdm(names, desc='memory', unit='call'):
            told = dict(device=args.device, prepared=True, keep=name.endswith(_KEEP))
            memory = peak_memory(prepare, *given[name], **told)
            row = dict(name=name, group=part, times=times[name], memory_mib=memory)
            # without the interpolation of samples; no backward pass of the operator is counted
            row['gmacs'] = None if training else macs
            row['note'] = 'keeps freed memory' if calls[name].keeps else ''
            rows.append(dict(row, difference=apart[name]))
    record = dict(
        task='dcn',
        title=f'{VARIANT}, {group_name(size, args.batch)}',
        yardstick=YARDSTICK,
        rows=rows,
        profile=profile,
        **circumstances(args),
    )
    record['settings'][VARIABLE] = choose_way(torch.device(args.device))
    return record


def compare(part: str, image: Tensor, state: dict[str, Tensor]) -> dict[str, float]:
    """How far the networks are from ours in one part: levels, or loss and gradients.

    Raises:
        ToolError: Further than the bound.
    """
    found = {}
    with exact_float32():
        for name in PARTS[part]:
            call = make_call(name, part, image, state)
            if isinstance(call, Step):
                # in double precision: rounding alone moves the first gradient by 1e-3 and more
                channels_last = call.form == torch.channels_last
                net = copy.deepcopy(call.net).double()
                call = Step(net, image.double(), channels_last, norm_eval=True)
                found[name] = [*call.results(), *offset_gradients(call.net)]
            else:
                found[name] = call()
    label = f'{OURS} ({part})'
    return {name: check_equal(name, x, label, found[OURS], BOUND) for name, x in found.items()}


def offset_gradients(net: nn.Module) -> list[Tensor]:
    """Gradients of what predicts the offsets."""
    layers = [m.conv_offset for m in net.modules() if isinstance(m, DeformConv2d)]
    return [layer.weight.grad for layer in layers]
