"""Addresses on the command line: what is secret in them stays in memory, and is printed and stored nowhere.

Standard library only.
"""

import re
import urllib.parse

_URL = re.compile(r"https?://[^\s'\"]+", re.I)
_SECRET = re.compile(r"token|secret|key|pass|pw|auth|sig|credential|session|policy|jwt|code", re.I)
_LONG = 20  # letters; a value of so many may be a secret, whatever its name
_full = {}  # address as it is shown -> as it was given


def hide_secrets(text):
    """`text` with the addresses in it as they may be shown: without names and passwords, and without the values of a query
    that may be secret. `full_address` knows them on.
    """
    return _URL.sub(lambda found: _shown(found[0]), text)


def full_address(shown):
    """The address that `hide_secrets` gave `shown` for, in this process."""
    return _full.get(shown, shown)


def _shown(url):
    scheme, rest = url.split("://", 1)
    place, slash, path = rest.partition("/")
    path, question, query = path.partition("?")
    shown = f"{scheme.lower()}://{place.rpartition('@')[2]}{slash}{path}"
    if question:
        pairs = [pair.partition("=") for pair in query.split("&")]
        shown += "?" + "&".join(f"{name}{equals}{_value(name, value)}" for name, equals, value in pairs)
    if shown != url:
        _full[shown] = url
    return shown


def _value(name, value):
    secret = value and (_SECRET.search(name) or len(urllib.parse.unquote(value)) >= _LONG)
    return "hidden" if secret else value
