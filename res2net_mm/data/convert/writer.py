"""Writes COCO json from annotations that were read elsewhere, and reports what was left out."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...checks import alike, did_you_mean, folded, listed
from ...files import check_writable, write_text
from ..errors import DataError
from ..sets.images import IMAGE_SUFFIXES, read_header

_ALIKE = 'classes that differ only in case, blanks or Unicode form (voc2coco --merge joins them)'
_BORDER = 1  # px by which a box may reach over the border: rounding, and counting from 0 or 1


class Tally(defaultdict[str, list[str]]):
    """Reason -> the places where it arose."""

    def __init__(self) -> None:
        super().__init__(list)

    def add(self, reason: str, where: str | Path) -> None:
        self[reason].append(str(where))

    def lines(self) -> list[str]:
        ordered = sorted(self.items(), key=lambda item: -len(item[1]))
        return [f'  {len(places):,} x {reason}: {listed(places, 3)}' for reason, places in ordered]


class Conversion:
    """A COCO json in the making; once it is written, as text a report.

    Args:
        out: The json to write.
        classes: Names in the order of the categories, whose ids start at 1; by default, the sorted
            names of the objects.
        force: Replace ``out`` if it exists.
        merge: Give names that differ only in case, blanks and Unicode form the spelling in
            ``classes``, or else the first one.

    Raises:
        DataError: ``out`` exists, or a class is named twice.
        OSError: ``out`` cannot be written.
    """

    def __init__(
        self,
        out: str | Path,
        classes: Sequence[str] | None = None,
        force: bool = False,
        merge: bool = False,
    ) -> None:
        self.file = Path(out)
        if self.file.exists() and not force:
            raise DataError(f'{out} exists; give another name, or replace it with --force')
        check_writable(out, 'OUT')
        if twice := [name for name, count in Counter(classes or ()).items() if count > 1]:
            raise DataError(f'classes name {listed(twice)} more than once')
        self.classes, self.merge = classes, merge
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.objects: dict[str, int] = {}  # class -> number, in the order of the categories
        self.others: set[str] = set()  # names of objects that are no classes
        self.left_out = Tally()  # what is not in the json
        self.notes = Tally()  # what is in it but deserves a look
        self.yolo: Counter[str] = Counter()  # YOLO's boxes, for written_as_corners
        self.keypoints = 0  # numbers after each box of YOLO
        self.spellings = {folded(name): name for name in reversed(classes or ())}

    def image(self, file: Path, folder: Path) -> tuple[int, int] | None:
        """Adds an image below ``folder``. Returns its width and height, or None if unreadable."""
        header = read_header(file)
        if header.loaded is None:
            self.left_out.add('image that cannot be read', file)
            return None
        if header.orientation > 1:
            self.notes.add('image that EXIF turns: its annotations must be of the turned one', file)
        (width, height), number = header.loaded, len(self.images) + 1
        name = file.relative_to(folder).as_posix()
        self.images.append({'id': number, 'file_name': name, 'width': width, 'height': height})
        return width, height

    def add(
        self, name: str, box: Sequence[float], area: float, where: str | Path, **more: Any
    ) -> None:
        """Adds an object of the latest image, or reports why it is useless.

        Args:
            name: Its class.
            box: x, y, width, height in px.
            area: In px.
            where: Where it was read, for the report.
            **more: Further entries of the annotation.
        """
        x, y, width, height = box
        image = self.images[-1]
        if self.merge and name not in (self.classes or ()):
            name = self.spellings.setdefault(folded(name), name)
        if self.classes is not None and name not in self.classes:
            self.others.add(name)
            like = self.spellings.get(folded(name))
            hint = f', as {like!r} is (--merge makes them one)' if like else ''
            self.left_out.add(f'object of class {name!r}, which is not asked for{hint}', where)
        elif not all(map(math.isfinite, (*box, area))):
            self.left_out.add('box that is not finite', where)
        elif min(width, height, area) <= 0:
            self.left_out.add('box of no size', where)
        elif x >= image['width'] or y >= image['height'] or x + width <= 0 or y + height <= 0:
            self.left_out.add('box outside of its image', where)
        else:
            if max(-x, -y, x + width - image['width'], y + height - image['height']) > _BORDER:
                self.notes.add('box that reaches over the border of its image', where)
            annotation = {'id': len(self.annotations) + 1, 'image_id': image['id']}
            annotation |= {'category_id': name, 'bbox': list(box), 'area': area, 'iscrowd': 0}
            self.annotations.append(annotation | more)

    def write(self, description: str) -> Conversion:
        """Writes the json, whole or not at all.

        Raises:
            DataError: It would have no image, or all objects were left out.
        """
        if not self.images or (self.left_out and not self.annotations):
            what = 'object' if self.images else 'image'
            why = ';'.join(self.left_out.lines()) or ' nothing was found'
            raise DataError(f'{description}: no {what} can be used:{why}')
        found = Counter(annotation['category_id'] for annotation in self.annotations)
        self.objects = {name: found[name] for name in self.classes or sorted(found)}
        for name, count in self.objects.items():
            if not count:
                self.notes.add('class without objects', name + did_you_mean(name, self.others))
        for group in alike(sorted(found)):
            pair = ' and '.join(f'{name!r} ({found[name]:,})' for name in group)
            self.notes.add(_ALIKE, pair)
        numbers = {name: i for i, name in enumerate(self.objects, 1)}
        for annotation in self.annotations:
            annotation['category_id'] = numbers[annotation['category_id']]
        content = {
            'info': {'description': description},
            'licenses': [],
            'images': self.images,
            'annotations': self.annotations,
            'categories': [{'id': i, 'name': n, 'supercategory': ''} for n, i in numbers.items()],
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.file, json.dumps(content, ensure_ascii=False))
        return self

    def __str__(self) -> str:
        without = len(self.images) - len({one['image_id'] for one in self.annotations})
        crowds = sum(one['iscrowd'] for one in self.annotations)
        lines = [
            f'{self.file}: {len(self.images):,} images ({without:,} without objects), '
            f'{len(self.annotations):,} objects ({crowds:,} to ignore)',
            *(f'  {count:,} {name}' for name, count in self.objects.items()),
            f'for a config: classes={tuple(self.objects)!r}',
        ]
        for title, tally in (('left out:', self.left_out), ('to look at:', self.notes)):
            lines += [title, *tally.lines()] if tally else []
        return '\n'.join(lines)


def image_files(folder: Path) -> list[Path]:
    """The images in a folder and below it, sorted; raises DataError if there is none."""
    if not folder.is_dir():
        raise DataError(f'there is no folder {folder}')
    files = sorted(path for path in folder.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f'no image is in {folder}')
    return files
