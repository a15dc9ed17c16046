"""Published and saved weights in configs, in the Runner and in whole models."""

import os

import mmengine.runner
import pytest
import torch
from filled_files import SMALL, Call
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.runner import CheckpointLoader
from references import randomise

from res2net_mm import Res2Net, create_backbone
from res2net_mm.backbones.base import CONVENTION
from res2net_mm.engine.config import load_config, our_backbones
from res2net_mm.engine.errors import ToolError
from res2net_mm.engine.infer import ConfiguredModel
from res2net_mm.engine.runner import Runner, check_weights, prepare_config, use_safe_loading
from res2net_mm.weights import CheckpointError, DownloadError, load_weights, say_unknown_rules


@pytest.fixture
def safe_loading():
    """The tools' loader, and mmengine's again afterwards."""
    before = dict(CheckpointLoader._schemes)
    yield use_safe_loading
    CheckpointLoader._schemes = before


RESUMABLE = dict(state_dict={}, message_hub={}, meta=dict(epoch=1, iter=4))


def model_config(tmp_path, **init_cfg):
    backbone = dict(type='res2net_mm.Res2Net', **SMALL)
    if init_cfg:
        backbone['init_cfg'] = dict(type='Pretrained', **init_cfg)
    return Config(dict(model=dict(backbone=backbone), work_dir=str(tmp_path)))


def test_weights_are_asked_for_before_anything_else(tmp_path, server, monkeypatch):
    torch.save(Res2Net(**SMALL).state_dict(), server.folder / 'small.pth')
    check_weights(model_config(tmp_path, checkpoint=server.address('small.pth')))
    assert list((tmp_path / 'cache').rglob('small.pth'))
    with pytest.raises(FileNotFoundError, match='init_cfg.checkpoint .*none.pth .*not exist'):
        check_weights(model_config(tmp_path, checkpoint=str(tmp_path / 'none.pth')))
    with pytest.raises(DownloadError, match='none.pth.*404.*--from-scratch'):
        check_weights(model_config(tmp_path, checkpoint=server.address('none.pth')))
    with pytest.raises(ValueError, match='did you mean res2net50_v1b_26w_4s'):
        check_weights(model_config(tmp_path, checkpoint='res2net://res2net50_v1b_26w4s'))
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')
    with pytest.raises(DownloadError, match='RES2NET_MM_MIRROR.*--from-scratch'):
        check_weights(load_config('faster_rcnn_r2n50.py'))


def test_arguments_of_a_tool_reach_the_weights(tmp_path):
    cfg = load_config('faster_rcnn_r2n50.py')
    scratch = prepare_config(cfg, from_scratch=True)
    check_weights(scratch)
    backbone = scratch.model.backbone
    assert (backbone.init_cfg, backbone.frozen_stages, backbone.norm_eval) == (None, -1, False)
    trusting = prepare_config(cfg, trust=True).model.backbone.init_cfg
    assert trusting.trust is True and 'trust' not in cfg.model.backbone.init_cfg
    torch.save(RESUMABLE, tmp_path / 'epoch_1.pth')
    cfg.model.backbone.init_cfg.checkpoint = 'gone.pth'
    with pytest.raises(FileNotFoundError, match='gone.pth'):
        check_weights(cfg)
    check_weights(prepare_config(cfg, resume=str(tmp_path / 'epoch_1.pth')))


def test_pretrained_runs_code_only_for_a_user_who_says_so(tmp_path):
    ran = tmp_path / 'ran'
    path = tmp_path / 'hostile.pth'
    hostile = Call(os.system, f'touch {ran}')
    torch.save(dict(state_dict=Res2Net(**SMALL).state_dict(), meta=hostile), path)
    init_cfg = dict(type='Pretrained', checkpoint=str(path))
    with pytest.raises(CheckpointError, match='system'):
        Res2Net(**SMALL, init_cfg=init_cfg).init_weights()
    assert not ran.exists()
    Res2Net(**SMALL, init_cfg=dict(init_cfg, trust=True)).init_weights()
    assert ran.exists()


def test_init_cfg_takes_what_mmengine_takes(tmp_path):
    source = Res2Net(**SMALL)
    source.init_weights()
    prefix, path = 'model.backbone.', tmp_path / 'd.pth'
    detector = {f'{prefix}{k}': v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=dict(detector, **{'head.weight': torch.zeros(1)})), path)
    pretrained = dict(type='Pretrained', checkpoint=str(path), prefix=prefix)
    for init_cfg in (pretrained, [dict(type='Kaiming', layer='Conv2d'), pretrained]):
        net = Res2Net(**SMALL, init_cfg=init_cfg)
        net.init_weights()
        assert net.init_cfg == init_cfg and net.is_init
        assert all(v.equal(source.state_dict()[k]) for k, v in net.state_dict().items())
    with pytest.raises(CheckpointError, match='d.pth'):  # no prefix, no layout
        Res2Net(**SMALL, init_cfg=dict(pretrained, prefix=None)).init_weights()


@pytest.mark.parametrize('scheme', ['', 'http', 'open-mmlab'])
def test_load_from_of_the_tools_is_safe(tmp_path, server, safe_loading, monkeypatch, scheme):
    ran = tmp_path / 'ran'
    hostile = Call(os.system, f'touch {ran}')
    torch.save(dict(state_dict={}, meta=hostile), server.folder / 'hostile.pth')
    torch.save(dict(state_dict=dict(w=torch.ones(2))), server.folder / 'good.pth')
    names = {'bad': server.address('hostile.pth'), 'good': server.address('good.pth')}
    monkeypatch.setattr('res2net_mm.weights.sources.get_external_models', lambda: names)
    addresses = {
        '': (str(server.folder / 'hostile.pth'), str(server.folder / 'good.pth')),
        'http': (names['bad'], names['good']),
        'open-mmlab': ('open-mmlab://bad', 'open-mmlab://good'),
    }
    bad, good = addresses[scheme]
    safe_loading()
    with pytest.raises(CheckpointError, match='system.*--trust-checkpoint'):
        CheckpointLoader.load_checkpoint(bad)
    assert not ran.exists()
    assert CheckpointLoader.load_checkpoint(good)['state_dict']['w'].sum() == 2
    safe_loading(trust=True)
    CheckpointLoader.load_checkpoint(bad)
    assert ran.exists()


def test_resuming_from_nothing_starts_from_pretrained_weights(tmp_path):
    cfg = load_config('faster_rcnn_r2n50.py')
    cfg.work_dir = str(tmp_path)
    assert not prepare_config(cfg, resume='auto').resume
    torch.save(RESUMABLE, tmp_path / 'epoch_1.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_1.pth'))
    resumed = prepare_config(cfg, resume='auto')  # the Runner then builds no pretrained weights
    assert (resumed.resume, resumed.load_from) == (True, str(tmp_path / 'epoch_1.pth'))
    cfg.update(resume=True, load_from=str(tmp_path / 'epoch_1.pth'))
    assert prepare_config(cfg).resume


def test_arguments_of_a_tool_find_every_backbone(tmp_path):
    plugin = dict(cfg=dict(type='res2net_mm.SqueezeExcitation'), position='after_conv3')
    init_cfg = [dict(type='Kaiming', layer='Conv2d'), dict(type='Pretrained', checkpoint='a.pth')]
    cfg = load_config('faster_rcnn_r2n50.py')
    cfg.model.backbone.update(type=Res2Net, plugins=[plugin], init_cfg=init_cfg)
    assert prepare_config(cfg, trust=True).model.backbone.init_cfg[1].trust is True
    with pytest.raises(FileNotFoundError, match='a.pth'):
        check_weights(cfg)
    scratch = prepare_config(cfg, from_scratch=True).model.backbone
    assert scratch.init_cfg is None and scratch.plugins == [plugin]
    cfg.model.backbone.init_cfg = dict(type='Pretrained')
    with pytest.raises(ToolError, match='init_cfg .*checkpoint'):
        check_weights(cfg)
    assert our_backbones(Config()) == []


def test_failed_initialisation_can_be_tried_again(tmp_path):
    path = tmp_path / 'late.pth'
    net = Res2Net(**SMALL, init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    with pytest.raises(FileNotFoundError):
        net.init_weights()
    source = Res2Net(**SMALL)
    torch.save(source.state_dict(), path)
    net.init_weights()
    assert net.stem[0].weight.equal(source.stem[0].weight)
    filters = list(MMLogger.get_current_instance().filters)
    with pytest.raises(ValueError, match='exclude each other'):
        create_backbone('res2net14_v1b_26w_4s', pretrained=str(path), init_cfg=None)
    with pytest.raises(CheckpointError, match='base_width=8'):
        create_backbone('res2net14_v1b_26w_4s', pretrained=str(path))
    assert MMLogger.get_current_instance().filters == filters


@pytest.mark.parametrize('wrap', [torch.nn.DataParallel, torch.compile])
def test_mark_of_a_wrapped_network(tmp_path, safe_loading, wrap):
    path = tmp_path / 'wrapped.pth'
    torch.save(dict(state_dict=wrap(Res2Net(**SMALL, first_block='paddle')).state_dict()), path)
    assert load_weights(Res2Net(**SMALL, first_block='paddle'), path).first_block == 'paddle'
    with pytest.raises(ValueError, match="first_block='paddle'"):
        load_weights(Res2Net(**SMALL), path)
    if wrap is torch.nn.DataParallel:
        safe_loading()
        with pytest.raises(ValueError, match="first_block='paddle'"):
            mmengine.runner.load_checkpoint(Res2Net(**SMALL), str(path))


class Whole(torch.nn.Module):
    """A model around a backbone, as a detector is."""

    def __init__(self, **args):
        super().__init__()
        self.backbone = Res2Net(**SMALL, **args)
        self.head = torch.nn.Linear(2, 2)


def saved(tmp_path, **args):
    """A checkpoint that our Runner wrote."""
    runner = Runner(
        model=Whole(**args),
        work_dir=str(tmp_path),
        train_dataloader=torch.utils.data.DataLoader([0]),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        experiment_name=str(tmp_path),
    )
    runner.save_checkpoint(
        str(tmp_path), 'epoch_1.pth', save_optimizer=False, save_param_scheduler=False
    )
    return tmp_path / 'epoch_1.pth'


def test_checkpoints_of_the_runner_say_their_rule(tmp_path, safe_loading, monkeypatch):
    path = saved(tmp_path, first_block='paddle')
    content = torch.load(path, weights_only=True)
    mark = dict(first_block='paddle', style='pytorch')
    assert content['meta'][CONVENTION] == {'backbone': mark}
    assert content['state_dict']._metadata['backbone'][CONVENTION] == mark
    assert not [key for key in content['state_dict'] if CONVENTION in key]
    report = load_weights(Res2Net(**SMALL, first_block='paddle'), path)
    assert (report.first_block, report.layout) == ('paddle', 'mmdet')
    with pytest.raises(ValueError, match="epoch_1.pth.*first_block='paddle'.*has first_block='off"):
        load_weights(Res2Net(**SMALL), path)
    said = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', said.append)
    say_unknown_rules(Whole(first_block='paddle'), content)
    assert not said
    say_unknown_rules(Whole(first_block='paddle'), dict(state_dict=dict(content['state_dict'])))
    assert len(said) == 1
    safe_loading()
    for strip in (False, True):  # either place is enough
        if strip:
            content['state_dict'] = dict(content['state_dict'])
            torch.save(content, path)
        whole = Whole()
        before = whole.backbone.stem[0].weight.clone()
        with pytest.raises(ValueError, match="needs first_block='paddle'.*set the former"):
            mmengine.runner.load_checkpoint(whole, str(path))
        assert whole.backbone.stem[0].weight.equal(before)
        mmengine.runner.load_checkpoint(Whole(first_block='paddle'), str(path), strict=True)


def test_published_detector_on_disk_is_known_by_its_name(tmp_path, monkeypatch, safe_loading):
    from res2net_mm.weights import ZOO, sources

    entry = ZOO['faster_rcnn_r2_101_fpn_2x_coco']
    path = tmp_path / entry.filename
    torch.save(dict(state_dict=Whole().state_dict()), path)
    with pytest.raises(CheckpointError, match='should begin with 175f1da6, but it is'):
        load_weights(Res2Net(**SMALL), path)
    state = {k: v for k, v in Whole().state_dict().items()}  # as mmdet saved it: no mark
    torch.save(dict(state_dict=state), path)
    monkeypatch.setattr(sources, 'file_problem', lambda *_: '')
    with pytest.raises(ValueError, match="first_block='mmdet'"):
        load_weights(Res2Net(**SMALL), path)
    assert load_weights(Res2Net(**SMALL, first_block='mmdet'), path).first_block == 'mmdet'
    safe_loading()
    with pytest.raises(ValueError, match="first_block='mmdet'"):
        mmengine.runner.load_checkpoint(Whole(), str(path))
    mmengine.runner.load_checkpoint(Whole(first_block='mmdet'), str(path), strict=True)


def test_mmdets_detector_gives_the_same_boxes(tmp_path, shapes, monkeypatch):
    """Faster R-CNN of mmdet's own config, with 50 layers, saved by mmengine, in our network."""
    theirs = tmp_path / 'theirs.py'
    theirs.write_text("_base_ = 'mmdet::res2net/faster-rcnn_res2net-101_fpn_2x_coco.py'")
    cfg = Config.fromfile(theirs)
    cfg.model.test_cfg.rcnn.score_thr = 0.0  # random weights are sure of nothing
    cfg.model.test_cfg.rpn.max_per_img = 200
    cfg.model.backbone.depth = 50
    cfg.test_dataloader.dataset.pipeline[1].scale = (160, 160)
    torch.manual_seed(0)
    model = MODELS.build(dict(cfg.model, _scope_='mmdet'))
    randomise(model.backbone)
    for name, value in model.backbone.named_parameters():
        if name.endswith('bn3.weight'):
            value.data *= 0.2  # 16 blocks add up
    path = tmp_path / 'faster_rcnn.pth'
    mmengine.runner.save_checkpoint(dict(state_dict=model.state_dict(), meta={}), str(path))
    said = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', said.append)
    image = next((shapes / 'train').glob('*.jpg'))
    found = {}
    for name, backbone in {
        'theirs': {},
        'ours': dict(type='res2net_mm.Res2Net', first_block='mmdet'),
        'official': dict(type='res2net_mm.Res2Net', first_block='official'),
    }.items():
        said.clear()
        cfg.model.backbone.update(backbone)
        predictor = ConfiguredModel(cfg, str(path))
        predictor.model.to(memory_format=torch.channels_last)  # in which ours would be by itself
        found[name] = predictor.predict(image).pred_instances
        unknown = [line for line in said if 'does not say its first-block rule' in line]
        assert len(unknown) == (name != 'theirs')
    assert len(found['theirs'].bboxes) == 100
    for key in ('bboxes', 'scores', 'labels'):
        torch.testing.assert_close(found['ours'][key], found['theirs'][key], rtol=1e-5, atol=1e-4)
    assert (found['official'].bboxes - found['theirs'].bboxes).abs().max() > 1
