"""Where a file is looked for: the cache, mirrors, the address itself; and what each says."""

import hashlib
import re
from pathlib import Path

import pytest

from res2net_mm.weights.download import DownloadError, cache_folder, fetch

RIGHT = b'the weights' * 1000
WRONG = b'a captive portal' * 1000
SHA256 = hashlib.sha256(RIGHT).hexdigest()
NAME = f'net-{SHA256[:8]}.pth'
NOT_IT = f'its sha256 should begin with {SHA256[:8]}, but it is {hashlib.sha256(WRONG).hexdigest()}'

pytestmark = pytest.mark.usefixtures('cache')


@pytest.fixture
def folder(tmp_path):
    """A local mirror that has the file."""
    path = tmp_path / 'my mirror'
    path.mkdir()
    (path / NAME).write_bytes(RIGHT)
    return path


@pytest.fixture
def mirrors(monkeypatch):
    return lambda *where: monkeypatch.setenv('RES2NET_MM_MIRROR', ', '.join(map(str, where)))


def put(server, name, content=RIGHT):
    path = server.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return server.address(name)


def asked(server):
    return [request.path for request in server.asked]


def fails(url, *args):
    with pytest.raises(DownloadError) as error:
        fetch(url, *args)
    return str(error.value)


def test_cache_folder_is_the_one_of_torch_unless_set(tmp_path, cache, monkeypatch):
    assert cache_folder() == cache
    monkeypatch.setenv('RES2NET_MM_CACHE', '~/weights')
    assert cache_folder() == Path.home() / 'weights'
    monkeypatch.setenv('RES2NET_MM_CACHE', '')
    assert cache_folder() == tmp_path / 'torch' / 'hub' / 'checkpoints'


def test_folder_of_the_caller_comes_before_the_cache(server, cache, tmp_path):
    assert fetch(put(server, NAME), folder=tmp_path / 'mine') == tmp_path / 'mine' / NAME
    assert not cache.exists()


def test_damaged_cached_file_is_replaced_and_never_used(server, cache, said):
    url = put(server, NAME)
    cache.mkdir()
    (cache / NAME).write_bytes(WRONG)
    server.behave(NAME, status=503)
    assert f'{url}: the server answered 503' in fails(url)
    server.behave(NAME)
    said.clear()
    assert fetch(url).read_bytes() == RIGHT
    assert [line for line in said if 'replaced' in line] == [
        f'{cache / NAME} is replaced: {NOT_IT}'
    ]


@pytest.mark.parametrize(
    'name',
    [
        'net-20210927.pth',  # a date
        'net-abcdef1.pth',  # too short
        'net-ABCDEF12.pth',
        'net_abcdef12.pth',
        'net-abcdef12-v2.pth',
        f'net-{"a" * 65}.pth',
        'net.pth',
    ],
)
def test_name_without_a_hash_is_not_verified(server, cache, name):
    url = put(server, name)
    folder = cache / hashlib.sha256(url.encode()).hexdigest()[:10]
    assert fetch(url) == folder / name


@pytest.mark.parametrize('digits', [9, 64])
def test_hash_in_the_name_may_have_up_to_64_digits(server, cache, digits):
    assert fetch(put(server, f'net-{SHA256[:digits]}.pth')).parent == cache
    wrong = SHA256[: digits - 1] + ('0' if SHA256[digits - 1] != '0' else '1')
    assert f'should begin with {wrong}, but' in fails(put(server, f'net-{wrong}.pth'))


def test_hash_of_the_caller_comes_before_the_name(server, cache):
    assert fetch(put(server, 'net-abcdef12.pth'), SHA256[:8]) == cache / 'net-abcdef12.pth'
    assert fetch(put(server, 'net.pdparams'), SHA256) == cache / 'net.pdparams'


def test_equal_names_of_two_addresses_are_kept_apart(server):
    urls = [put(server, 'a/net.pth'), put(server, 'b/net.pth', WRONG)]
    urls += [f'{urls[0]}?version=2']
    paths = [fetch(url) for url in urls]
    assert [path.read_bytes() for path in paths] == [RIGHT, WRONG, RIGHT]
    assert len(set(paths)) == 3 and {path.name for path in paths} == {'net.pth'}
    assert paths == [fetch(f'{url}#top') for url in urls] and len(server.asked) == 3


def test_queries_escapes_and_fragments(server, cache):
    put(server, 'my net.pth')
    for url in ('my%20net.pth?token=a/b.pth', 'my net.pth', 'my%20net.pth#top'):
        assert fetch(server.address(url), SHA256) == cache / 'my net.pth'
        (cache / 'my net.pth').unlink()
    assert asked(server) == ['/my%20net.pth'] * 3


@pytest.mark.parametrize(
    'url',
    ['http://x.test/', 'http://x.test', 'http://x.test/a/?file=net.pth', 'http://x.test/%2e%2e',
     'http://x.test/..%2Fnet.pth', 'ftp://x.test/net.pth', 'file:///net.pth', 'http:///net.pth',
     'net.pth'],
)  # fmt: skip
def test_address_that_makes_no_sense(url):
    rule = 'url must be an http or https address that ends in a file name'
    assert fails(url) == f'{rule}, but got {url!r}'


def test_md5_is_verified(server):
    digest = hashlib.md5(RIGHT).hexdigest()
    assert fetch(put(server, 'net.tar'), f'md5:{digest}').read_bytes() == RIGHT
    wrong = 32 * '0'
    message = fails(put(server, 'other.tar'), f'md5:{wrong}')
    assert f'its md5 should begin with {wrong}, but it is {digest}' in message


@pytest.mark.parametrize('status, words', [(404, 'Not Found'), (503, 'Service Unavailable')])
def test_status_is_named(server, cache, status, words):
    server.behave(NAME, status=status)
    url = put(server, NAME)
    assert fails(url).startswith(f'{url}: the server answered {status} ({words}); put the file at')
    assert len(server.asked) == 1 and {path.suffix for path in cache.iterdir()} <= {'.lock'}


def test_web_page_is_not_kept_as_the_file(server, cache, mirrors):
    """A captive portal answers every address with its page and status 200."""
    put(server, 'portal/net.pth', WRONG)
    server.behave('portal/net.pth', kind='text/html; charset=utf-8')
    page = server.address('portal/net.pth')
    assert f'{page}: the server sent a web page instead of the file; put' in fails(page)
    assert not [path for path in cache.rglob('net.pth*') if path.suffix != '.lock']
    mirrors(server.address('portal'))
    assert fetch(put(server, 'net.pth')).read_bytes() == RIGHT
    assert asked(server)[1:] == ['/portal/net.pth', '/net.pth']


def test_redirect_is_followed_and_the_range_with_it(server):
    put(server, f'there/{NAME}')
    server.behave(f'there/{NAME}', drop_after=100)
    server.behave(NAME, status=302, location=server.address(f'there/{NAME}'))
    assert fetch(server.address(NAME)).read_bytes() == RIGHT
    assert server.ranges(f'there/{NAME}') == [None, 'bytes=100-']


@pytest.mark.parametrize('target', ['file:///etc/hostname', 'data:,x'])
def test_redirect_to_another_scheme_is_refused(server, target):
    server.behave(NAME, status=302, location=target)
    message = fails(server.address(NAME))
    assert re.search(rf'answered 302 \(.*{re.escape(target)}.*not allowed', message)


def test_unreachable_target_of_a_redirect_is_an_error(server):
    server.behave(NAME, status=302, location=f'http://127.0.0.1:1/{NAME}')
    assert 'Connection refused' in fails(server.address(NAME))


def test_sha256_that_the_hub_sends_with_a_redirect_is_verified(server, cache):
    put(server, 'there/model.safetensors')
    for sha256, right in ((SHA256, True), ('0' * 64, False)):
        server.behave(
            'model.safetensors', status=302, linked_etag=f'"{sha256}"',
            location=server.address('there/model.safetensors'),
        )  # fmt: skip
        url = server.address('model.safetensors')
        if right:
            assert fetch(url).read_bytes() == RIGHT
            fetch(url).unlink()
        else:
            assert f'its sha256 should begin with {sha256}, but it is {SHA256}' in fails(url)
    assert not [path for path in cache.rglob('*') if path.is_file() and path.suffix != '.lock']


def test_file_of_a_folder_is_used_where_it_lies(folder, cache, mirrors, monkeypatch):
    monkeypatch.setenv('HOME', str(folder.parent))
    monkeypatch.chdir(folder.parent)
    for mirror in (folder, folder.name, f'./{folder.name}/', f'~/{folder.name}'):
        mirrors(mirror)
        path = fetch(f'http://x.test/{NAME}')
        assert path.samefile(folder / NAME)
    assert not cache.exists(), 'a folder of others needs no place to write'


def test_cached_file_comes_before_the_mirrors(server, cache, folder, mirrors):
    cached = fetch(put(server, NAME))
    mirrors('/no/such/folder', folder)
    assert fetch(server.address(NAME)) == cached


def test_mirror_that_is_an_address(server, cache, mirrors):
    put(server, f'copies/{NAME}')
    mirrors(server.address('copies/'))
    assert fetch(f'http://x.test/some/{NAME}') == cache / NAME
    assert asked(server) == [f'/copies/{NAME}']


def test_mirrors_are_asked_in_their_order(server, cache, folder, mirrors):
    empty = folder / 'empty'
    empty.mkdir()
    put(server, f'wrong/{NAME}', WRONG)
    mirrors(empty, server.address('none'), server.address('wrong'), '', folder)
    assert fetch(put(server, NAME)) == folder / NAME
    assert asked(server) == [f'/none/{NAME}', f'/wrong/{NAME}']
    (folder / NAME).write_bytes(WRONG)
    assert fetch(server.address(NAME)) == cache / NAME
    assert (cache / NAME).read_bytes() == RIGHT
    assert asked(server)[2:] == [f'/none/{NAME}', f'/wrong/{NAME}', f'/{NAME}']


def test_each_attempt_is_listed(server, cache, folder, mirrors):
    (folder / NAME).write_bytes(WRONG)
    mirrors(folder, server.folder, server.address('copies'), 'http://127.0.0.1:1')
    server.behave(NAME, status=503)
    url = server.address(NAME)
    assert fails(url).split('; ') == [
        f'{folder / NAME}: {NOT_IT}',
        f'{server.folder / NAME}: there is no such file',
        f'{server.address("copies")}/{NAME}: the server answered 404 (Not Found)',
        f'http://127.0.0.1:1/{NAME}: no connection to 127.0.0.1:1: [Errno 111] Connection refused',
        f'{url}: the server answered 503 (Service Unavailable)',
        f'put the file at {cache / NAME}, or set RES2NET_MM_MIRROR to a folder that has it',
    ]


def test_part_from_a_mirror_is_continued_elsewhere_only_if_the_hash_is_known(server, mirrors):
    mirrors(server.address('copies'))
    for name, continued in ((NAME, 'bytes=100-'), ('net.pth', None)):
        put(server, f'copies/{name}')
        server.behave(f'copies/{name}', truncate=100)
        assert fetch(put(server, name)).read_bytes() == RIGHT
        assert server.ranges(name) == [continued]


@pytest.mark.parametrize('mirror', ['/no/such/folder', 'ftp://x.test/', 'http://', 'x.test'])
def test_mirror_that_makes_no_sense(folder, mirrors, mirror):
    mirrors(folder, mirror)
    message = fails(f'http://x.test/{NAME}')
    assert message.startswith('RES2NET_MM_MIRROR must name') and message.endswith(f'{mirror!r}')
