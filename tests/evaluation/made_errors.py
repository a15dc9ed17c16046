"""Objects and detections made by hand, with every error known."""

CAT, DOG = 8, 3
# image 4 has all of these, image 6 a cat that is found, image 1 nothing
OBJECTS = dict(
    a=(CAT, [0, 0, 100, 100]),
    b=(CAT, [200, 0, 100, 100]),
    c=(DOG, [400, 0, 100, 100]),
    d=(DOG, [0, 200, 100, 100]),
    e=(CAT, [200, 200, 100, 100]),
    f=(CAT, [400, 200, 100, 100]),
    h=(DOG, [0, 400, 40, 40]),
    crowd=(CAT, [600, 0, 200, 200]),
)
DETECTIONS = dict(
    ignored=(CAT, 0.95, [620, 20, 100, 100]),  # in the crowd
    a=(CAT, 0.9, [0, 0, 100, 100]),
    twice=(CAT, 0.8, [10, 0, 100, 100]),  # IoU 90 / 110 with a
    off=(CAT, 0.7, [260, 0, 100, 100]),  # IoU 40 / 160 with b
    wrong=(CAT, 0.6, [400, 0, 100, 100]),  # it is c, a dog
    both=(CAT, 0.5, [60, 200, 100, 100]),  # IoU 40 / 160 with d, a dog
    nothing=(CAT, 0.4, [700, 400, 50, 50]),
    f=(CAT, 0.3, [400, 200, 100, 100]),
    h=(DOG, 0.2, [0, 400, 40, 40]),
)


def made_set():
    """Content of an annotation file, and results."""
    annotations = [
        dict(
            id=i,
            image_id=4,
            category_id=label,
            bbox=box,
            area=box[2] * box[3],
            iscrowd=int(name == 'crowd'),
        )
        for i, (name, (label, box)) in enumerate(OBJECTS.items())
    ]
    truth = dict(
        images=[dict(id=i, file_name=f'{i}.png', width=800, height=480) for i in (6, 4, 1)],
        annotations=annotations,
        categories=[dict(id=CAT, name='cat'), dict(id=DOG, name='dog')],
    )
    results = [
        dict(image_id=4, category_id=label, score=score, bbox=box)
        for label, score, box in DETECTIONS.values()
    ]
    return truth, results[::-1]
