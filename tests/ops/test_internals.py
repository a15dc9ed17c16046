"""Private names of other packages, and the public ways to do without them."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import res2net_mm
from res2net_mm.ops import internals

PACKAGE = Path(res2net_mm.__file__).parent
FOREIGN = {'mmcv', 'mmdet', 'mmengine', 'mmseg', 'torch', 'torchvision'}
ELSEWHERE = {  # why they are not in internals.py
    '_count_history': 'part of the format of checkpoints',
    '_log_history': 'part of the format of checkpoints',
    '_metadata': 'part of the format of state dicts',
    '_modules': 'deploy replaces modules where they are registered',
    '_native_batch_norm_legit_no_training': 'evaluation counts its operations',
    '_replace': 'a public method of named tuples',
    '_Unpickler': 'the standard library: a pickle that calls nothing',
}


def private_names(path):
    """Private names that a file takes from objects of other packages or of nn.Module."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree))
    own = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module.split('.')[0] in FOREIGN:
                parts = [*node.module.split('.'), *(alias.name for alias in node.names)]
                yield from (part for part in parts if part.startswith('_'))
        elif isinstance(node, ast.Attribute) and node.attr.startswith('_'):
            ours = isinstance(node.value, ast.Name) and node.value.id in ('self', 'cls')
            if not node.attr.startswith('__') and not ours and node.attr not in own:
                yield node.attr


def test_private_names_are_in_one_file():
    found = {
        f'{path.relative_to(PACKAGE)}: {name}'
        for path in PACKAGE.rglob('*.py')
        if '.mim' not in path.parts and path.name != 'internals.py'
        for name in private_names(path)
        if name not in ELSEWHERE and not name.startswith('_res2net_mm_')
    }
    assert found == set()
    private = set(private_names(PACKAGE / 'ops' / 'internals.py'))
    assert {'_forward_hooks', '_get_cfg_path'} <= private


def test_products_of_bags_without_the_private_kernel(monkeypatch):
    torch.manual_seed(0)
    rows, grad = torch.rand(9, 5).double(), torch.rand(6, 5).double()
    index = torch.randint(9, (6, 4), dtype=torch.int32)
    expected = torch.stack([rows[index[i]] @ grad[i] for i in range(6)])
    torch.testing.assert_close(internals.bag_products(grad, rows, index), expected)
    monkeypatch.setattr(
        torch.ops.aten, '_embedding_bag_per_sample_weights_backward', None, raising=False
    )
    torch.testing.assert_close(internals.bag_products(grad, rows, index), expected)


def test_recompiles_are_a_line_in_the_log(monkeypatch):
    from mmengine.logging import MMLogger

    lines = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'log', lambda _, line: lines.append(line))
    with torch._dynamo.config.patch(recompile_limit=8):
        internals.allow_recompiles(64)
        internals.allow_recompiles(32)
        assert torch._dynamo.config.recompile_limit == 64
    assert len(lines) == 1 and '64' in lines[0] and '8 before' in lines[0]
    monkeypatch.delattr(torch, '_dynamo')
    internals.allow_recompiles(128)


def test_hooks_are_seen():
    layer = nn.Linear(1, 1)
    assert not internals.has_hooks(layer)
    for register in (layer.register_forward_hook, layer.register_forward_pre_hook):
        handle = register(lambda *_: None)
        assert internals.has_hooks(layer)
        handle.remove()
    assert not internals.has_hooks(layer)


@pytest.mark.parametrize('record', ['plain', 'trace', 'compile', 'export'])
def test_what_records_a_graph(record):
    seen = []

    class Net(nn.Module):
        def forward(self, x):
            seen.append((internals.makes_graph(), internals.exports_graph()))
            return x + 1

    net, x = Net(), torch.rand(2)
    if record == 'plain':
        net(x)
        assert seen == [(False, False)]
    elif record == 'trace':
        torch.jit.trace(net, x)
        assert seen[0] == (True, True)
    elif record == 'compile':
        torch.compile(net, backend='eager')(x)
        assert seen[-1][0]  # whether it exports, PyTorch 2.11 does not know
        torch.compiler.reset()
    else:
        torch.export.export(net, (x,))
        assert seen[-1] == (True, True)
