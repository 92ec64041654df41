"""A list of strings in two arrays: a million file names that loader workers share instead of copying.

A Python list of a million strings is a million objects, whose reference counts every forked worker writes to, so
that each worker ends with its own copy of the memory.
"""

import os

import numpy as np


class StringList:
    """Read-only sequence of file names or other strings; any name that the file system allows survives the trip."""

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
