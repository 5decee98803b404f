"""Paths and URLs of a source as tables and messages may hold them: without what opens the storage."""

import re

_LOGINS = (
    re.compile(r"((?:https?|ftps?|sftp|ssh|smb)://)[^/\s?#]*@"),
    re.compile(r"((?<!github)://)[^:/\s?#@]*:[^/\s?#]*@"),  # `github://owner:repository@branch/` has none
)
_QUERY = re.compile(r"(https?://[^\s?]*)\?((?:(?!::)\S)*)")
_SIGNING = re.compile(
    r"X-(?:Amz|Goog)-.*|(?:AWS|Google)Access(?:Key)?Id|Key-Pair-Id|Policy|Signature|Expires"  # S3, Google
    r"|(?:access_?)?token|s(?:ig|e|p|v|r|t|s|rt|pr|ip|ko\w*|kt\w*|k[esv])",  # of one's own; Azure
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A path or URL, or a text with some, without logins and without what web addresses ask of their servers.

    That may be a token, or the signature of a link that opens the file for everyone.
    """
    return _QUERY.sub(r"\1", _without_login(text))


def unsigned(place: str) -> str:
    """A path or URL without what changes while it names the same file: logins and signatures of links."""
    return _QUERY.sub(_unsigned_query, _without_login(place))


def _unsigned_query(address: re.Match[str]) -> str:
    parts = [part for part in address[2].split("&") if not _SIGNING.fullmatch(part.partition("=")[0])]
    return "?".join([address[1], "&".join(parts)] if parts else [address[1]])


def _without_login(text: str) -> str:
    for login in _LOGINS:
        text = login.sub(r"\1", text)
    return text
