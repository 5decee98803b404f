"""Near pictures: sizes and compressions of one picture are found, pictures of one kind are told apart."""

import io

import numpy as np
import polars as pl
from PIL import Image, ImageDraw
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from quality.near_pictures import look_alike, near_pictures, propose
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


def test_hashes_propose_up_to_six_bits_and_a_fiftieth_of_the_shape() -> None:
    def proposed(phash: str, width: int) -> bool:
        hashes, widths = ["0" * 16, phash], [1000, width]
        pair = {"picture": [0, 1], "phash": hashes, "width": widths, "height": [1000, 1000]}
        return propose(pl.DataFrame(pair)).rows() == [(0, 1)]

    assert [proposed(f"{bits:016x}", 1000) for bits in (0b111111, 0b1111111)] == [True, False]
    assert [proposed("0" * 16, width) for width in (1020, 1021)] == [True, False]


def test_copies_are_proposed_among_many_hashes_that_share_much() -> None:
    """As those of pictures of one layout do; a crowd of millions shares as much by chance."""
    rng = np.random.default_rng(0)
    common = rng.integers(0, 2**16, (4, 500), dtype=np.uint64)
    hashes = np.zeros(40_000, dtype=np.uint64)
    for part in common:
        hashes = hashes << np.uint64(16) | rng.choice(part, len(hashes))
    copies = hashes[:200].copy()
    for bit in rng.permuted(np.tile(np.arange(64, dtype=np.uint64), (200, 1)), axis=1)[:, :4].T:
        copies ^= np.uint64(1) << bit
    phash = [f"{value:016x}" for value in np.concatenate([hashes, copies]).tolist()]
    pictures = pl.DataFrame({"picture": range(len(phash)), "phash": phash}).with_columns(
        width=640, height=480
    )
    planted = {(number, len(hashes) + number) for number in range(200)}
    assert planted <= set(propose(pictures).rows())


def test_many_pictures_of_few_hashes_are_linked_by_few_pairs() -> None:
    """As empty pages of one form are."""
    phash = [f"{2**63 | 2 ** (number % 50):016x}" for number in range(20_000)]
    pictures = pl.DataFrame({"picture": range(len(phash)), "phash": phash}).with_columns(
        width=640, height=480
    )
    proposed = propose(pictures)
    assert proposed.height < 4 * len(phash)
    links = coo_array(
        (np.ones(proposed.height), (proposed["a"], proposed["b"])), shape=(len(phash), len(phash))
    )
    assert connected_components(links)[0] == 1


def test_each_shape_of_a_hash_that_many_have_meets_other_hashes() -> None:
    phash, widths = ["0" * 16] * 40 + ["0" * 15 + "1"], [640] * 20 + [480] * 20 + [480]
    pictures = pl.DataFrame({"picture": range(41), "phash": phash, "width": widths}).with_columns(height=480)
    assert 40 in propose(pictures)["b"]


def test_a_copy_behind_its_original_is_proposed_among_many_pictures_of_their_hashes() -> None:
    """As pages of one form, each followed by a smaller copy of it: all pages share a hash, and all copies."""
    phash = [f"{value:016x}" for value in (0xFF00FF00FF00FF00, 0xFF00FF00FF00FF03)] * 40
    pictures = pl.DataFrame({"picture": range(80), "phash": phash}).with_columns(width=640, height=480)
    assert {(page, page + 1) for page in range(0, 80, 2)} <= set(propose(pictures).rows())


def test_thumbnails_differ_by_light_or_by_a_channel_alone() -> None:
    def alike(*colour: int) -> bool:
        return look_alike(*(Image.new("RGB", (64, 64), shade) for shade in ((100, 100, 100), colour)))

    assert [alike(value, value, value) for value in (119, 121)] == [True, False]
    assert [alike(100, 100, value) for value in (136, 137)] == [True, False]


def test_no_pictures_give_no_pairs() -> None:
    empty = {"picture": pl.Int64, "phash": pl.String, "width": pl.Int32, "height": pl.Int32}
    assert near_pictures(pl.DataFrame(schema=empty), lambda rows: []).is_empty()
