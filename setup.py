"""Packaging of res2net_mm; what a wheel holds beside the package is in BuildWithConfigs."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'res2net_mm/version.py').read_text())[1]


class BuildWithConfigs(build_py):
    """Adds what is no module of the package to a wheel.

    configs/, tools/ and the model index go to res2net_mm/.mim, where mim looks. A .pth file has
    Python register the finder of mmcv's operators when it starts, from a copy outside the package,
    whose import would load torch.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in ('configs', 'tools'):
            target = Path(self.build_lib, 'res2net_mm', '.mim', folder)
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build, with files since gone
            # the benchmark's contenders need what no user of a wheel has
            ignored = shutil.ignore_patterns('__pycache__', 'benchmark', 'benchmark.py')
            shutil.copytree(ROOT / folder, target, ignore=ignored)
        shutil.copy(ROOT / 'model-index.yml', target.parent)
        finder = ROOT / 'res2net_mm/ops/mmcv_ext/finder.py'
        shutil.copy(finder, Path(self.build_lib, '_res2net_mm_finder.py'))
        Path(self.build_lib, 'res2net_mm.pth').write_text('import _res2net_mm_finder\n')


setup(
    name='res2net_mm',
    version=VERSION,
    description='Res2Net and Res2Net-DCN backbones for mmdet and mmseg, with nothing to compile',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['res2net_mm', 'res2net_mm.*']),
    cmdclass={'build_py': BuildWithConfigs},
    python_requires='>=3.10',
    install_requires=[
        'torch>=2.7',  # torch.compiler.is_exporting; safe loading by names needs 2.6
        'torchvision',  # its operators stand in for mmcv's compiled ones
        'numpy',
        'tqdm',  # progress bars
        'filelock',  # one download of a file at a time
        'safetensors',  # weights that cannot hold code
        'faster-coco-eval',  # AP of boxes and masks, equal to pycocotools' and much faster
    ],
    # The two stacks share their import names and exclude each other, so neither is required. Each
    # extra is a set that was tested together; newer releases of torch are known to break some.
    extras_require={
        'onedl': [
            'torch==2.11.0',
            'torchvision==0.26.0',
            'onedl-mmengine==0.10.12',
            'onedl-mmcv==2.3.6',
            'onedl-mmdetection==3.5.1',
            'onedl-mmsegmentation==1.4.2',
            'imaug==0.4.3',  # mmdet imports it; older ones go with OpenCV versions not tested here
        ],
        'openmmlab': [
            'torch==2.11.0',
            'torchvision==0.26.0',
            'mmengine==0.10.7',
            'mmcv-lite==2.1.0',
            'mmdet==3.3.0',
            'mmsegmentation==1.2.2',
            'ftfy',  # imported by mmsegmentation 1.2.2, which does not require it
            'regex',  # the same
            'setuptools<81',  # later ones lose pkg_resources, which mmengine imports
        ],
        'dev': ['pytest', 'pytest-xdist', 'ruff', 'timm', 'fvcore'],
        'export': ['onnx', 'onnxruntime'],
    },
)
