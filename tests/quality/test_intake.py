"""Pictures from elsewhere come in their order, and no more at once than there is room for."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from quality import intake
from quality.intake import PictureIntake
from quality.picture_files import UNREADABLE
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.pictures import PictureError
from vipolyqwen_core.corpus.storage import ChangedMeanwhile

SIZES = [900, 1100, 10, 5000, 800, 800, 800, 800, 0, 7000, 7000, 1]
ROOM = 2500


@pytest.fixture
def pictures(tmp_path: Path) -> Iterator[PictureIntake]:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number, size in enumerate(SIZES):
            archive.writestr(f"{number}.png", bytes([number]) * size)
    pictures = PictureIntake(ImageRoot(str(tmp_path / "a.zip")), 1)
    yield pictures
    pictures.close()


def test_pictures_that_are_fetched_wait_for_room(
    pictures: PictureIntake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched, handed_on, most = [], 0, 0
    read = pictures.root.read

    def counted(path: str) -> bytes:
        nonlocal most
        fetched.append(SIZES[int(Path(path).stem)])
        most = max(most, sum(fetched) - handed_on)
        return read(path)

    monkeypatch.setattr(intake, "BYTES_AHEAD", ROOM)
    monkeypatch.setattr(pictures.root, "read", counted)
    names = [f"{number}.png" for number in range(len(SIZES))]
    read_in_turn = []
    for picture in pictures._read([*names[:6], "absent.png", b"given", *names[6:]]):
        read_in_turn.append(picture)
        handed_on += len(picture) if isinstance(picture, bytes) and picture != b"given" else 0
    absent, given = read_in_turn.pop(6), read_in_turn.pop(6)
    assert isinstance(absent, PictureError)
    assert (absent.rule, given) == ("missing_image", b"given")
    assert read_in_turn == [bytes([number]) * size for number, size in enumerate(SIZES)]
    assert most <= ROOM + max(SIZES), "one that is handed on, and those ahead, or a large one alone"


def test_a_picture_that_was_replaced_while_it_was_read_has_no_version(
    pictures: PictureIntake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its row would stay rejected where the new one has the old one's checksum."""

    def replaced(path: str) -> bytes:
        raise PictureError("unreadable_image", path) from ChangedMeanwhile(f"{path} was replaced")

    monkeypatch.setattr(pictures.root, "read", replaced)
    (failed,) = pictures._read(["1.png"])
    assert isinstance(failed, PictureError)
    assert pictures._versions == {"1.png": UNREADABLE}
