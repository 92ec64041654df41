"""What the pictures and the report cost a run, in per cent of its training time.

    python benchmarks/pictures.py --epochs 30
    python benchmarks/pictures.py --epochs 30 --data_path my_images

Every flag of train_recognition.py may follow. The per cent are of what is drawn while the training goes on; what is drawn
after it, when nothing waits, is printed beside it.
"""

import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import train_recognition
import utils.run.results
from utils.pictures.gallery import Gallery


class Timed(Gallery):
    """A gallery that notes, each time it draws, the seconds since its start, those spent on drawing before, and the cost."""

    rounds = []

    def finish(self, look=None):
        seconds, before = time.perf_counter() - self.start, self.spent
        super().finish(look)
        self.rounds.append((seconds, before, self.cost))


def main():
    utils.run.results.Gallery = Timed
    words = [*sys.argv[1:], "--output_dir", str(pathlib.Path(tempfile.mkdtemp()) / "run"), "--report_to", "none"]
    train_recognition.main(train_recognition.parse_args(words))
    seconds, spent, last = Timed.rounds[-1]
    print(
        f"drawing while training: {spent:.2f} s of {seconds:.1f} s, {100 * spent / seconds:.2f} %, in "
        f"{len(Timed.rounds) - 1} rounds; after it {last:.2f} s"
    )


if __name__ == "__main__":
    main()
