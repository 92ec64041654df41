"""A run's result as a model repository of the Hugging Face Hub."""

import pathlib

from utils.cli.errors import InputError, first_line

NEEDED = ("model.safetensors", "config.json")
PUSHED = (*NEEDED, "model.*", "README.md", "*.png", "*.jpg")  # the files of --export too; states and logs stay here


def check_repo_id(repo_id):
    """InputError unless `repo_id` is USER/NAME, the network may be used and there is a token: to ask before a long run."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        if repo_id.count("/") != 1:
            raise ValueError("it has no user")
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"Hub repository '{repo_id}': expected USER/NAME ({first_line(error)})") from None
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"Hub repository {repo_id}: HF_HUB_OFFLINE is set, so nothing can be pushed; unset it")
    if not get_token():
        raise InputError(f"Hub repository {repo_id}: found no token; log in with `hf auth login`, or set HF_TOKEN")


def push(folder, repo_id, private=False, say=print):
    """Upload the weights in `folder` (such as RUN/best) and what lies beside them (PUSHED) to a repository of the Hub.

    repo_id: USER/NAME; a repository that is not there is made. private: a new repository is made private, and a public one
    refused. Returns the address. Raises InputError for whatever fails, and leaves the folder as it is.
    """
    from huggingface_hub import HfApi

    check_repo_id(repo_id)
    folder = pathlib.Path(folder)
    for name in NEEDED:
        if not (folder / name).is_file():
            raise InputError(f"{folder}: found no {name} to push; expected a folder such as RUN/best")
    api = HfApi()
    try:
        address = api.create_repo(repo_id, private=private or None, exist_ok=True)  # None: as the user's settings have it
        if private and not api.model_info(repo_id).private:
            raise InputError(f"Hub repository {repo_id} exists and is public: take another name, or make it private there")
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, allow_patterns=list(PUSHED), commit_message="Result of a training run"
        )
    except InputError:
        raise
    except Exception as error:  # the library, its HTTP client and its uploader raise many kinds
        raise InputError(f"Hub repository {repo_id}: {_reason(error)}; the result stays in {folder}, try again later") from None
    say(f"pushed: {address}")
    return str(address)


def _reason(error):
    """What went wrong, and for the usual answers of the Hub what to do about it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    message = getattr(error, "server_message", None)
    advice = {
        401: "the token is missing, wrong or expired: `hf auth login`",
        403: "the token may not write there: take one that can, or a user or organisation of yours",
        404: "there is no such user or organisation, or the token may not see it",
    }.get(status)
    words = [f"the Hub answered {status}"] if status else []
    words += [advice] if advice else []
    words += [f"it says: {first_line(message)}"] if message else []
    return ", ".join(words) or first_line(error)
