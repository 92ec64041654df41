"""What a run has to show: its best weights so far, their pictures, page and cards, and the lines that say the result."""

import functools
import math
import os
import shlex
import sys

import accelerate
from safetensors.torch import load_file

from utils.files import write_json
from utils.model import sharding
from utils.pictures.curves import lr_groups, lr_range
from utils.pictures.gallery import Gallery
from utils.report.evaluation import read_classes, read_evaluation, sure_text, worst_line
from utils.report.scores import FEW, is_better, result_lines, score_of, value_of
from utils.result.card import Cards
from utils.result.export import reopened_differs
from utils.result.heat_maps import heat_maps
from utils.result.publish import publish
from utils.run import state
from utils.run.folder import seen_by_all


class Results:
    """The weights in best/, best_ema/, last/ and last_ema/ of a run, and what is shown of those that scored highest.

    args: Arguments, whose output_dir is the folder of the run; metric: the score that decides; sources: (training,
    validation); config, weights, shown, groups: as of `Run.open`. The main process writes, others take part in what all decide.
    """

    def __init__(self, accelerator, log, args, metric, sources, config, *, weights, shown, groups):
        self.accelerator, self.log, self.args, self.metric = accelerator, log, args, metric
        self.folder, self.sources, self.config = args.output_dir, sources, config
        self.improved, self.rose = [], False  # of the epoch under way: names of the weights that were kept; a higher score
        self.compared = False  # whether the weights that were written are those of the model
        size = args.input_size if hasattr(args, "input_size") else args.crop_size
        shown = {**shown, "size": size}
        self.gallery = Gallery(log.folder, f"test_{metric}", lr_range(groups), warn=log.warn, shown=shown)
        self.gallery.put("lr_groups", lr_groups, groups=groups)
        self.cards = Cards(
            log.folder, config=config, title=args.data_path or args.dataset or sources[0].title, weights=weights,
            data_id=args.dataset, license=args.license, repo_id=args.push_to_hub, warn=log.warn,
        )  # fmt: skip

    def begin(self, model, counters, resumed):
        """model: as it was before `prepare`; counters: of the run, whose best scores are kept up to date; resumed: an earlier
        start may have left answers of which no pictures were drawn."""
        self.model, self.counters = model, counters
        if resumed:
            self.gallery.recover(self.sources[1])

    def score(self, scores, answers, name="best"):
        """Keep the weights in the model in `name`/ if they are the best so far; returns their scores for log.txt.

        Of equal scores the one with the lower loss is better. Of the highest score of all weights, files and pictures show
        what the model said. Arguments as of `Run.score`.
        """
        suffix, counters, metric = name.removeprefix("best"), self.counters, self.metric
        scores = {**scores, metric: value_of(metric, scores)}
        # Each may have looked at all images, and added up in another order: the main process decides which weights are best.
        key, found = f"test_{metric}{suffix}", [scores[metric], scores.get("loss", math.nan)]
        value, loss = accelerate.utils.broadcast_object_list(found)

        def beats(key):
            return is_better(metric, value, counters.best.get(key), loss, counters.best_loss.get(key, math.nan))

        rose, highest = is_better(metric, value, counters.best.get(key)), all(map(beats, counters.best))
        if beats(key) and self.keep(name, answers.config()) is None:
            counters.best[key], counters.best_loss[key] = value, loss
            self.improved.append(name)
            self.rose |= rose
            if highest:
                facts = {"weights": name, "epoch": counters.epoch + 1}
                self.gallery.keep(answers, self.sources[1], scores, metric, **facts)
        told = {f"test_{score}{suffix}": value for score, value in scores.items()}
        if self.log.folder and len(self.sources[1]) < FEW and (bounds := answers.interval(metric, scores)):
            told[f"{key}_interval"] = [round(bound, 4) for bound in bounds]
        return told

    def keep(self, name, more=()):
        """Write the weights of the model to `name`/, and the config with `more` of it; returns what went wrong, or None."""
        config = self.config | dict(more)
        fault = state.export(self.accelerator, self.log, self.model, config, self.folder, name)
        if not self.compared and fault is None and self.accelerator.is_main_process:
            folder, self.compared = os.path.join(self.folder, name), True
            sharded = self.accelerator.distributed_type == "FSDP"
            if not sharded and (difference := reopened_differs(self.model, folder)):
                self.log.warn(f"the weights in {folder} are not the model's: {difference}")
        return fault

    def end_epoch(self, record):
        """Write the cards of what was kept; returns whether a score rose. record: of the epoch in log.txt."""
        for name in self.improved:
            self.cards.write(name, record, self.counters.best)
        rose, self.improved, self.rose = self.rose, [], False
        return rose

    # --- after the last epoch

    @property
    def named(self):
        """The name of the weights that the page is about: "best" or "best_ema"; "last" where nothing was evaluated."""
        found = read_evaluation(self.folder).get("weights")
        return found if found in ("best", "best_ema") else "best" if self.counters.best else "last"

    def keep_last(self, ema=None):
        """Write the last weights, those of the average `ema` too, and their cards; returns what went wrong, or None."""
        fault = self.keep("last")
        self.cards.write("last", best=self.counters.best)
        if ema:
            with ema.in_model():
                fault = self.keep("last_ema") or fault
            self.cards.write("last_ema", best=self.counters.best)
        return fault

    def draw(self):
        """Draw what is new, mistakes.png with heat maps of the weights that are named, and the page."""
        folder = os.path.join(self.folder, self.named)
        self.gallery.finish(functools.partial(heat_maps, folder, device=self.accelerator.device))

    def publish(self):
        """Export and upload the weights that are named, where --export and --push_to_hub ask for it."""
        if self.accelerator.is_main_process:
            args, path = self.args, os.path.join(self.folder, self.named)
            publish(path, args.export, args.push_to_hub, args.hub_private, self.log.say, self.log.warn)

    def lines(self, script, seconds):
        """What was reached, how sure that is, which classes are worst, and what to do next. seconds: in words."""
        evaluation, path = read_evaluation(self.folder), os.path.join(self.folder, self.named)
        best = ", ".join(f"best {name} {value:.3f}" for name, value in self.counters.best.items()) or "not evaluated"
        yield f"done in {seconds}: {best}; weights in {path}"
        if sure := sure_text(evaluation.get("metric"), evaluation):
            yield f"{score_of('test_' + evaluation['metric']).name}: {sure}"
        if worst := worst_line(read_classes(self.folder)):
            yield worst
        started = sys.argv[0] if os.path.basename(sys.argv[0]) == f"{script}.py" else f"{script}.py"
        out = ["--output_dir", "OUT"] if script == "train_segmentation" else []
        predict = shlex.join(["python", started, "--predict", "PICTURES", *out, "--finetune", path])
        yield f"next: look at {os.path.join(self.folder, 'report.html')}, or {predict}"

    # --- the test images, which chose nothing

    def load_named(self):
        """Put the weights that are named into the model; returns their name, "last" where not all processes see their file.
        On all processes."""
        (name,) = accelerate.utils.broadcast_object_list([self.named])
        path = os.path.join(self.folder, name, "model.safetensors")
        if name == "last" or not seen_by_all(path):
            return "last"
        sharding.load_model(self.model, load_file(path))
        return name

    def keep_test(self, name, scores):
        """Say what the test images were scored with by the weights `name`, and keep it in test.json."""
        for line in result_lines(f"test, by {name}/", scores, self.sources[0].classes):
            self.log.say(line)
        if self.log.folder:
            write_json(self.log.folder / "test.json", {k: v for k, v in scores.items() if isinstance(v, int | float)})
