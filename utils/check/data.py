"""The look at the data before a training."""

import os

from utils.check.facts import find_facts
from utils.check.report import describe
from utils.cli.errors import InputError
from utils.data.bad_samples import most_broken
from utils.files import write_json
from utils.folders.names import few

FILE = "data_report.json"


def report_data(args, run, train, val, check):
    """Say what the data is and what looks wrong with it, on the main process; run.data_report holds it as a dict.

    check: (training source, validation source) -> None, raises InputError for samples that cannot be used. With --check_data
    only the report is written to --output_dir, if that is given. Data without files of their own are passed over. Returns
    whether the run ends here, as --check_data only asks. Raises InputError for broken images that would end the run later.
    """
    only = args.check_data == "only"
    if args.dry_run and not only:
        return False
    if run.accelerator.is_main_process and (hasattr(train, "file") or only):
        facts = find_facts(train, val, everything=bool(args.check_data))
        lines, warnings = describe(facts)
        run.data_report = facts | {"lines": lines, "warnings": warnings}
        run.say(*lines, *(f"warning: {warning}" for warning in warnings))
        if only and args.output_dir:
            os.makedirs(args.output_dir, exist_ok=True)
            write_json(os.path.join(args.output_dir, FILE), run.data_report)
        if not only:
            _refuse_broken(facts["train"], args.max_bad_samples)
    if only:
        found = f"{len(train):,} training and {len(val):,} validation images, {len(train.classes):,} classes"
        run.say(f"data: {found}; nothing is trained, as --check_data only asks")
    elif run.accelerator.is_main_process:
        check(train, val)
    return only


def _refuse_broken(train, limit):
    """Raise InputError where more training images are known to be broken than the fraction `limit` of them. train: facts."""
    if (count := train.get("unreadable", 0)) > most_broken(train["images"], limit):
        broken = f"{count} of {train['images']:,} training images cannot be read as images"
        names = few(train["unreadable_names"], 3)
        raise InputError(f"{broken}, more than --max_bad_samples {limit:g} allows: {names}; repair or remove them")
