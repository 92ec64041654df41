"""TIFF files of any bands, depth and pages, which Pillow does not write."""

import struct


def write_tiff(path, pages, photometric=2, extra=()):
    """pages: arrays (H, W, bands) uint8 or uint16. photometric: 1 grey, 2 RGB; extra: what the bands beside colours are,
    two at most, as in ExtraSamples (0 unspecified, 2 alpha); none: the tag is missing."""
    file = bytearray(b"II*\0\0\0\0\0")
    link = 4  # where the place of the next page's directory is to be written
    for pixels in pages:
        height, width, bands = pixels.shape
        data, bits = pixels.astype(f"<u{pixels.itemsize}").tobytes(), struct.pack(f"<{bands}H", *[8 * pixels.itemsize] * bands)
        at_data, at_bits = len(file), len(file) + len(data)
        file += data + bits
        inline = struct.unpack("<I", (bits + b"\0\0")[:4])[0] if bands <= 2 else at_bits
        tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, inline), (259, 3, 1, 1), (262, 3, 1, photometric),
                (273, 4, 1, at_data), (277, 3, 1, bands), (278, 4, 1, height), (279, 4, 1, len(data))]  # fmt: skip
        if extra:
            tags.append((338, 3, len(extra), sum(kind << 16 * i for i, kind in enumerate(extra))))
        struct.pack_into("<I", file, link, len(file))
        file += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        link = len(file)
        file += b"\0\0\0\0"
    path.write_bytes(file)
