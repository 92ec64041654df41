"""Images, masks, tables and archives of a few pixels and rows, for the tests of sources."""

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

SIZE = (16, 12)  # width, height


def encoded(shade=0, mode="RGB", kind="PNG", size=SIZE):
    """The bytes of an image file of one colour."""
    shade = (shade,) * 3 if mode == "RGB" and isinstance(shade, int) else shade
    Image.new(mode, size, shade).save(file := io.BytesIO(), kind)
    return file.getvalue()


def encoded_mask(*values, size=SIZE):
    """The bytes of a PNG of equal columns of the `values`, the last one in what is left over."""
    columns = np.minimum(np.arange(size[0]) * len(values) // size[0], len(values) - 1)
    Image.fromarray(np.tile(np.array(values, np.uint8)[columns], (size[1], 1))).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_image(path, shade=100, size=SIZE):
    write(path, encoded(shade, size=size))


def write_mask(path, *values, size=SIZE):
    write(path, encoded_mask(*values, size=size))


def write_parquet(path, **columns):
    """A table of these columns. Bytes in a list become what the library `datasets` writes for images: {"bytes", "path"}."""
    for name, values in columns.items():
        if isinstance(values, list) and values and isinstance(values[0], bytes):
            columns[name] = [{"bytes": value, "path": None} for value in values]
    path.parent.mkdir(parents=True, exist_ok=True)
    pa.parquet.write_table(pa.table(columns), path)


def write_tar(path, members):
    """A tar of (name, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def images(count):
    """The bytes of image files of the shades 0, 1, …"""
    return [encoded(i) for i in range(count)]


def letter(i):
    """One of three class names."""
    return "cab"[i % 3]


def write_images(folder, label, train=12, validation=5):
    """Parquet files of so many `images`; label: shade -> label."""
    for split, count in (("train", train), ("validation", validation)):
        write_parquet(folder / f"{split}.parquet", image=images(count), label=[label(i) for i in range(count)])


def write_masks(folder, train=12, validation=5):
    """As `write_images`; the mask of image i holds 255 in its left half and i % 3 in its right one."""
    for split, count in (("train", train), ("validation", validation)):
        masks = [encoded_mask(255, i % 3) for i in range(count)]
        write_parquet(folder / f"{split}.parquet", mask=masks, image=images(count))


def shade(image):
    return int(np.asarray(image)[0, 0, 0])


def ids(source, index=0):
    """The ids in the first row of a mask, in order, without repetition."""
    row = source.read(index)[1][0]
    return row[np.flatnonzero(np.diff(row, prepend=-9))].tolist()


def names(source):
    return [source.name(index).rpartition("/")[2] for index in range(len(source))]
