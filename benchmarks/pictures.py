"""What the pictures and the report cost a run, in per cent of its training time.

    python benchmarks/pictures.py --epochs 30
    python benchmarks/pictures.py --epochs 30 --data_path my_images

Every flag of train_recognition.py may follow. What is drawn while training goes on counts; what is drawn at the end, when
nothing waits for it, is given besides.
"""

import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import train_recognition
from utils.report.gallery import Gallery


class Timed(Gallery):
    """A gallery that tells how long it drew, and when the training was over."""

    def finish(self):
        before = self.spent
        super().finish()
        self.last = (time.perf_counter() - self.start, before)
        galleries.append(self)


galleries = []


def main():
    train_recognition.Gallery = Timed
    words = [*sys.argv[1:], "--output_dir", str(pathlib.Path(tempfile.mkdtemp()) / "run"), "--report_to", "none"]
    train_recognition.main(train_recognition.parse_args(words))
    gallery = galleries[-1]
    total, during = gallery.last
    print(
        f"drawing while training: {during:.2f} s of {total - gallery.expected:.1f} s, {100 * during / total:.2f} %, in "
        f"{len(galleries)} rounds; at the end {gallery.expected:.2f} s"
    )


if __name__ == "__main__":
    main()
