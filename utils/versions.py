"""What a result depends on besides the settings of its run: the commit of this checkout, and the versions of libraries."""

import importlib.metadata
import pathlib
import platform
import subprocess

LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "datasets", "safetensors", "numpy", "pillow", "scikit-learn")
ROOT = pathlib.Path(__file__).resolve().parent.parent


def versions():
    """{"python": version, library: version} of the installed ones among LIBRARIES."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit():
    """The commit of this checkout, with "+" if files were changed since, or None outside of git."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, timeout=10).returncode
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + "+" * bool(changed)
