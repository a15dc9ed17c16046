import pytest

from res2net_mm.engine import runner as module
from res2net_mm.engine.config import load_config
from res2net_mm.engine.errors import ToolError, one_line
from res2net_mm.engine.report import describe_batch, preprocessing_warnings
from res2net_mm.engine.runner import prepare_config


def test_wrong_name_gets_the_nearest(tmp_path):
    with pytest.raises(ToolError, match='fast_rcnn_r2n50.py does not exist; did you mean .*_r2n50'):
        load_config('configs/fast_rcnn_r2n50.py')
    mine = tmp_path / 'my_detector.py'
    mine.write_text('')
    with pytest.raises(ToolError, match=f'did you mean {mine}'):
        load_config(tmp_path / 'mydetector.py')


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('model = dict(\n', 'does not parse: line 1 SyntaxError'),
        ("_base_ = './nothing.py'", 'does not parse:.*nothing.py'),
        ('model = dict(depth=1 / 0)', 'does not parse: ZeroDivisionError'),
        ("custom_imports = dict(imports=['no_such_module'])", 'does not parse:.*no_such_module'),
    ],
)
def test_config_that_does_not_parse(tmp_path, text, words):
    path = tmp_path / 'broken.py'
    path.write_text(text)
    with pytest.raises(ToolError, match=words) as caught:
        load_config(path)
    assert str(path) in str(caught.value) and '\n' not in one_line(caught.value)


def test_options_that_do_not_fit(tmp_path):
    path = tmp_path / 'list.py'
    path.write_text('steps = [dict(a=1), dict(a=2)]')
    assert load_config(path, {'steps.1.a': 5}).steps == [dict(a=1), dict(a=5)]
    with pytest.raises(ToolError, match=f'--cfg-options .*steps.7.a.* do not fit config {path}'):
        load_config(path, {'steps.7.a': 5})


def test_packaged_configs_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config('faster_rcnn_r2n50.py').model.backbone.depth == 50


def test_batch_and_learning_rate():
    cfg = load_config('faster_rcnn_r2n50.py')
    cfg.train_dataloader.batch_size = 4
    line = describe_batch(cfg)
    assert line.startswith('batch: 4 images a step (4 x 1 processes); learning rate 0.02. WARNING')
    assert 'meant for 16 images; pass --auto-scale-lr' in line and 'lr to 0.005' in line
    assert 'x 4/16 (scaled)' in describe_batch(prepare_config(cfg, auto_scale_lr=True))
    cfg.optim_wrapper.accumulative_counts = 4
    assert describe_batch(cfg) == (
        'batch: 16 images a step (4 x 1 processes x 4 accumulated); learning rate 0.02'
    )
    scaled = describe_batch(prepare_config(cfg, auto_scale_lr=True))
    assert scaled.endswith('learning rate 0.02 x 16/16 (scaled) = 0.02')
    cfg.train_dataloader.pop('batch_size')
    with pytest.raises(ToolError, match='no train_dataloader.batch_size'):
        describe_batch(cfg)


def test_preprocessing_that_published_weights_do_not_fit():
    cfg = load_config('faster_rcnn_r2n50.py')
    assert preprocessing_warnings(cfg) == []
    cfg.model.data_preprocessor.update(bgr_to_rgb=False, mean=[0, 0, 0])
    lines = preprocessing_warnings(cfg)
    assert len(lines) == 2 and 'bgr_to_rgb is False' in lines[1] and 'v1b' in lines[1]
    cfg.model.backbone.init_cfg = None
    assert preprocessing_warnings(cfg) == []


def test_prepare_config(tmp_path):
    cfg = load_config('faster_rcnn_r2n14_shapes.py')
    prepared = prepare_config(cfg)
    assert prepared.work_dir == 'work_dirs/faster_rcnn_r2n14_shapes' and 'work_dir' not in cfg
    first = prepared.train_dataloader.dataset.pipeline[0].type
    assert first == 'res2net_mm.LoadImageFromFile'
    assert cfg.train_dataloader.dataset.pipeline[0].type == 'LoadImageFromFile'
    cfg.pop('randomness')
    assert isinstance(prepare_config(cfg).randomness['seed'], int)
    cfg.pop('auto_scale_lr')
    with pytest.raises(ToolError, match='--auto-scale-lr needs auto_scale_lr.base_batch_size'):
        prepare_config(cfg, auto_scale_lr=True)
    with pytest.raises(FileNotFoundError, match='nothing.pth does not exist'):
        prepare_config(cfg, resume=str(tmp_path / 'nothing.pth'))
    cfg.load_from = str(tmp_path / 'nothing.pth')
    with pytest.raises(FileNotFoundError, match='load_from .*nothing.pth'):
        prepare_config(cfg)


def test_message_of_a_worker_is_its_last_line():
    text = (
        'Caught DataError in DataLoader worker process 1.\nOriginal Traceback (most recent call '
        'last):\n  File "x.py", line 1, in f\n    g()\nres2net_mm.data.errors.DataError: '
        'image a.jpg\n is cut short\n'
    )
    assert one_line(ValueError(text)) == 'image a.jpg is cut short'
    assert one_line(KeyError('inputs')) == "key 'inputs' is missing"
    assert one_line(KeyError('X is not in the registry')) == 'X is not in the registry'
    assert one_line(ValueError()) == 'ValueError'


def test_mixed_precision(monkeypatch):
    cfg = load_config('faster_rcnn_r2n14_shapes.py')

    def wrapper_on(device):
        monkeypatch.setattr(module, 'get_device', lambda: device)
        return prepare_config(cfg, amp=True).optim_wrapper

    on_gpu, on_cpu = wrapper_on('cuda'), wrapper_on('cpu')
    assert on_gpu == dict(cfg.optim_wrapper, type='AmpOptimWrapper', loss_scale='dynamic')
    assert on_cpu == dict(cfg.optim_wrapper, type='res2net_mm.CPUAmpOptimWrapper')
    with pytest.raises(ToolError, match='for CUDA devices and CPUs, and the device here is mps'):
        wrapper_on('mps')
    said = []
    monkeypatch.setattr(module, 'print_log', lambda message, **kwargs: said.append(message))
    cfg.optim_wrapper = dict(on_gpu, dtype='float16')  # as a config for GPUs may have it
    assert wrapper_on('cpu') == on_cpu == prepare_config(cfg).optim_wrapper
    assert all(any(f'optim_wrapper.{key} is' in s for s in said) for key in ('loss_scale', 'dtype'))
    cfg.optim_wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(ToolError, match='optim_wrapper.type OptimWrapper.* has ApexOptimWrapper'):
        wrapper_on('cpu')
    del cfg.optim_wrapper.type  # mmengine's default is the right one
    assert wrapper_on('cpu') == on_cpu
    cfg.pop('optim_wrapper')
    with pytest.raises(ToolError, match='--amp needs an optim_wrapper in the config'):
        wrapper_on('cpu')
