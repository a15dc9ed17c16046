"""Packaging of res2net_mm. BuildWithConfigs adds what a wheel holds besides the package."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'res2net_mm/version.py').read_text())[1]


class BuildWithConfigs(build_py):
    """Adds files to the wheel that are not modules of the package.

    configs/, tools/ and the model index go to res2net_mm/.mim, where mim looks for them. A .pth
    file makes Python register the finder for mmcv's operators at startup. It imports a copy of the
    finder from outside the package, because importing the package would load torch.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for folder in ('configs', 'tools'):
            target = Path(self.build_lib, 'res2net_mm', '.mim', folder)
            shutil.rmtree(target, ignore_errors=True)  # files left by an earlier build
            # the benchmark compares with packages that users of a wheel do not have
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
    py_modules=['res2net_command'],
    entry_points={'console_scripts': ['res2net = res2net_command:main']},
    cmdclass={'build_py': BuildWithConfigs},
    # tarfile's filters came with 3.10.12 and 3.11.4
    python_requires='>=3.10.12,!=3.11.0,!=3.11.1,!=3.11.2,!=3.11.3',
    install_requires=[
        'torch>=2.7.1',  # the oldest release tested; torch.compiler.is_exporting needs 2.7
        'torchvision',  # its operators stand in for mmcv's compiled ones
        'numpy',
        'tqdm',  # progress bars
        'filelock',  # one download of a file at a time
        'safetensors',  # weights that cannot hold code
        'faster-coco-eval',  # computes the same AP as pycocotools, much faster
        'supervision>=0.31',  # draws predictions
        'av>=14.2',  # reads and writes videos
    ],
    # The two stacks share import names and exclude each other, so neither is required. Each extra
    # is tested as a set, and both ends of a range by make test-oldest and make test-newest.
    extras_require={
        'onedl': [
            'torch>=2.7.1,<=2.14.1',
            'torchvision>=0.22.1,<=0.29.1',
            'onedl-mmengine==0.10.12',
            'onedl-mmcv==2.3.6',
            'onedl-mmdetection==3.5.1',
            'onedl-mmsegmentation==1.4.2',
            'imaug==0.4.3',  # imported by mmdet; older ones need an OpenCV that is not tested
        ],
        'openmmlab': [
            'torch==2.11.0',
            'torchvision==0.26.0',
            'mmengine==0.10.7',
            'mmcv-lite==2.1.0',
            'mmdet==3.3.0',
            'mmsegmentation==1.2.2',
            'ftfy',  # mmsegmentation 1.2.2 imports it without requiring it
            'regex',  # likewise
            'setuptools<81',  # later releases lack pkg_resources, which mmengine imports
        ],
        'timm': ['timm>=1.0'],  # TimmBackbone
        'dev': ['pytest', 'pytest-xdist', 'ruff', 'timm', 'fvcore'],
        # classifiers on the onedl stack, and what mmpretrain imports
        'classification': [
            'onedl-mmpretrain==1.3.6',
            'model-index',
            'modelindex',
            'einops',
            'mat4py',
            'ordered-set',
            'markdown',
            'importlib-metadata',
        ],
        'export': ['onnx', 'onnxruntime'],
        # runs .xml files, the fastest on CPUs, and makes int8 of them
        'openvino': ['openvino>=2026.4', 'nncf>=3.4'],
        'explain': ['grad-cam>=1.5.7'],  # class activation maps
        # what mmpose needs; mmpose itself needs --no-deps, see docs/pose.md
        'pose': ['json_tricks', 'munkres', 'scipy', 'matplotlib'],
        'saliency': ['pysodmetrics>=1.6.2'],  # the measures of salient object detection
    },
)
