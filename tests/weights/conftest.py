import pytest
from file_server import FileServer
from mmengine.logging import MMLogger

from res2net_mm.weights import download


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The cache folder of a test, in an environment without proxies and mirrors."""
    for name in ('http_proxy', 'https_proxy', 'all_proxy', 'no_proxy'):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ('RES2NET_MM_MIRROR', 'HF_ENDPOINT'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setenv('RES2NET_MM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(download, 'RETRY_WAIT', 0.001)
    return tmp_path / 'cache'


@pytest.fixture
def server(tmp_path, cache):
    """A server of the folder ``served``."""
    folder = tmp_path / 'served'
    folder.mkdir()
    with FileServer(folder) as running:
        yield running


@pytest.fixture
def said(monkeypatch):
    """What is logged at INFO."""
    lines = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'info', lines.append)
    return lines
