"""The colours in which classes are shown: (classes, 3) uint8 arrays, RGB."""

import numpy as np

# cityscapesScripts, helpers/labels.py
CITYSCAPES = np.array(
    [
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
        (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ],
    dtype=np.uint8,
)  # fmt: skip

# Black for the background; Okabe and Ito's colours, chosen for any kind of colour vision, and three more
DIGITS = np.array(
    [
        (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
        (150, 150, 150), (255, 255, 255), (110, 60, 30),
    ],
    dtype=np.uint8,
)  # fmt: skip


def voc_palette(classes, first=0):
    """The colours of the ids `first` .. `first + classes - 1` by the rule of PASCAL VOC's development kit.

    The bits of an id, lowest first, go to red, green and blue in turn, and fill each from its highest bit down: id 1 is
    (128, 0, 0), id 2 (0, 128, 0), id 3 (128, 128, 0). Id 0 is black; first=1 leaves it to pixels without a class.
    """
    ids = np.arange(first, first + classes)
    palette = np.zeros((classes, 3), np.uint8)
    for bit in range(24):
        palette[:, bit % 3] |= ((ids >> bit & 1) << 7 - bit // 3).astype(np.uint8)
    return palette
