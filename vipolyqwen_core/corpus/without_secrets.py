"""Paths and URLs of a source as tables and messages may hold them: without what opens the storage."""

import re

_LOGINS = (
    re.compile(r"((?:https?|ftps?|sftp|ssh|smb)://)[^/\s?#]*@", re.IGNORECASE),
    # `github://owner:repository@branch/` has none, nor have members of archives
    re.compile(r"((?<!github)(?<!zip)(?<!tar)(?<!memory)://)[^:/\s?#@]*:[^/\s?#@]*@"),
)
_QUERY = re.compile(r"(https?://[^?]*)\?(.*?)(?=::|$)", re.IGNORECASE | re.DOTALL)
_QUERY_IN_TEXT = re.compile(r"(https?://[^?\n]*)\?(?:(?!::)\S)*", re.IGNORECASE)
"""Where a blank ends the address."""
_SIGNING = re.compile(
    r"X-(?:Amz|Goog)-.*|(?:AWS|Google)Access(?:Key)?Id|Key-Pair-Id|Policy|Signature|Expires", re.IGNORECASE
)
"""What signs a link of S3, CloudFront or Google. A `token` may as well be that of a page."""
_SIGNING_OF_AZURE = re.compile(r"s(?:ig|e|p|v|r|t|s|rt|pr|ip|ko\w*|kt\w*|k[esv])", re.IGNORECASE)
"""What signs one of Azure, where it has a `sig`: these names are short enough for others to have them."""


def without_secrets(place: str) -> str:
    """A path or URL without logins and without what web addresses ask of their servers.

    That may be a token, or the signature of a link that opens the file for everyone.
    """
    return _QUERY.sub(r"\1", _without_login(place))


def text_without_secrets(text: str) -> str:
    """A message with paths and URLs, each as `without_secrets` shows it."""
    return _QUERY_IN_TEXT.sub(r"\1", _without_login(text))


def unsigned(place: str) -> str:
    """A path or URL without what changes while it names the same file: logins and signatures of links."""
    return _QUERY.sub(_unsigned_query, _without_login(place))


def _unsigned_query(address: re.Match[str]) -> str:
    asked = {part: part.partition("=")[0] for part in address[2].split("&")}
    signing = [_SIGNING]
    if "sig" in asked.values():
        signing.append(_SIGNING_OF_AZURE)
    kept = [part for part, name in asked.items() if not any(names.fullmatch(name) for names in signing)]
    return "?".join([address[1], "&".join(kept)] if kept else [address[1]])


def _without_login(text: str) -> str:
    for login in _LOGINS:
        text = login.sub(r"\1", text)
    return text
