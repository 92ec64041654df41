"""One run: its folder, log, counters, saved states, results, trackers and signals.

The training scripts call it between the steps that they make themselves. It never calls the model, the loss or the step of
the optimizer, and takes no function of theirs.
"""

import math
import sys
import time

import accelerate

from utils.cli.errors import InputError, Stopped
from utils.data.bad_samples import BadSamples, check_data
from utils.data.fingerprint import fingerprint
from utils.data.masks import unknown_line
from utils.data.sampling import stream_seed
from utils.files import write_json
from utils.images.bands import bands_of
from utils.images.formats import allow_pixels
from utils.images.read import AS_STORED
from utils.model.processes import forget_peak, peak_memory
from utils.report.scores import epoch_line, score_of
from utils.run import folder, state, trackers
from utils.run.log import RunLog, clock
from utils.run.remarks import Remarks
from utils.run.results import Results
from utils.run.signals import Signals
from utils.run.updates import Updates


class Run:
    """A run of a script, from its first line to its last: `open`, `resume`, epochs within the run as a context, `finish`.

    args: Arguments; batch: Batch; metric: the score that decides which weights are the best, such as "acc1".
    Until `open` it has no folder, and writes to the console only.
    """

    def __init__(self, accelerator, args, batch, script, metric):
        self.accelerator, self.args, self.batch, self.script, self.metric = accelerator, args, batch, script, metric
        self.log = RunLog(accelerator.is_main_process and not args.dry_run)
        self.data_report = None  # a dict of utils/check/
        args.output_dir = args.output_dir or folder.before_restart(accelerator, script)  # whose plan this start follows
        if args.max_image_pixels:
            allow_pixels(args.max_image_pixels)
        self.counters, self.record, self.signals, self.fault = None, {}, None, None
        self.evaluated = False  # whether this start has reached an evaluation
        self.trained = False  # whether the last epoch is over
        # The norm that gradients are clipped to: inf where only their size is wanted, None where nothing is.
        self.max_norm = args.clip_grad or (math.inf if args.skip_nonfinite else None)
        default = args.report_to is None
        self.report_to = trackers.check(["tensorboard"] if default else args.report_to, default=default, say=self.say)

    def say(self, *lines):
        """Print lines, once for all processes. A dry run, whose output may be JSON, says what is in doubt on stderr."""
        for line in lines:
            if not self.args.dry_run:
                self.log.say(line)
            elif self.accelerator.is_main_process and line.startswith(("warning: ", "note: ")):
                print(line, file=sys.stderr)

    # --- before the first epoch

    def open(self, train_source, val_source, config, *, weights, shown, groups):
        """Make the folder of the run, or find the one to go on with. InputError where the folder holds another run.

        config: for config.json beside the weights. weights: what the run starts from, in words. shown: how pictures show a
        batch (mean, std, and palette where it has masks). groups: rows of the parameter groups.
        """
        args, classes = self.args, train_source.classes
        reading = getattr(train_source, "reading", AS_STORED)
        config = config | reading.as_config()
        facts = {"train_images": len(train_source), "val_images": len(val_source), "classes": classes}
        facts |= {"data": fingerprint(train_source), "precision": self.accelerator.mixed_precision}
        facts |= {"val_data": None if args.disable_eval else fingerprint(val_source), "values_read": reading.value_range}
        self._refuse_other_data(facts)
        self.settings = args.decisive() | {"total_batch": self.batch.total} | facts
        self.sources, self.shown = (train_source, val_source), {"classes": classes, "bands": bands_of(train_source), **shown}
        self.folder, self.state = folder.open_together(
            self.accelerator, args.output_dir, self.script, self.settings, vars(args) | {"planned": args.planned},
            resume=args.resume, auto_resume=args.auto_resume, say=self.say,
        )  # fmt: skip
        args.output_dir = self.folder
        self.log.open(self.folder)
        self.say(f"output: {self.folder}")
        if self.log.folder and self.data_report:
            write_json(self.log.folder / "data_report.json", self.data_report)
        self.results = Results(
            self.accelerator, self.log, args, self.metric, self.sources, config, weights=weights, shown=self.shown,
            groups=groups,
        )  # fmt: skip

    def _refuse_other_data(self, facts):
        """InputError on all processes where one of them, of another machine, has found other images than the main one."""
        told = [{name: facts[name] for name in ("train_images", "val_images", "data", "val_data")}]
        first, *others = accelerate.utils.gather_object(told)
        if other := next((found for found in others if found != first), None):
            images = [
                "{train_images:,} training and {val_images:,} validation images".format(**found) for found in (first, other)
            ]
            raise InputError(f"the machines have other data: found {images[0]} on one, {images[1]} on another, or other names "
                             "or classes; expected the same files below the same path on each")  # fmt: skip

    def resume(self, model, optimizer, ema, train_loader):
        """Put the saved state into place, if there is one, and be ready to save others.

        model: as it was before `prepare`; optimizer: as `prepare` returned it; ema: None: there is none.
        """
        self.model, self.optimizer, self.ema, self.loader = model, optimizer, ema, train_loader
        args, accelerator, say = self.args, self.accelerator, self.say
        per_epoch, batch = train_loader.updates, self.batch
        self.counters = state.Counters(batch=str(batch), updates_per_epoch=per_epoch, batch_total=batch.total)
        if self.state:
            self.counters = state.load(self.state, accelerator, model, optimizer, ema, self.settings, batch, per_epoch, say)
            train_loader.load_state_dict(self.counters.stream)
            self.counters.best = folder.take_best(accelerator, self.state, self.folder, self.counters.best)
        self.results.begin(model, self.counters, resumed=bool(self.state))
        self.log.cut(self.counters.epoch, self.counters.update)
        self.n_parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self.trackers = trackers.Trackers(
            accelerator, self.report_to, self.folder, self.settings, self.counters.update, say, f"best_test_{self.metric}"
        )
        bad_samples = BadSamples(self.sources[0].name, len(self.sources[0]), args.max_bad_samples, self.counters.bad_samples)
        if args.check_data:
            check_data(accelerator, bad_samples, *self.sources, self.log)
            self.counters.bad_samples = bad_samples.indices
        statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self.updates = Updates(accelerator, self.counters, self.log, bad_samples, args.skip_nonfinite, statistics)
        self.remarks = Remarks(self.log, images=len(self.sources[0]), batch=batch.total, lr=args.lr, resumed=bool(self.state))
        self.start, self.first_epoch, self.first_update = time.perf_counter(), self.counters.epoch, self.counters.update

    def __enter__(self):
        """The epochs begin: signals are heard from here on."""
        args = self.args
        self.signals = Signals(
            is_main=self.accelerator.is_main_process, processes=self.accelerator.num_processes, saves=args.save_ckpt,
            updates=args.save_ckpt_updates, minutes=args.save_ckpt_minutes,
        )  # fmt: skip
        self.signals.__enter__()
        return self

    def __exit__(self, kind, error, traceback):
        try:
            if kind is not None:
                self.trackers.finish()  # what waits there would be lost
            if kind is None or kind is Stopped:
                self.signals.settle()
            if kind is Stopped:
                if not self.args.save_ckpt:
                    raise InputError(f"{error}; nothing was saved, as --save_ckpt is false")
                if not self.trained:  # else the state of the last epoch is there, and the model may hold other weights
                    self.save()
                if self.fault:
                    raise InputError(f"{error}; the state could not be saved ({self.fault})")
                raise Stopped(f"{error}; saved in {self.folder}: the same command with --output_dir {self.folder} goes on")
        finally:
            self.signals.__exit__(kind, error, traceback)

    # --- in an epoch

    def epochs(self, updates):
        """The numbers of the epochs that are left of a run of so many updates, each begun. --patience may end them sooner."""
        per_epoch = self.loader.updates
        if self.counters.epoch >= math.ceil(updates / per_epoch):
            self.say(f"nothing left to do: {self.counters.epoch} epochs are done, and no more were asked for (--epochs)")
        while self.counters.epoch < math.ceil(updates / per_epoch) and not self.out_of_patience:
            self.start_epoch(updates)
            yield self.counters.epoch

    @property
    def out_of_patience(self):
        """Whether the last --patience evaluations brought nothing better."""
        return bool(self.args.patience) and self.counters.waited >= self.args.patience

    @property
    def evaluates(self):
        """Whether the epoch under way ends with an evaluation."""
        epoch = self.counters.epoch + 1
        return not self.args.disable_eval and (epoch % self.args.eval_freq == 0 or epoch == self.total_epochs)

    def start_epoch(self, total):
        """The epoch of the counters begins, or goes on. total: updates of the run."""
        per_epoch, done = self.loader.updates, self.counters.update
        before = per_epoch * self.counters.epoch
        first, updates = done - before, min(per_epoch, total - before)  # of this epoch
        self.loader.start(self.counters.epoch, first, updates)
        self.total_epochs = math.ceil(total / per_epoch)  # epochs
        self.remarks.start_epoch(total, done, updates - first)
        self.log.start_epoch(self.counters.epoch, self.total_epochs, first, updates, self.batch.total)
        self.updates.restart_clock()

    def seed(self, purpose):
        """63-bit seed of the random numbers for a `purpose` (MIX, MODEL) at this micro-batch of this process."""
        position = (self.counters.update, self.updates.micro_batches, self.accelerator.process_index)
        return stream_seed(self.args.seed, purpose, *position)

    def show_batch(self, images, targets):
        """A batch as the model gets it; the first one of the run becomes samples.png."""
        self.results.gallery.first_batch(images, targets, **self.shown)
        self.updates.lap("data")

    def note(self, loss, replaced=()):
        """The loss () of a micro-batch, after its backward pass. replaced: per sample the broken one it replaces, or -1."""
        self.updates.add_loss(loss, replaced)
        self.updates.lap("forward and backward")

    def accepts(self, norm):
        """Whether the update is to be made: its loss and gradient are finite, or --skip_nonfinite did not ask. norm: of it."""
        return self.updates.accepts(norm)

    def end_update(self, rate, norm=None, made=True):
        """An update is over, with this learning rate and, if known, this norm of the gradient. Saves or stops where due.

        made: False where it was left out, by `accepts` or by a loss scaler.
        """
        updates, log = self.updates, self.log
        updates.end(rate, norm, made)
        updates.lap("optimizer")
        self.counters.update += 1
        if self.counters.update == self.first_update + 1:
            forget_peak(self.accelerator.device)  # of cuDNN's search
        log.advance()
        due, last = self.signals.due(self.counters.update), log.done == log.total
        if self.remarks.wants_look(self.counters.update) or due or last or len(updates) == self.args.log_every:
            newest = updates.look()
            self.trackers.log({name: newest.get(name) for name in ("loss", "lr", "grad_norm")}, newest["update"])
            self.remarks.after_look(self.counters.update)
        if due:
            self.signals.stop_if_agreed()
        # Before the first evaluation of a start too: a broken validation image would end the run with nothing saved.
        first_evaluation = last and self.evaluates and not self.evaluated
        if due or (first_evaluation and self.args.save_ckpt):
            self.save()
        updates.lap("logging and saving")
        if last:
            updates.write_seconds()
            log.end_updates()
            self.evaluated |= first_evaluation

    def stop_if_asked(self):
        """Raise Stopped where a signal came to one of the processes: to call after each batch of an evaluation."""
        if self.signals is not None:
            self.signals.stop_if_asked()

    # --- after an epoch

    def score(self, scores, answers, name="best"):
        """What an evaluation of the weights in the model gave. The best weights so far are kept in `name`/.

        scores: {score: value}; answers: what the model said of the images, see metrics/. name: "best", or "best_ema"
        while the model holds the average.
        """
        self.record |= self.results.score(scores, answers, name)

    def end_epoch(self, train_lr):
        """Log the epoch, draw what there is time for, and save the state. train_lr: learning rate of its last update."""
        counters, args = self.counters, self.args
        record = {"epoch": counters.epoch, "train_loss": counters.loss_sum / max(counters.losses, 1), "train_lr": train_lr}
        record |= self.record
        record |= {"bad_samples": len(counters.bad_samples), "skipped_updates": counters.skipped}
        record["n_parameters"] = self.n_parameters
        self.log.epoch(record)
        self.trackers.log(record, counters.update - 1)
        self.trackers.log({f"best_{name}": value for name, value in counters.best.items()}, counters.update - 1)
        rose = self.results.end_epoch(record)
        speed, passed = self.log.images_per_second(), time.perf_counter() - self.start
        left = passed / (counters.epoch + 1 - self.first_epoch) * (self.total_epochs - counters.epoch - 1)
        line = epoch_line(record, self.total_epochs, counters.best, self.metric)
        memory = peak_memory(self.accelerator.device)
        self.say(
            f"{line}, {speed:.{0 if speed >= 100 else 1}f} images/s, {memory}, {clock(passed)} since the start"
            + f", about {clock(left)} left" * (left > 0)
        )
        if line := unknown_line(self.sources, accelerate.utils.gather_object):
            self.log.warn(line)
        self.results.gallery.refresh()
        self.remarks.after_epoch()
        counters.epoch, counters.loss_sum, counters.losses = counters.epoch + 1, 0.0, 0
        if f"test_{self.metric}" in record:
            counters.waited = 0 if rose else counters.waited + 1
        self.record, last = {}, counters.epoch == self.total_epochs
        if self.out_of_patience and not last:
            self.say(f"no better {score_of(f'test_{self.metric}').name} in {counters.waited} evaluations: done (--patience)")
            last = True
        if args.save_ckpt and (counters.epoch % args.save_ckpt_freq == 0 or last):
            self.save()

    def save(self):
        """Save the state; all processes call it together. A full disk is warned of, and leaves its words in `fault`."""
        self.counters.stream = self.loader.state
        self.fault = state.save(
            self.accelerator, self.log, self.folder, self.model, self.optimizer, self.ema, self.counters, self.settings,
            self.args.save_ckpt_num, self.results.config,
        )  # fmt: skip
        self.signals.saved(self.fault)

    # --- after the last epoch

    def finish(self, test):
        """Leave the last weights, pictures, cards and whatever else was asked for; then mark the run as finished.

        test: a function without arguments that scores the test images, for which it may put other weights into the model.
        A run that is stopped or killed in between is not finished, and the same command makes up for it.
        """
        results, counters, self.trained = self.results, self.counters, True
        fault = results.keep_last(self.ema) or self.fault
        self.signals.stop_if_asked()
        results.draw()
        self.signals.stop_if_asked()
        self.trackers.pictures(results.gallery.files(), counters.update - 1)
        self.trackers.finish()
        test()
        line = unknown_line(self.sources, accelerate.utils.gather_object)  # the test images' masks mark their values there too
        if line:
            self.log.warn(line)
        self.signals.stop_if_asked()
        if not fault:
            results.publish()
        folder.mark_finished(self.accelerator, self.log, self.folder, counters.best, fault)
        results.gallery.end()
        self.say(*results.lines(self.script, clock(time.perf_counter() - self.start)))
