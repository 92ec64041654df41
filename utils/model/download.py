"""The local path of weights that are given as a URL (downloaded once), as a Hub id, or as a path."""

import base64
import hashlib
import http.client
import json
import os
import pathlib
import re
import ssl
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request

import huggingface_hub
import timm
import torch
from tqdm import tqdm

from utils import files
from utils.cli.errors import InputError, first_line
from utils.cli.urls import full_address, hide_secrets

CHUNK = 1 << 20  # bytes
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # files of a repository of the Hub, the better one first
_HASH = re.compile(r"-([0-9a-f]{8,64})\.[\w.]+$")
_PAGE = re.compile(rb"\s*(?:<!doctype html|<html|<head|<\?xml[^>]*>\s*<(?:!doctype html|error|html))", re.I)
_DATE = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])$")


def fetch(source):
    """Local path of `source`: a file or folder, `https://…`, `hf-hub:USER/NAME[@REVISION]` or `timm/NAME`.

    Raises InputError where it cannot be had, and where a name such as resnet50-14fe96d1.pth does not begin the SHA-256 of
    the file, as torch.hub checks it. A download that breaks off leaves nothing behind.
    """
    source = os.fspath(source).removeprefix("local-dir:")
    if re.match(r"https?://", source, re.I):
        return _download(full_address(source))
    if re.match(r"hf[-_]hub:", source) or (source.startswith("timm/") and not os.path.exists(source)):
        return _from_hub(source)
    return pathlib.Path(source)


def check_reachable(name, seconds=5):
    """Raise InputError where timm's weights `name` are not in the cache, and the Hub does not answer within so many seconds.

    The Hub's client itself tries for about a minute. A Hub that answers with an error is reachable, and so is one whose
    certificate only that client may know.
    """
    cfg = timm.get_pretrained_cfg(name) if ":" not in name else None
    repo = re.sub(r"^hf[-_]hub:", "", name) if cfg is None else getattr(cfg, "hf_hub_id", None)
    if not repo or name.startswith("local-dir:"):
        return
    repo = f"{repo}{cfg.architecture}.{cfg.tag}" if cfg is not None and repo.endswith("/") else repo
    if any(isinstance(huggingface_hub.try_to_load_from_cache(repo, file), str) for file in WEIGHTS):
        return
    found = ["HF_HUB_OFFLINE is set"] * bool(huggingface_hub.constants.HF_HUB_OFFLINE)

    def ask():
        try:
            request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
            found.append("")
        except urllib.error.HTTPError:
            found.append("")
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            found.append("" if isinstance(reason, ssl.SSLError) else first_line(reason))

    asking = threading.Thread(target=ask, daemon=True)  # a name server may take longer than any timeout
    if not found:
        asking.start()
        asking.join(seconds)
    fault = found[0] if found else f"no answer within {seconds} seconds"
    if fault:
        raise InputError(f"--pretrained: the weights {repo} are not in the cache, and the Hub cannot be reached ({fault}); "
                         "download them elsewhere, and give the file with --finetune")  # fmt: skip


def fetch_folder(source):
    """Local folder with config.json and model.safetensors of `source`: such a folder, or a model of the Hub.

    Raises InputError where the Hub does not have both.
    """
    path = fetch(source)
    hub = re.match(r"hf[-_]hub:|timm/", str(source)) and not os.path.exists(source)
    if not hub:
        return path
    if path.name != "model.safetensors":
        raise InputError(f"Hub id {source}: found no model.safetensors there; expected one, which holds no code")
    _file_of_hub(str(source), "config.json")  # beside the weights
    return path.parent


def cached_path(url):
    """Path of the downloaded file of `url`: in torch's cache, under a name that no other URL has."""
    name = pathlib.PurePosixPath(urllib.request.url2pathname(url.partition("?")[0])).name
    name = re.sub(r"[^\w.+-]", "_", name)[-100:].strip(".") or "weights"  # one that any disk and terminal takes
    stem, dot, suffix = name.partition(".")
    mark = hashlib.sha256(url.encode()).hexdigest()[:8]
    return pathlib.Path(torch.hub.get_dir(), "checkpoints", f"{stem}-{mark}{dot}{suffix}")


def _download(url):
    path, shown = cached_path(url), hide_secrets(url)  # the latter for messages
    if _is_whole(path):
        return path
    aside, sha256 = None, hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(_request(url), timeout=60) as reply:
            size = int(reply.headers.get("Content-Length") or 0)
            # under a name of its own, unlike files.replace: machines that share the folder may download at the same time
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix="tmp-", delete=False) as file:
                aside = pathlib.Path(file.name)
                with tqdm(total=size or None, unit="B", unit_scale=True, desc=path.name, leave=False) as bar:
                    while chunk := reply.read(CHUNK):
                        if not file.tell() and _PAGE.match(chunk):
                            raise InputError(f"{shown}: found a web page, of a login or an error; expected weights; nothing "
                                             "was kept: download the file in a browser, and give it instead")  # fmt: skip
                        file.write(chunk)
                        sha256.update(chunk)
                        bar.update(len(chunk))
                file.flush()
                os.fsync(file.fileno())
                got = file.tell()
        if size and got != size:  # http.client takes a connection that ends early for the end of the file
            raise InputError(f"{shown}: the connection ended after {got:,} of {size:,} bytes; run the command again")
        said = _HASH.search(urllib.parse.urlsplit(url).path)
        if said and not _DATE.match(said[1]) and not sha256.hexdigest().startswith(said[1]):
            raise InputError(
                f"{shown}: its name says SHA-256 {said[1]}, the file has {sha256.hexdigest()[: len(said[1])]}: it is damaged "
                "or another file; nothing was kept"
            )
        _sum_of(path).unlink(missing_ok=True)  # of a file that was there, which the new one does not match
        aside.replace(path)
        files.write_json(_sum_of(path), {"size": got, "sha256": sha256.hexdigest()})
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(error, InputError):
            raise
        reason = hide_secrets(first_line(error)).replace(url, shown)
        raise InputError(f"{shown} cannot be downloaded ({reason}); give a file on this machine instead") from None
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)
    return path


def _request(url):
    """A request for `url`; a name and a password in it are sent as browsers do."""
    scheme, place, *rest = urllib.parse.urlsplit(url)
    login, _, place = place.rpartition("@")
    headers = {"User-Agent": "strata"}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(urllib.parse.unquote(login).encode()).decode()}"
    return urllib.request.Request(urllib.parse.urlunsplit((scheme, place, *rest)), headers=headers)


def _sum_of(path):
    """Where size and checksum of the download at `path` are kept."""
    return path.with_name(f"{path.name}.json")


def _is_whole(path):
    """Whether the download at `path` is there as it came; one that nothing is known of is taken as it is."""
    if not path.exists() or not _sum_of(path).exists():
        return path.exists()
    try:
        known = json.loads(_sum_of(path).read_text())
        with open(path, "rb") as file:
            return path.stat().st_size == known["size"] and hashlib.file_digest(file, "sha256").hexdigest() == known["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _from_hub(name):
    path = _file_of_hub(name, *WEIGHTS)
    if path is None:
        raise InputError(f"Hub id {name}: found neither model.safetensors nor pytorch_model.bin there")
    return path


def _file_of_hub(name, *files):
    """Local path of the first of these `files` that a repository of the Hub has, or None. name: USER/NAME[@REVISION]."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name = re.sub(r"^hf[-_]hub:", "", name)
    repo, _, revision = name.partition("@")
    for file in files:
        try:
            return pathlib.Path(hf_hub_download(repo, file, revision=revision or None))
        except LocalEntryNotFoundError:
            raise InputError(f"Hub id {name}: not in the cache, and the Hub cannot be reached from here") from None
        except EntryNotFoundError:
            continue
        except Exception as error:  # the library and its HTTP client raise many kinds
            raise InputError(f"Hub id {name}: {first_line(error)}") from None
    return None
