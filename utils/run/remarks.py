"""What a run says about itself on the way: how long it will take, and what is doubtful, each once."""

import time

from utils.metrics.advice import first_tenth, never_predicted, not_moving, overfits, small_data
from utils.report.run_files import read_json, read_records
from utils.run.log import clock

FIRST_LOOK = 10  # updates of this start, after which the time that is left can be told


class Remarks:
    """log: RunLog. What is doubtful goes into warnings.txt, which report.html shows."""

    def __init__(self, log, *, images, batch, lr, resumed):
        """images: to train on; batch: images of an update; lr: the peak rate; resumed: an earlier start has said what was
        doubtful then."""
        self.log, self.lr, self.done, self.said = log, lr, 0, set()
        if resumed:
            self.said |= {kind for kind, line in self._doubts().items() if line}
        else:
            self._warn({"small data": small_data(images, batch)})

    def start_epoch(self, total, done, updates):
        """An epoch begins. total: updates of the run, of which so many are done; updates: of this epoch that are left."""
        self.total, self.before = total, done if self.done == 0 else self.before
        if self.done == 0:
            self.first_look, self.begin = min(FIRST_LOOK, updates), time.perf_counter()

    def wants_look(self, update):
        """Whether the run is to read its losses after `update` updates, since something can be said then. Once an update."""
        self.done += 1
        if self.done == 1 < self.first_look:
            self.begin = time.perf_counter()  # the first update makes the kernels ready, and does not count
        return self.done == self.first_look or update == first_tenth(self.total)

    def after_look(self, update):
        """Say what can be said after so many updates, whose losses are in updates.txt."""
        if self.done == self.first_look:
            seconds = (time.perf_counter() - self.begin) / max(self.done - 1, 1)
            left = self.total - self.before
            these = f"all {self.total} updates" if left == self.total else f"the {left} updates that are left"
            self.log.say(f"time: {these} take about {clock(max(1, seconds * left))} on this machine, evaluations not counted")
        if update == first_tenth(self.total) and self.log.folder:
            updates = read_records(self.log.folder / "updates.txt", "update", "epoch")
            self._warn({"still": not_moving(updates, self.total, self.lr)})

    def after_epoch(self):
        self._warn(self._doubts())

    def _doubts(self):
        folder = self.log.folder
        if not folder:
            return {}
        epochs = read_records(folder / "log.txt", "epoch")
        classes = [row for row in read_json(folder / "classes.json", list) if isinstance(row, dict)]
        return {"overfits": overfits(epochs), "never": never_predicted(classes, epochs)}

    def _warn(self, lines):
        for kind, line in lines.items():
            if line and kind not in self.said:
                self.said.add(kind)
                self.log.warn(line)
