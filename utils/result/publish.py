"""What is done with the weights of a run after training: exported files, and a repository of the Hub."""

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


def publish(folder, formats, repo_id, private=False, say=print):
    """Export the weights in `folder` (such as RUN/best) to the formats, and push them to the Hub if there is a repo_id.

    Raises InputError where that fails; the weights stay as they are.
    """
    for kind in formats:
        export.export_run(folder, kind, say)
    if repo_id:
        hub.push(folder, repo_id, private, say)
