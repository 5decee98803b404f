"""Near pictures: sizes and compressions of one picture are found, pictures of one kind are told apart."""

import io

import polars as pl
from PIL import Image, ImageDraw

from quality.near_pictures import near_pictures, propose
from tests.stored_pictures import file_of
from vipolyqwen_core.corpus.perceptual_hash import perceptual_hash


def page(total: str, colour: str = "black") -> Image.Image:
    """A page of lines, as receipts of one shop are alike."""
    image = Image.new("RGB", (480, 640), "white")
    draw = ImageDraw.Draw(image)
    for line in range(20):
        draw.text((40, 30 + 28 * line), f"Item {line:02} of the shop {line * 7}", fill="black", font_size=22)
    draw.text((300, 590), total, fill=colour, font_size=30)
    return image


def scene(colour: str, shift: int = 0) -> Image.Image:
    image = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((40 + shift, 40, 140 + shift, 140), fill=colour)
    draw.rectangle((180, 120, 280, 200), fill="navy")
    return image


def table(files: list[bytes]) -> pl.DataFrame:
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in files]
    return pl.DataFrame(
        {
            "picture": range(len(files)),
            "phash": [perceptual_hash(image) for image in images],
            "width": [image.width for image in images],
            "height": [image.height for image in images],
        }
    )


def found(files: list[bytes]) -> list[tuple[int, int]]:
    return near_pictures(table(files), lambda rows: [files[row] for row in rows]).rows()


def test_other_compressions_and_sizes_of_a_picture_are_near() -> None:
    for image in (page("12.50"), scene("red")):
        half = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
        files = [
            file_of(image),
            file_of(image, "JPEG", quality=60),
            file_of(half),
            file_of(image, "WEBP", quality=70),
        ]
        assert {(0, 1), (0, 2), (0, 3)} <= set(found(files))


def test_pages_that_differ_in_a_number_are_proposed_and_not_confirmed() -> None:
    files = [file_of(page("12.50")), file_of(page("47.81")), file_of(page("12.50", "white"))]
    assert (0, 1) in propose(table(files)).rows()
    assert found(files) == []


def test_scenes_that_differ_in_a_colour_or_a_place_are_not_near() -> None:
    assert found([file_of(scene(colour)) for colour in ("red", "green", "#ff00ff")]) == []
    assert found([file_of(scene("red", shift)) for shift in (0, 12)]) == []


def test_another_shape_is_not_even_proposed() -> None:
    image = scene("red")
    files = [file_of(image), file_of(image.resize((320, 120)))]
    assert propose(table(files)).is_empty()


def test_no_pictures_give_no_pairs() -> None:
    empty = {"picture": pl.Int64, "phash": pl.String, "width": pl.Int32, "height": pl.Int32}
    assert near_pictures(pl.DataFrame(schema=empty), lambda rows: []).is_empty()
