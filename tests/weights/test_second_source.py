"""Timm's copies on the Hugging Face hub, served by this machine, where the authors' files fail."""

import hashlib
import io

import other_layouts
import pytest
import timm
import torch
from filled_files import SMALL, bits, filled
from mmengine.logging import MMLogger
from safetensors.torch import save

from res2net_mm.backbones import VARIANTS
from res2net_mm.registry import MODELS
from res2net_mm.weights import ZOO, CheckpointError, Published, load_weights, read_source
from res2net_mm.weights.download import DownloadError

NAME = 'res2net50_26w_4s'
COPY = f'timm/{NAME}.in1k/resolve/main/model.safetensors'


@pytest.fixture
def warned(monkeypatch):
    """What is logged at WARNING."""
    lines = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', lines.append)
    return lines


def put_copy(server, content):
    """Serves a copy as the hub does: a redirect that tells the file's sha256."""
    path = server.folder / COPY
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    (server.folder / 'blob').write_bytes(content)
    digest = f'"{hashlib.sha256(content).hexdigest()}"'
    server.behave(COPY, status=302, location=server.address('blob'), linked_etag=digest)


@pytest.fixture
def sources(server, monkeypatch):
    """Both sources of a small network under a published name; their weights differ, to tell."""
    buffer = io.BytesIO()
    first, second = filled(**SMALL), filled(seed=1, **SMALL)
    torch.save(other_layouts.official(first.state_dict()), buffer)
    name = f'{NAME}-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth'
    (server.folder / name).write_bytes(buffer.getvalue())
    put_copy(server, save(other_layouts.official(second.state_dict())))
    about = dict(layout='official', variant=NAME, licence='for tests only', source='a test')
    monkeypatch.setitem(ZOO, NAME, Published(url=server.address(name), **about))
    monkeypatch.setitem(VARIANTS, NAME, SMALL)
    monkeypatch.setenv('HF_ENDPOINT', server.address())
    return name, first, second


def test_the_addresses_are_those_of_timms_table(monkeypatch):
    monkeypatch.delenv('HF_ENDPOINT', raising=False)
    authors = {name: entry for name, entry in ZOO.items() if 'authors, github' in entry.source}
    assert {name for name, entry in ZOO.items() if entry.second_url} == set(authors)
    assert len(authors) == 11
    for entry in authors.values():
        model = entry.second_url.split('/')[4]
        cfg = timm.models.get_pretrained_cfg(model)
        file = cfg.hf_hub_filename or 'model.safetensors'
        assert entry.second_url == f'https://huggingface.co/{cfg.hf_hub_id}/resolve/main/{file}'


@pytest.mark.filterwarnings('ignore:for .*copying from a non-meta parameter')
@pytest.mark.parametrize('name', [name for name, entry in ZOO.items() if entry.second_url])
def test_the_models_of_timms_table_are_the_same_networks(name):
    """Each copy's names and shapes, as timm builds the model, fit the entry's network exactly."""
    entry = ZOO[name]
    with torch.device('meta'):
        shapes = timm.create_model(entry.second_url.split('/')[4]).state_dict()
        net = MODELS.build(entry.arch)
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in shapes.items()}
    report = load_weights(net, state)
    assert (report.layout, report.first_block, report.missing) == ('official', entry.rule, [])


def test_the_first_source_is_asked_first(sources, server, warned):
    name, first, _ = sources
    net = filled(seed=2, **SMALL)
    load_weights(net, f'res2net://{NAME}')
    assert bits(net) == bits(first) and warned == []
    assert [asked.path for asked in server.asked] == [f'/{name}']


@pytest.mark.parametrize('fault', ['gone', 'busy', 'wrong', 'unreachable'])
def test_the_second_source_serves_what_the_first_does_not(
    sources, server, warned, monkeypatch, fault
):
    name, _, second = sources
    if fault == 'gone':
        (server.folder / name).unlink()
    elif fault == 'busy':
        server.behave(name, status=503)
    elif fault == 'wrong':
        (server.folder / name).write_bytes(b'<html>a captive portal</html>')
    else:
        entry = ZOO[NAME]
        about = dict(layout='official', variant=NAME, licence=entry.licence, source=entry.source)
        monkeypatch.setitem(ZOO, NAME, Published(url=f'http://127.0.0.1:1/{name}', **about))
    net = filled(seed=2, **SMALL)
    report = load_weights(net, NAME)
    assert bits(net) == bits(second)
    assert (report.layout, report.first_block) == ('official', 'official')
    assert report.licence == 'for tests only'
    (line,) = warned
    why = {'gone': '404', 'busy': '503', 'wrong': 'should begin', 'unreachable': 'refused'}[fault]
    assert server.address(COPY) in line and why in line and "timm's copy" in line
    assert bits(read_source(f'res2net://{NAME}')['state_dict']) == bits(second)


def test_what_is_on_disk_comes_first(sources, server, warned):
    name, _, second = sources
    server.behave(name, status=503)
    load_weights(filled(**SMALL), NAME)
    server.behave(name)
    server.asked.clear()
    net = filled(seed=2, **SMALL)
    load_weights(net, NAME)
    assert bits(net) == bits(second) and server.asked == []
    assert len(warned) == 2 and server.address(COPY) in warned[1]


def test_a_copy_of_another_network_is_refused(sources, server):
    name, _, _ = sources
    (server.folder / name).unlink()
    other = filled(**{**SMALL, 'base_width': 4}).state_dict()
    put_copy(server, save(other_layouts.official(other)))
    net = filled(seed=2, **SMALL)
    before = bits(net)
    with pytest.raises(CheckpointError, match='does not fit the network, and nothing was loaded'):
        load_weights(net, NAME)
    assert bits(net) == before


def test_the_hash_of_the_hub_is_verified(sources, server):
    name, _, second = sources
    (server.folder / name).unlink()
    content = (server.folder / COPY).read_bytes()
    right = hashlib.sha256(content).hexdigest()
    for digest in ('0' * 64, right):
        how = dict(status=302, location=server.address('blob'), linked_etag=f'"{digest}"')
        server.behave(COPY, **how)
        net = filled(seed=2, **SMALL)
        if digest == right:
            load_weights(net, NAME)
            assert bits(net) == bits(second)
        else:
            with pytest.raises(DownloadError, match=f'begin with {digest}, but it is {right}'):
                load_weights(net, NAME)


def test_a_copy_that_nothing_verifies_is_refused_and_not_kept(sources, server):
    """As from a proxy that answers everything with a page of its own."""
    name, first, _ = sources
    server.behave(name, status=503)
    server.behave(COPY)
    with pytest.raises(DownloadError, match='no checksum to verify the file by'):
        load_weights(filled(**SMALL), NAME)
    server.behave(name)
    net = filled(seed=2, **SMALL)
    load_weights(net, NAME)
    assert bits(net) == bits(first)


def test_both_failures_are_told(sources, server):
    name, _, _ = sources
    (server.folder / name).unlink()
    server.behave(COPY, status=503)
    with pytest.raises(DownloadError) as error:
        load_weights(filled(**SMALL), NAME)
    message = str(error.value)
    assert f'{server.address(name)}: the server answered 404' in message
    assert f'{server.address(COPY)}: the server answered 503' in message and '\n' not in message
