"""Files that were given a text's name and hold something else, by the bytes that such files begin with."""

import re
from typing import Final

_BEGINNINGS: Final = (
    (rb"\x1f\x8b\x08", "it is packed by gzip, but its name does not end with .gz"),
    (rb"BZh[1-9]1AY&SY", "it is packed by bzip2, but its name does not end with .bz2"),
    (rb"\xfd7zXZ\0", "it is packed by xz, but its name does not end with .xz"),
    (rb"\x28\xb5\x2f\xfd", "it is packed by zstd, but its name does not end with .zst"),
    (rb"PK\x03\x04", "it is a ZIP archive, as workbooks of Excel are: unpack it, or save the sheet as CSV"),
    (
        rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "it is an old workbook of Excel, or the like: save the sheet as CSV",
    ),
    (rb"PAR1\x15", "it is Parquet, but its name does not end with .parquet"),
)


def refuse_other_than_text(start: bytes) -> None:
    """Refuse a file that cannot be text.

    Args:
        start: its first bytes
    Raises:
        OSError: it begins as a packed file, a workbook, or Parquet
    """
    for beginning, what in _BEGINNINGS:
        if re.match(beginning, start):
            raise OSError(f"no text: {what}")
