"""What a run's result is passed on as: model cards beside the weights, exported files, a repository of the Hub."""

import json
import pathlib
import sys

from utils.result import card as model_card
from utils.result import export, hub
from utils.run import log as run_log


def check_wishes(formats, repo_id, license):
    """InputError before training for what could not be done after it."""
    for kind in formats:
        export.check_export(kind)
    if repo_id:
        hub.check_repo_id(repo_id)
    model_card.check_license(license)


class Cards:
    """Writes README.md into best/, best_ema/ and last/ of the run in `folder`; options: of `model_card.text`."""

    def __init__(self, log, **options):
        self.log, self.options = log, options

    def write(self, name, record=None, best=()):
        """The card of the weights in `name`/, measured by `record`, or by the last of log.txt. A full disk is warned of."""
        if self.log.folder is None:
            return
        try:
            if record is None:
                lines = (self.log.folder / "log.txt").read_text().splitlines()
                record = json.loads(lines[-1]) if lines else {}
            text = model_card.text(
                record=record, best=dict(best), ema=name.endswith("_ema"), command=sys.argv, commit=run_log.commit(),
                versions=run_log.versions(), **self.options,
            )  # fmt: skip
            model_card.write(self.log.folder / name, text)
        except OSError as error:
            self.log.warn(f"the model card of {name}/ could not be written ({error})")


def pass_on(folder, formats, repo_id, private, say):
    """Export the weights in `folder`, and push them. Raises InputError where that fails; the result itself stays."""
    for kind in formats:
        export.export_run(folder, kind, say)
    if repo_id:
        hub.push(pathlib.Path(folder), repo_id, private, say)
