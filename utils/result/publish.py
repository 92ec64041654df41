"""What is done with the weights of a run after training: exported files, and a repository of the Hub."""

import os
import shlex

from utils.cli.errors import InputError, first_line
from utils.result import export, hub
from utils.result.card import check_license


def check_result_flags(formats, repo_id, license):
    """InputError before training for what could not be done after it.

    formats: of export.FORMATS; repo_id: USER/NAME of the Hub, or None; license: identifier of the Hub, or None.
    """
    for kind in formats:
        export.check_export(kind)
    if repo_id:
        hub.check_repo_id(repo_id)
    check_license(license)


def publish(folder, formats, repo_id, private=False, say=print, warn=print):
    """Export the weights in `folder` (such as RUN/best) to the formats, and push them to the Hub if there is a repo_id.

    What fails is warned of, with the command that does it again: the training is over, and the weights stay as they are.
    """
    folder = os.path.abspath(folder)
    steps = [("export", "export_run", (folder, kind)) for kind in formats]
    steps += [("hub", "push", (folder, repo_id, private))] * bool(repo_id)
    for module, step, words in steps:
        try:
            getattr({"export": export, "hub": hub}[module], step)(*words, say)
        except (InputError, OSError) as error:
            again = f"from utils.result.{module} import {step}; {step}{words}"
            warn(f"{first_line(error)}; the run is finished all the same. Beside the scripts, this does it again: python -c "
                 f"{shlex.quote(again)}")  # fmt: skip
