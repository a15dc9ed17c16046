"""Converts annotations of other formats to COCO json, and reports what was left out."""

import argparse

from ctrl_c import run_tool

EXAMPLE = """examples:
  python tools/convert_data.py voc2coco data/VOCdevkit/VOC2007 train.json \\
      --list ImageSets/Main/train.txt
  python tools/convert_data.py yolo2coco data/signs val.json --images images/val --labels labels/val
  python tools/convert_data.py masks2coco data/cells/images data/cells/masks cells.json \\
      --kind instances --classes cell
"""


def main() -> None:
    formatting = dict(epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, **formatting)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def command(name: str, description: str, *arguments: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=description, description=description, **formatting)
        for argument in arguments:
            added.add_argument(argument, metavar=argument.upper())
        added.add_argument('out', metavar='OUT', help='the json to write')
        added.add_argument('--force', action='store_true', help='replace OUT where it exists')
        return added

    voc = command('voc2coco', 'Pascal VOC: one xml file per image', 'root')
    voc.add_argument('--list', dest='names', help='file of image names; by default every xml file')
    voc.add_argument('--classes', nargs='+', metavar='NAME', help='by default all, sorted')
    voc.add_argument(
        '--merge',
        action='store_true',
        help='make names that differ only in case, blanks or Unicode form one class',
    )
    voc.add_argument('--images', default='JPEGImages', help='folder below ROOT')
    voc.add_argument('--annotations', default='Annotations', help='folder below ROOT')

    yolo = command('yolo2coco', 'YOLO: one text file per image, with boxes or polygons', 'root')
    yolo.add_argument(
        '--classes', nargs='+', metavar='NAME', help='by default those of data.yaml or classes.txt'
    )
    yolo.add_argument('--images', default='images', help='folder below ROOT')
    yolo.add_argument('--labels', default='labels', help='folder below ROOT')

    masks = command('masks2coco', 'masks and label maps in png files', 'images', 'masks')
    masks.add_argument(
        '--kind',
        choices=('instances', 'binary', 'labels'),
        required=True,
        help='instances: a pixel is the number of its object; binary: a folder per image, a png '
        'per object; labels: a pixel is its class, and every connected piece is an object',
    )
    masks.add_argument('--classes', nargs='+', metavar='NAME', required=True)
    help_first = 'value of the first class in labels, in which 255 is ignored'
    masks.add_argument('--first', type=int, default=1, help=help_first)

    args = vars(parser.parse_args())

    from res2net_mm.data.convert import formats

    print(getattr(formats, args.pop('command'))(**args))


if __name__ == '__main__':
    run_tool(main)
