"""Charts, tables and pictures in HTML."""

import base64
import html
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image

from res2net_mm.evaluation import charts
from res2net_mm.evaluation.charts import Shape

EVIL = '<script>alert("1")</script> & \'x\''


def data_of(figure):
    return json.loads(html.unescape(re.search(r'data-chart="([^"]*)"', figure)[1]))


def test_every_text_is_escaped(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    page = charts.write_page(
        tmp_path / 'page.html',
        EVIL,
        [
            charts.section(EVIL, charts.note(EVIL), charts.listing(EVIL), charts.listing('', EVIL)),
            charts.lines(EVIL, {EVIL: [(0, 1)]}, EVIL),
            charts.bars(EVIL, {EVIL: (0.5, EVIL)}),
            charts.table(EVIL, [EVIL], [[EVIL, EVIL]]),
            charts.matrix(EVIL, [EVIL], np.ones((1, 1)), np.ones(1)),
            charts.pair(EVIL, pixels, {EVIL: [Shape((0, 0, 4, 4), 'found', EVIL)]}),
        ],
    )
    text = page.read_text()
    assert 'alert(&quot;1&quot;)' in text and 'alert("1")' not in text
    assert text.count('<script>') == 1 and "'x'" not in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text) and 'url(http' not in text


def test_lines_are_where_the_values_are():
    figure = charts.lines('t', {'a': [(0, 0), (10, 2)], 'b': [(5, 1), (6, math.nan)]}, 'x')
    data = data_of(figure)
    assert data == dict(x='x', limits=[0, 10], series=[[[0, 10], [0, 2]], [[5], [1]]])
    paths = re.findall(r'points="([^"]*)"', figure)
    assert paths[0].split() == ['44.0,200.0', '412.0,8.0'] and paths[1] == '228.0,104.0'
    assert figure.count('<circle') == 3
    assert charts.lines('t', {'a': [(0, math.inf)], 'b': []}, 'x') == ''


def test_long_lines_are_thinned_and_keep_their_end():
    figure = charts.lines('t', {'a': [(i, i * i) for i in range(5001)]}, 'x')
    xs, ys = data_of(figure)['series'][0]
    assert 300 < len(xs) <= 401 and (xs[0], xs[-1], ys[-1]) == (0, 5000, 5000**2)
    assert all(y == x * x for x, y in zip(xs, ys, strict=True))


@pytest.mark.parametrize('high', [1, 0.0031, 7, 123456, 2e-9])
def test_ticks_are_round_and_few(high):
    figure = charts.lines('t', {'a': [(0, 0), (1, high)]}, 'x')
    ticks = [float(t) for t in re.findall(r'text-anchor="end">([^<]*)<', figure)]
    assert 2 <= len(ticks) <= 7 and ticks[0] == 0 and ticks[-1] <= high * (1 + 1e-6)
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0]) and f'{steps[0]:e}'[0] in '125'


def test_matrix_shares_are_of_the_whole_row():
    figure = charts.matrix('t', ['a', 'b'], np.array([[1, 2], [0, 0]]), np.array([4, 0]))
    assert re.findall(r'--share:([\d.]+)', figure) == ['0.250', '0.500', '0.000', '0.000']
    assert 'title="a as b: 2 (50.0%)"' in figure


def test_label_maps_lie_on_the_picture():
    labels = np.array([[0, 1], [255, 300]])
    text = charts.picture(np.full((2, 2, 3), 90, np.uint8), labels)
    kinds = re.findall(r'href="data:image/(\w+);base64,([^"]*)"', text)
    assert [kind for kind, _ in kinds] == ['jpeg', 'png']
    over = np.array(Image.open(io.BytesIO(base64.b64decode(kinds[1][1]))))
    assert over[1, :, 3].tolist() == [0, 0] and (over[0, :, 3] > 0).all()
    for k in (0, 1):
        assert f'#{over[0, k, :3].tobytes().hex()}' == charts.colour(k)
    assert len({charts.colour(k) for k in range(150)}) == 150


def test_texts_do_not_hide_a_picture():
    pixels, shape = np.zeros((60, 60, 3), np.uint8), Shape((1, 2, 3, 4), 'lost', 'cat', 'told')
    assert charts.picture(pixels, [shape] * 12).count('>cat<') == 12
    text = charts.picture(pixels, [shape] * 13)
    assert '>cat<' not in text and text.count('<title>told') == 13


def test_boxes_keep_the_coordinates_of_a_large_picture():
    pixels = np.zeros((600, 1000, 3), np.uint8)
    text = charts.picture(pixels, [Shape((100, 50, 300.26, 200), 'lost', 'cat')])
    assert 'viewBox="0 0 1000 600"' in text and 'class="lost"' in text
    assert '<rect x="100.0" y="50.0" width="300.3" height="200.0"/>' in text
    image = Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]*)', text)[1])))
    assert image.size == (480, 288)
