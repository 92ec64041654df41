"""Sources of segmentation made from tables of the library `datasets`, and from streams of their rows."""

import functools

from utils.data.masks import decode_values, fit_image, to_classes
from utils.data.sampling import spread
from utils.folders.class_names import MOST_CLASSES, listed_classes
from utils.folders.hold_out import hold_out
from utils.images.read import decode_image
from utils.mask_folders.ids import SAMPLE, find_ids
from utils.sources.hub import check_columns, find_column, holds_images, load_splits, open_stream
from utils.sources.hub_files import encoded_image
from utils.sources.tables import Stream, Table, bytes_of, root_of, test_of


class _Masks:
    """What a table and a stream of masks have in common. `set_ids` has to be called before anything is read.

    upright: whether masks are those of images that EXIF turned."""

    upright = True

    def set_ids(self, ids):
        """ids: MaskIds."""
        self.ids, self.classes, self.palette = ids, ids.classes, ids.palette
        self.notes = tuple(dict.fromkeys((*self.notes, *ids.notes)))

    def _read(self, row, place):
        """(PIL image, mask (H, W) int64) of a row; place: its index or number."""
        image_name, mask_name = self.name(place), self.name(place, 1)
        mask = to_classes(self._values(row, place), self.ids.tables, mask_name, self.ids.unknown)
        encoded = bytes_of(row, self.columns[0], self.root, image_name)
        read = functools.partial(decode_image, encoded, image_name, reading=self.reading)
        return fit_image(read, mask.shape, image_name, mask_name, self.upright), mask

    def _values(self, row, place):
        name = self.name(place, 1)
        return decode_values(encoded_image(row[self.columns[1]], self.root, name), name, self.upright)


class TableOfMasks(_Masks, Table):
    """A source of segmentation."""

    def read(self, index):
        return self._read(self.row(index), index)

    def mask(self, index):
        """The values of the mask, (H, W) uint8 or uint16."""
        return self._values(self.row(index), index)

    def part(self, indices):
        """The rows with these places only."""
        part = TableOfMasks(self.table, self.columns, self.title, self.root, self.rows[indices])
        part.set_ids(self.ids)
        return part


class StreamOfMasks(_Masks, Stream):
    """A stream of segmentation."""

    def read(self, example, number):
        return self._read(example, number)


def tables_of_masks(
    name, image_column=None, mask_column=None, val_split=None, seed=0, need_train=True, options=None, say=print
):
    """(training, validation) `TableOfMasks` of the data set `name`; masks are as of `folders.mask_folders`.

    Columns are found by their types and usual names if they are not given. val_split: the fraction of the rows that is held
    out, keyed by `seed`, if there is no validation split. need_train: as of `load_splits`. options: MaskOptions, or None.
    """
    splits, held_out, notes = load_splits(name, val_split, need_train)
    table = splits["train"]
    columns = _columns_of_masks(table, image_column, mask_column)
    read = functools.partial(_table_of_masks, name, columns=columns)
    train, val = read("train", table), read(held_out, splits[held_out]) if held_out else None
    test = test_of(splits, held_out, read, say) if need_train else None
    known = [source for source in (train, val) if source is not None]
    _with_classes(name, [*known, test] if test else known, known, options)
    train.notes = (*notes, *train.notes)
    train, val = (train, val) if held_out else hold_out(train, val_split, seed, say=say)
    val.test = test
    return train, val


def _table_of_masks(name, split, table, columns):
    check_columns(name, table, split, columns)
    return TableOfMasks(table, columns, name, root_of(name))


def stream_of_masks(name, image_column=None, mask_column=None, train_images=None, options=None, say=print):
    """(StreamOfMasks to train on, TableOfMasks to validate on) of the data set `name`; training data is not prepared.

    train_images, say: as of `open_stream`. options: MaskOptions, or None. Without classes.txt the classes are
    those of validation masks.
    """
    stream = open_stream(name, train_images, say)
    columns = _columns_of_masks(stream.table, image_column, mask_column)
    check_columns(name, stream.val_table, stream.held_out, columns)
    train = StreamOfMasks(stream.table, stream.samples, columns, f"{name}, streamed", root_of(name))
    val = TableOfMasks(stream.val_table, columns, name, root_of(name))
    return _with_classes(name, (train, val), [val], options)


def _columns_of_masks(table, image_column, mask_column):
    """(image column, mask column)"""
    image_column = find_column(table, image_column, "image", holds_images, ("image", "img", "pixel_values", "images"))
    usual = "mask label annotation segmentation_map ground_truth segmentation masks labels annotations".split()
    return image_column, find_column(table.remove_columns(image_column), mask_column, "mask", holds_images, usual)


def _with_classes(name, sources, readable, options=None):
    """The sources with `MaskIds`: those of classes.txt, or counted in SAMPLE masks of each table in `readable`."""
    masks = [(source, index) for source in readable for index in spread(len(source), len(source))]
    if not (options and options.everything):
        masks = [(source, index) for source in readable for index in spread(len(source), SAMPLE)]
    ids = find_ids(
        lambda mask: mask[0].mask(mask[1]), masks, f"--dataset {name}", listed=listed_classes(name, MOST_CLASSES),
        named=options and options.values, reduce_zero=bool(options and options.reduce_zero), everything=True,
        of=sum(map(len, readable)), trained=options and options.trained,
    )  # fmt: skip
    for source in sources:
        source.set_ids(ids)
    return tuple(sources)
