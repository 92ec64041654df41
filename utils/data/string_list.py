"""A list of strings in two arrays, whose memory forked loader workers have in common.

A Python list of a million file names is a million objects. Every worker writes to their reference counts, and so ends
with its own copy of the memory.
"""

import os

import numpy as np


class StringList:
    """Read-only sequence of strings, such as file names: any name that a file system allows, also one that is no UTF-8."""

    def __init__(self, strings):
        encoded = [os.fsencode(string) for string in strings]
        self.ends = np.cumsum([len(item) for item in encoded], dtype=np.int64)
        self.data = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, index):
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.data[start : self.ends[index]].tobytes())
