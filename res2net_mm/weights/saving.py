"""Writes weights of any layout with this package's names."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backbones import VARIANTS, Backbone
from ..backbones.base import CONVENTION
from ..backbones.bottle2neck import FIRST_BLOCK_RULES
from ..checks import check_choice
from ..files import writing
from ..registry import MODELS
from .architecture import architecture_of, variants_like
from .layouts import listing, write_convention
from .loading import check_fit, load_weights
from .reading import CheckpointError
from .sources import read_backbone

SUFFIXES = ('.safetensors', '.pth')


class WrittenWeights(NamedTuple):
    """What :func:`convert_weights` wrote."""

    path: Path  # its name has the first digits of its sha256
    report: str  # the network that the weights fit, their source, what was left out


def convert_weights(
    source: str | Path,
    out: str | Path,
    *,
    first_block: str | None = None,
    prefix: str | None = None,
    trust: bool = False,
) -> WrittenWeights:
    """Writes the backbone in a file of any layout with this package's names and its convention.

    Args:
        source: As for :func:`load_weights`.
        out: File to write, .safetensors or .pth; the first digits of its sha256 are added to its
            name. It is loaded again and compared.
        first_block: The rule, if neither the layout nor a convention says it.
        prefix: What the backbone's names begin with; None finds ``backbone.``.
        trust: Read the source with pickle, which runs code that is in it.

    Raises:
        ValueError: The source cannot be read, is no backbone of this package or needs another
            first-block rule, or ``out`` has another suffix. Nothing is written.
        OSError: There is no such file, or ``out`` cannot be written; nothing is left there.
    """
    out = Path(out).expanduser()
    if out.suffix not in SUFFIXES:
        raise ValueError(f'OUT must end in {" or ".join(SUFFIXES)}, but is {out}')
    check_choice('first_block', first_block, (None, *FIRST_BLOCK_RULES))
    converted, entry = read_backbone(source, prefix, trust=trust)
    convention = converted.convention
    if first_block is not None:
        if convention.get('first_block', first_block) != first_block:
            raise ValueError(
                f'{source} is known to need first_block={convention["first_block"]!r}, but '
                f'first_block is {first_block!r}: leave it out'
            )
        convention = {'style': 'pytorch', **convention, 'first_block': first_block}
    state = OrderedDict((key, value.clone().contiguous()) for key, value in converted.state.items())
    arch = architecture_of(state)
    variants = [name for name, net in variants_like(arch) if _fits(net, convention, state)]
    args = VARIANTS[variants[0]] if variants else _buildable(arch)
    unknown = CheckpointError(
        f'{source} holds no network that this package builds: {arch}, with batch norm and without '
        'plugins'
    )
    try:
        with torch.device('meta'):
            fits = _fits(_build(args, {}), {}, state)
    except ValueError as error:
        raise unknown from error
    if not fits:
        raise unknown
    net = _build(args, convention)
    if first_block is not None and 'first_block' not in net.convention:
        raise ValueError(f'{source} is of a kind that has no first-block rule: leave it out')
    check_fit(net, state, convention, str(source), converted.layout)

    licence = entry.licence if entry else converted.licence
    origin = dict(source=Path(source).name, layout=converted.layout)
    origin |= dict(licence=licence) if licence else {}
    content = _serialised(out.suffix, state, convention, origin)
    final = out.with_name(f'{out.stem}-{hashlib.sha256(content).hexdigest()[:8]}{out.suffix}')
    out.parent.mkdir(parents=True, exist_ok=True)
    with writing(final) as partial:
        partial.write_bytes(content)
        load_weights(net, partial)
        written = net.state_dict()
        if not all(written[key].equal(value.to(written[key])) for key, value in state.items()):
            raise CheckpointError(f'{final} does not hold what was written: is the disk failing?')
    if 'first_block' in net.convention:
        arch['first_block'] = convention.get('first_block', 'not known')
    arguments = ', '.join(f'{key}={value!r}' for key, value in arch.items() if key != 'type')
    millions = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    lines = [
        f'{" or ".join(variants) or "no published variant"}: {arch["type"]}, {arguments}',
        f'from layout {converted.layout}: {len(state)} tensors, {millions:.2f} M parameters',
        *(f'left out, {rule}: {listing(keys)}' for rule, keys in converted.dropped.items()),
        *([f'licence of these weights: {licence}'] if licence else []),
        f'written, and verified by loading: {final}',
    ]
    if arch.get('first_block') == 'not known':
        lines.append(
            'its first-block rule is not known, and the file does not say one; --first-block says '
            "it: 'mmdet' for what mmdet's own Res2Net trained, 'official' for the authors'"
        )
    return WrittenWeights(final, '\n'.join(lines))


def _serialised(
    suffix: str, state: OrderedDict[str, Tensor], convention: dict[str, str], origin: dict[str, str]
) -> bytes:
    conventions = {'': convention} if convention else {}
    if suffix == '.pth':
        write_convention(state, convention)
        buffer = BytesIO()
        torch.save(dict(meta={CONVENTION: conventions, **origin}, state_dict=state), buffer)
        return buffer.getvalue()
    from safetensors.torch import save

    metadata = {'format': 'pt', CONVENTION: json.dumps(conventions), **origin}
    content = save(dict(state), metadata)
    # safetensors writes the metadata in random order, which would change the file's sha256
    end = 8 + int.from_bytes(content[:8], 'little')
    header = json.loads(content[8:end]) | {'__metadata__': dict(sorted(metadata.items()))}
    text = json.dumps(header, separators=(',', ':')).encode()
    text += b' ' * (-len(text) % 8)  # tensors start at multiples of 8 bytes
    return len(text).to_bytes(8, 'little') + text + content[end:]


def _buildable(arch: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, completed for a network of fewer than four stages."""
    stages = arch.get('num_stages', 4)
    lengths = dict(strides=(1, 2, 2, 2)[:stages], dilations=(1,) * stages)
    return {**arch, **lengths, 'out_indices': range(stages)} if stages != 4 else dict(arch)


def _build(args: Mapping[str, Any], convention: Mapping[str, str]) -> Backbone:
    cls = MODELS.get(args.get('type', 'Res2Net'))
    accepted = cls.arguments()  # DLA, which has only one form, takes none of the convention
    args = {**args, **{k: v for k, v in convention.items() if k in accepted}}
    return cls(**{key: value for key, value in args.items() if key != 'type'})


def _fits(net: Backbone, convention: Mapping[str, str], state: Mapping[str, Tensor]) -> bool:
    """Whether a network has these names and shapes, and the convention's rule."""
    own = {key: value.shape for key, value in net.state_dict().items()}
    same_rule = all(convention.get(key, value) == value for key, value in net.convention.items())
    return same_rule and own == {key: value.shape for key, value in state.items()}
