"""Transfers: what a server or a disk may do to a file on its way."""

import contextlib
import errno
import hashlib
import io
import multiprocessing
import os
import random
import re
import resource
import socket
import sys
import threading
import time
from http.client import HTTPResponse
from pathlib import Path

import pytest

from res2net_mm.weights import CheckpointError, download
from res2net_mm.weights.download import DownloadError, fetch

CONTENT = random.Random(0).randbytes(300_000)
OTHER = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HASHED = f'net-{SHA256[:8]}.pth'
PLAIN = 'net.pdparams'
FORK = multiprocessing.get_context('fork')  # importing everything anew would take long


@pytest.fixture(autouse=True)
def served(server):
    for name in (HASHED, PLAIN):
        (server.folder / name).write_bytes(CONTENT)


@pytest.fixture
def child():
    """Starts a process that downloads, and sends what it logs and gets; kills those that run."""
    started = []

    def download_and_tell(url, there):
        lines = []
        download._log = lines.append
        there.send((fetch(url), lines))

    def start(url):
        here, there = FORK.Pipe()
        process = FORK.Process(target=download_and_tell, args=(url, there))
        process.start()
        started.append(process)
        return process, here

    yield start
    for process in started:
        process.kill()
        process.join()


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        time.sleep(0.005)


def files(folder):
    return sorted(p.name for p in Path(folder).rglob('*') if p.is_file() and p.suffix != '.lock')


def test_file_is_downloaded_once_and_then_taken_from_the_cache(server, cache, said):
    path = fetch(server.address(HASHED))
    assert path == cache / HASHED and path.read_bytes() == CONTENT
    assert files(cache) == [HASHED]
    assert fetch(server.address(HASHED)) == path
    assert fetch(server.address(HASHED), SHA256) == path
    assert server.ranges(HASHED) == [None]
    assert said == [f'downloading {server.address(HASHED)} to {path}']


@pytest.mark.parametrize('reset', [False, True])
def test_dropped_connections_are_continued(server, cache, reset):
    server.behave(HASHED, drop_after=40_000, drops=4, reset=reset)
    assert fetch(server.address(HASHED)).read_bytes() == CONTENT
    ranges = server.ranges(HASHED)
    assert len(ranges) == 5 and ranges[0] is None
    if not reset:  # a reset may take bytes with it that were sent
        assert ranges[1:] == [f'bytes={n}-' for n in (40_000, 80_000, 120_000, 160_000)]
    assert files(cache) == [HASHED]


@pytest.mark.parametrize('truncated', [False, True])
def test_without_a_checksum_every_attempt_starts_anew(server, cache, truncated):
    """Nothing would show that the content changed between two attempts."""
    server.behave(PLAIN, drop_after=40_000, drops=99 if truncated else 2)
    if truncated:
        with pytest.raises(DownloadError, match='after 40000 of 300000 bytes'):
            fetch(server.address(PLAIN))
        assert files(cache) == [], 'nothing half-written is left'
    else:
        assert fetch(server.address(PLAIN)).read_bytes() == CONTENT
        assert files(cache) == [PLAIN]
    assert server.ranges(PLAIN) == [None] * (7 if truncated else 3)  # the first got somewhere


def test_progress_resets_the_count_of_attempts(server):
    server.behave(HASHED, drop_after=20_000, drops=14)
    assert fetch(server.address(HASHED)).read_bytes() == CONTENT
    assert len(server.ranges(HASHED)) == 15 > 2 * download.RETRIES


def test_network_that_goes_away_for_a_moment(server, monkeypatch):
    connect, calls = socket.create_connection, []

    def unsteady(*args, **kwargs):
        calls.append(args)
        if len(calls) in (2, 3):
            raise OSError(errno.ENETUNREACH, 'Network is unreachable')
        return connect(*args, **kwargs)

    monkeypatch.setattr(socket, 'create_connection', unsteady)
    server.behave(HASHED, drop_after=40_000)
    assert fetch(server.address(HASHED)).read_bytes() == CONTENT
    assert len(calls) == 4 and server.ranges(HASHED) == [None, 'bytes=40000-']


def test_killed_process_is_continued(server, cache, child):
    server.behave(HASHED, trickle=(3000, 0.01))
    process, _ = child(server.address(HASHED))
    part = cache / f'{HASHED}.part'
    until(lambda: part.exists() and part.stat().st_size > 20_000)
    process.kill()
    process.join()
    size = part.stat().st_size
    assert 20_000 < size < 250_000 and files(cache) == [part.name]
    server.behave(HASHED)
    assert fetch(server.address(HASHED)).read_bytes() == CONTENT
    assert server.ranges(HASHED) == [None, f'bytes={size}-']
    assert files(cache) == [HASHED]


def leave_part(server, name, **how):
    """A download that ended after 100 000 bytes; returns its error."""
    server.behave(name, truncate=100_000, **how)
    with pytest.raises(DownloadError) as error:
        fetch(server.address(name))
    server.behave(name, **how)
    server.asked.clear()
    return str(error.value)


def test_truncating_server_is_an_error_and_the_part_is_kept(server, cache):
    message = leave_part(server, HASHED)
    assert 'broke off after 100000 of 300000 bytes' in message
    assert f'put the file at {cache / HASHED}, or set RES2NET_MM_MIRROR' in message
    assert files(cache) == [f'{HASHED}.part']
    assert (cache / f'{HASHED}.part').read_bytes() == CONTENT[:100_000]
    assert fetch(server.address(HASHED)).read_bytes() == CONTENT
    assert server.ranges(HASHED) == ['bytes=100000-']


def test_truncating_server_that_ignores_ranges_comes_to_an_end(server):
    server.behave(HASHED, truncate=100_000, ranges=False)
    with pytest.raises(DownloadError, match='after 100000 of 300000 bytes'):
        fetch(server.address(HASHED))
    assert len(server.asked) == 1 + download.RETRIES + 1  # the first one got somewhere


def test_content_that_changes_between_attempts(server):
    server.behave(PLAIN, drop_after=100_000, becomes=OTHER)
    assert fetch(server.address(PLAIN)).read_bytes() == OTHER


def test_pieces_that_do_not_fit_are_downloaded_anew(server, cache, said):
    cache.mkdir()
    (cache / f'{HASHED}.part').write_bytes(OTHER[:1000])
    assert fetch(server.address(HASHED)).read_bytes() == CONTENT
    assert server.ranges(HASHED) == ['bytes=1000-', None]
    assert any('does not fit, downloading it anew' in line for line in said)


@pytest.mark.parametrize('extra', [b'', b'x'])
def test_part_with_nothing_left_to_ask_for(server, cache, extra):
    """Killed between the last byte and the renaming; or a file that has become shorter."""
    cache.mkdir()
    (cache / f'{HASHED}.part').write_bytes(CONTENT + extra)
    assert fetch(server.address(HASHED)).read_bytes() == CONTENT
    assert server.ranges(HASHED) == [f'bytes={300_000 + len(extra)}-'] + [None] * bool(extra)
    assert files(cache) == [HASHED]


def test_server_that_ignores_ranges(server):
    leave_part(server, HASHED, ranges=False)
    assert fetch(server.address(HASHED)).read_bytes() == CONTENT
    assert server.ranges(HASHED) == ['bytes=100000-']


@pytest.mark.parametrize('drops', [0, 1])
def test_wrong_hash(server, cache, drops):
    (server.folder / HASHED).write_bytes(OTHER)
    server.behave(HASHED, drop_after=100_000, drops=drops)
    with pytest.raises(DownloadError) as error:
        fetch(server.address(HASHED))
    actual = hashlib.sha256(OTHER).hexdigest()
    assert str(error.value) == (
        f'{server.address(HASHED)}: its sha256 should begin with {SHA256[:8]}, but it is {actual}; '
        f'put the file at {cache / HASHED}, or set RES2NET_MM_MIRROR to a folder that has it'
    )
    assert isinstance(error.value, CheckpointError) and files(cache) == []
    assert server.ranges(HASHED) == [None, 'bytes=100000-'][: 1 + drops]


def test_answer_without_a_length_is_verified_by_its_hash(server):
    server.behave(HASHED, length=False)
    assert fetch(server.address(HASHED)).read_bytes() == CONTENT
    other = f'other-{SHA256[:8]}.pth'
    (server.folder / other).write_bytes(CONTENT)
    server.behave(other, length=False, drop_after=1000)
    with pytest.raises(DownloadError, match=f'should begin with {SHA256[:8]}, but'):
        fetch(server.address(other))


@pytest.mark.parametrize('status', [202, 204])
def test_an_answer_without_the_file(server, cache, status):
    """Such as the page of a firewall."""
    server.behave(PLAIN, status=status)
    with pytest.raises(DownloadError, match=f'the server answered {status} '):
        fetch(server.address(PLAIN))
    assert files(cache) == []


def test_network_that_breaks_while_bytes_arrive(server, monkeypatch):
    read, calls = HTTPResponse.read1, []

    def unsteady(*args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.EHOSTUNREACH, 'No route to host')
        return read(*args)

    monkeypatch.setattr(HTTPResponse, 'read1', unsteady)
    assert fetch(server.address(HASHED)).read_bytes() == CONTENT
    assert len(server.ranges(HASHED)) == 2


def test_slow_server_succeeds_and_the_name_appears_with_the_whole_file(server, cache, monkeypatch):
    server.behave(HASHED, trickle=(20_000, 0.05))
    seen, done = set(), threading.Event()

    def watch():
        while not done.is_set():
            with contextlib.suppress(FileNotFoundError):
                seen.add((cache / HASHED).stat().st_size)
            part = cache / f'{HASHED}.part'
            with contextlib.suppress(FileNotFoundError):
                seen.add(('part', part.stat().st_size))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        monkeypatch.setattr(download, 'TIMEOUT', 0.5)  # 0.75 s in all: it is for a single wait
        fetch(server.address(HASHED))
        until(lambda: 300_000 in seen)
    finally:
        done.set()
        watcher.join()
    assert {size for size in seen if isinstance(size, int)} == {300_000}
    assert len(seen) > 5, 'the file was not watched while it grew'


def test_stalled_server(server, cache, monkeypatch):
    monkeypatch.setattr(download, 'TIMEOUT', 0.1)
    server.behave(HASHED, truncate=100_000, stalls=True)
    with pytest.raises(DownloadError, match='the connection broke off: timed out'):
        fetch(server.address(HASHED))
    assert (cache / f'{HASHED}.part').read_bytes() == CONTENT[:100_000]
    assert server.ranges(HASHED) == [None] + ['bytes=100000-'] * 6


@pytest.mark.parametrize('length', [True, False])
def test_file_that_is_too_large(server, cache, length):
    server.behave(HASHED, length=length)
    with pytest.raises(DownloadError, match='it is larger than the 200000 bytes expected'):
        fetch(server.address(HASHED), most=200_000)
    assert not (cache / HASHED).exists()
    assert fetch(server.address(HASHED), most=300_000).read_bytes() == CONTENT


def test_processes_at_once_make_one_request(server, cache, child):
    server.behave(HASHED, trickle=(10_000, 0.08))
    answers = [here for _, here in [child(server.address(HASHED)) for _ in range(2)]]
    assert all(here.poll(60) for here in answers)
    paths, lines = zip(*(here.recv() for here in answers), strict=True)
    assert paths == (cache / HASHED,) * 2
    assert all('downloading' in str(said) for said in lines)
    assert server.ranges(HASHED) == [None] and (cache / HASHED).read_bytes() == CONTENT


def test_threads_at_once_make_one_request(server):
    server.behave(PLAIN, trickle=(50_000, 0.05))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch(server.address(PLAIN)).read_bytes()))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 6 and server.ranges(PLAIN) == [None]


def test_bar_on_a_terminal_begins_at_the_part(server, said, monkeypatch):
    leave_part(server, HASHED)
    said.clear()
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, 'stderr', terminal)
    fetch(server.address(HASHED))
    shown = terminal.getvalue()
    assert f'{HASHED}:  33%' in shown and f'{HASHED}: 100%' in shown and '300k/300k' in shown


def test_full_disk_is_an_error_that_names_the_folder(server, cache):
    """A limit on the size of files stands for the full disk: the last write is cut short too."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_001, limits[1]))
    try:
        with pytest.raises(DownloadError) as error:
            fetch(server.address(HASHED))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.match(
        f'cannot keep {HASHED} in {cache}: File too large; .* set RES2NET_MM_CACHE to another',
        str(error.value),
    )
    assert len(server.asked) == 1, 'a full disk is no dropped connection'
    size = (cache / f'{HASHED}.part').stat().st_size
    assert 0 < size <= 200_001
    assert fetch(server.address(HASHED)).read_bytes() == CONTENT
    assert server.ranges(HASHED) == [None, f'bytes={size}-']


def test_folder_that_cannot_be_made_is_an_error_that_names_it(server, tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    folder = tmp_path / 'file' / 'cache'
    monkeypatch.setenv('RES2NET_MM_CACHE', str(folder))
    with pytest.raises(DownloadError, match=f'in {folder}: Not a directory;.*RES2NET_MM_CACHE'):
        fetch(server.address(HASHED))
    assert not server.asked


@pytest.mark.skipif(os.geteuid() == 0, reason='root writes anywhere')
def test_read_only_folder(server, cache):
    cache.mkdir()
    cache.chmod(0o500)
    with pytest.raises(DownloadError, match=f'in {cache}: Permission denied'):
        fetch(server.address(HASHED))


def test_offline_says_what_to_do(cache, monkeypatch):
    with socket.socket() as closed:
        closed.bind(('127.0.0.1', 0))
        host = f'127.0.0.1:{closed.getsockname()[1]}'
    with pytest.raises(DownloadError) as error:
        fetch(f'http://{host}/{HASHED}')
    assert str(error.value) == (
        f'http://{host}/{HASHED}: no connection to {host}: [Errno 111] Connection refused; '
        f'put the file at {cache / HASHED}, or set RES2NET_MM_MIRROR to a folder that has it'
    )

    proxied = r'no connection to x\.test \(through the proxy of the environment\): '
    for scheme in ('http', 'https'):
        monkeypatch.setenv(f'{scheme}_proxy', f'http://{host}')
        with pytest.raises(DownloadError, match=proxied):
            fetch(f'{scheme}://x.test/{HASHED}')
        monkeypatch.delenv(f'{scheme}_proxy')

    def unknown(*_, **__):
        raise socket.gaierror(-2, 'Name or service not known')

    monkeypatch.setattr(socket, 'getaddrinfo', unknown)
    with pytest.raises(DownloadError, match='no connection to x.test: .*Name or service'):
        fetch(f'https://x.test/{HASHED}')
