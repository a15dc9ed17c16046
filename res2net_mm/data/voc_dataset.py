"""mmdet's VOC datasets, for annotation files on which its own reader fails.

The package does not import this module: a config's ``type`` names the classes by their full path,
and only then is mmdet imported.
"""

from __future__ import annotations

import os.path

import mmcv
from mmdet.datasets import VOCDataset as MMDetVOCDataset
from mmdet.datasets import XMLDataset as MMDetXMLDataset
from mmengine import fileio

from .sets.voc import find_image, read_voc


class _LooseFiles:
    """Reads with :func:`read_voc`, and accepts images that are not named ``.jpg``."""

    def parse_data_info(self, img_info: dict) -> dict:
        """Returns what mmdet's method of this name returns."""
        backend = self.backend_args
        size, objects = read_voc(fileio.get(img_info['xml_path'], backend), img_info['xml_path'])
        image = find_image(
            os.path.splitext(os.path.join(self.sub_data_root, img_info['file_name']))[0],
            lambda file: fileio.exists(file, backend),
        )
        if size is None:
            size = mmcv.imfrombytes(fileio.get(image, backend), backend='cv2').shape[1::-1]
        instances = []
        least = None if self.test_mode else self.bbox_min_size  # filter_cfg is for training
        for obj in objects:
            if obj.name in self.cat2label:
                x1, y1, x2, y2 = (side - 1 for side in obj.box)  # VOC counts pixels from 1
                small = least is not None and min(x2 - x1, y2 - y1) < least
                label, ignored = self.cat2label[obj.name], int(obj.difficult or small)
                instance = {'bbox': [x1, y1, x2, y2], 'bbox_label': label, 'ignore_flag': ignored}
                instances.append(instance)
        width, height = size
        found = {'img_path': image, 'width': width, 'height': height, 'instances': instances}
        return {'img_id': img_info['img_id'], 'xml_path': img_info['xml_path'], **found}


class VOCDataset(_LooseFiles, MMDetVOCDataset):
    """mmdet's ``VOCDataset``, equal to it on every file that mmdet can read."""


class XMLDataset(_LooseFiles, MMDetXMLDataset):
    """mmdet's ``XMLDataset``, equal to it on every file that mmdet can read."""
