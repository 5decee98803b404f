"""Any picture becomes upright RGB, or is refused with the right rule; stored bytes keep the pixels."""

import io
import pickle
import random
import struct
import zlib

import numpy as np
import pytest
import xxhash
from PIL import Image

from tests.stored_pictures import file_of
from vipolyqwen_core.config import MAX_IMAGE_PIXELS, CurationSettings
from vipolyqwen_core.corpus.image_identity import image_id
from vipolyqwen_core.corpus.perceptual_hash import perceptual_hash
from vipolyqwen_core.corpus.pictures import (
    DecodedPicture,
    PictureError,
    decode_picture,
    normalise_picture,
    store_picture,
)

LIMIT = 1_000_000


def noise(width: int = 30, height: int = 20) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def exif(tag: int, value: object) -> Image.Exif:
    block = Image.Exif()
    block[tag] = value
    return block


def reopened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def adobe_rgb(image: Image.Image) -> bytes:
    """A JPEG whose Adobe segment alone says that it holds RGB: the names of the channels do not."""
    data = file_of(image, "JPEG", keep_rgb=True)
    for names in (b"R\x11\0G\x11\0B\x11\0", b"R\0G\0B\0"):
        assert data.count(names) == 1
        data = data.replace(names, names.translate(bytes.maketrans(b"RGB", b"\1\2\3")))
    return data


ORIENTATION, DESCRIPTION = 0x0112, 0x010E
KINDS = {
    "jpeg": file_of(noise(), "JPEG"),
    "jpeg_turned": file_of(noise(), "JPEG", exif=exif(ORIENTATION, 6)),
    "jpeg_described": file_of(noise(), "JPEG", exif=exif(DESCRIPTION, "at home"), comment=b"secret"),
    "jpeg_grey": file_of(noise().convert("L"), "JPEG"),
    "jpeg_cmyk": file_of(noise().convert("CMYK"), "JPEG"),
    "jpeg_rgb": adobe_rgb(noise()),
    "jpeg_turned_by_0": file_of(noise(), "JPEG", exif=exif(ORIENTATION, 0)),
    "mpo": file_of(noise(), "MPO", save_all=True, append_images=[noise()]),
    "png": file_of(noise(), "PNG"),
    "png_described": file_of(noise(), "PNG", exif=exif(DESCRIPTION, "at home")),
    "png_broken_exif": file_of(noise(), "PNG", exif=b"Exif\0\0no tags at all"),
    "png_alpha": file_of(noise().convert("RGBA"), "PNG"),
    "png_grey_alpha": file_of(noise().convert("LA"), "PNG"),
    "png_palette": file_of(noise().quantize(8), "PNG"),
    "png_palette_transparent": file_of(noise().quantize(8), "PNG", transparency=3),
    "png_bits": file_of(noise().convert("1"), "PNG"),
    "png_16_bit": file_of(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), "PNG"),
    "gif": file_of(noise(), "GIF"),
    "gif_animated": file_of(noise(), "GIF", save_all=True, append_images=[noise().rotate(180)]),
    "webp": file_of(noise(), "WEBP", lossless=True),
    "tiff": file_of(noise(), "TIFF"),
    "tiff_float": file_of(Image.fromarray(np.linspace(-1, 1, 600, dtype=np.float32).reshape(20, 30)), "TIFF"),
    "bmp": file_of(noise(), "BMP"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_stored_bytes_open_as_the_normalised_picture_without_metadata(kind: str) -> None:
    picture = decode_picture(KINDS[kind], LIMIT)
    assert picture.image.mode == "RGB"
    assert picture.image.info == {}
    assert (picture.width, picture.height) == picture.image.size
    stored = store_picture(KINDS[kind], picture)
    with Image.open(io.BytesIO(stored.bytes)) as opened:
        assert not opened.getexif()
        assert not {"comment", "exif", "icc_profile", "xmp"} & set(opened.info)
        assert stored.format in (opened.format, {"MPO": "JPEG"}.get(str(opened.format)))
    assert image_id(reopened(stored.bytes)) == image_id(picture.image)
    again = decode_picture(stored.bytes, LIMIT)
    assert image_id(again.image) == image_id(picture.image)
    assert not again.needs_reencoding


def test_only_changed_pixels_and_foreign_metadata_cost_a_new_encoding() -> None:
    def reencoded(kind: str) -> bool:
        return store_picture(KINDS[kind], decode_picture(KINDS[kind], LIMIT)).reencoded

    kept = {
        "jpeg",
        "jpeg_described",
        "jpeg_grey",
        "jpeg_rgb",
        "jpeg_turned_by_0",
        "mpo",
        "png",
        "png_palette",
        "png_bits",
        "gif",
        "webp",
        "bmp",
    }
    assert {kind for kind in KINDS if not reencoded(kind)} == kept
    described = KINDS["jpeg_described"]
    stripped = store_picture(described, decode_picture(described, LIMIT)).bytes
    assert b"at home" not in stripped
    assert b"secret" not in stripped


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png[:-12] + chunk + png[-12:]


@pytest.mark.parametrize(
    "data",
    [
        file_of(noise(), "MPO", save_all=True, append_images=[noise()], exif=exif(DESCRIPTION, "at home")),
        KINDS["jpeg"] + b"a film, at home",
        file_of(noise(300, 200), "JPEG", progressive=True) + b"a film, at home",
        KINDS["png"] + b"at home",
        with_chunk(KINDS["png"], b"caBX", b"at home"),
    ],
    ids=["second_picture", "behind_jpeg", "behind_progressive_jpeg", "behind_png", "private_chunk"],
)
def test_nothing_but_the_picture_is_stored(data: bytes) -> None:
    assert b"at home" in data
    picture = decode_picture(data, LIMIT)
    stored = store_picture(data, picture)
    assert b"at home" not in stored.bytes
    assert stored.reencoded == (picture.format == "PNG")
    assert image_id(reopened(stored.bytes)) == image_id(picture.image)


@pytest.mark.parametrize(
    ("orientation", "seen"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_the_camera_decides_what_is_up(orientation: int, seen: Image.Transpose) -> None:
    upright = Image.new("RGB", (40, 20), "red")
    upright.paste("blue", (0, 0, 10, 5))
    turned = upright.transpose(seen)  # as a sensor held sideways saw it
    picture = decode_picture(file_of(turned, "PNG", exif=exif(ORIENTATION, orientation)), LIMIT)
    assert image_id(picture.image) == image_id(upright)
    assert picture.needs_reencoding


def test_alpha_lies_over_white() -> None:
    glass = Image.new("RGBA", (2, 1), (200, 0, 0, 0))
    glass.putpixel((1, 0), (0, 0, 0, 128))
    picture = normalise_picture(glass)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert picture.getpixel((1, 0)) == (127, 127, 127)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA", "P"])
def test_alpha_lies_over_white_in_every_mode_that_has_it(mode: str) -> None:
    glass = Image.new("RGBA", (2, 1), (120, 120, 120, 0))
    glass.putpixel((1, 0), (0, 0, 0, 255))
    given = glass.quantize(2) if mode == "P" else glass
    for step in {"La": ("LA", "La"), "P": ()}.get(mode, (mode,)):
        given = given.convert(step)
    assert (given.mode, given.info) == (mode, {})
    picture = normalise_picture(given)
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize(
    ("mode", "glass"), [("1", 255), ("L", 90), ("P", 1), ("RGB", (9, 90, 200)), ("I;16", 700)]
)
def test_the_one_colour_that_a_file_declares_as_glass_becomes_white(
    mode: str, glass: int | tuple[int, int, int]
) -> None:
    image = Image.new(mode, (2, 1), glass)
    image.putpixel((1, 0), 0)
    if mode == "P":
        image.putpalette([0, 0, 0, 90, 90, 90])
    data = file_of(image, "PNG", transparency=glass)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == mode
    picture = decode_picture(data, LIMIT).image
    assert [picture.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 0)]


def test_the_bytes_of_an_animation_are_its_first_frame() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = file_of(first, "GIF", save_all=True, append_images=[second])
    assert image_id(decode_picture(data, LIMIT).image) == image_id(first)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_opened_animation_is_the_frame_it_stands_at_and_stays_there(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as opened:
        for place, frame in enumerate(frames):
            opened.seek(place)
            assert image_id(normalise_picture(opened)) == image_id(frame)
            assert opened.tell() == place


def test_deep_greys_keep_their_shades() -> None:
    deep = Image.fromarray(np.array([[0, 256, 32_768, 65_535]], dtype=np.uint16))
    assert [normalise_picture(deep).getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]
    dark = Image.fromarray(np.array([[0, 255]], dtype=np.uint16))
    assert [normalise_picture(dark).getpixel((x, 0))[0] for x in range(2)] == [0, 0]


@pytest.mark.parametrize(
    ("values", "dtype", "shades"),
    [
        ([0, 128, 255], np.int32, [0, 128, 255]),
        ([0, 32_768, 65_535], np.int32, [0, 128, 255]),
        ([0, 255, 256], np.int32, [0, 0, 1]),
        ([-100, 0, 100], np.int32, [0, 127, 255]),
        ([0, 100_000, 200_000], np.int32, [0, 127, 255]),
        ([-1.0, 0.0, 1.0], np.float32, [0, 127, 255]),
        ([0.25, 0.25, 0.25], np.float32, [0, 0, 0]),
        ([np.nan, np.inf, 1.0], np.float32, [0, 0, 255]),
    ],
)
def test_other_numbers_become_shades_between_their_ends(values: list, dtype: type, shades: list) -> None:
    picture = normalise_picture(Image.fromarray(np.array([values], dtype=dtype)))
    assert [picture.getpixel((x, 0))[0] for x in range(3)] == shades


@pytest.mark.parametrize(
    "mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
)
def test_a_normalised_picture_stays_as_it_is(mode: str) -> None:
    given = noise().convert("L").convert(mode) if mode == "I;16" else noise().convert(mode)
    once = normalise_picture(given)
    twice = normalise_picture(once)
    assert twice is not once
    assert image_id(twice) == image_id(once)


def test_no_picture_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="expected a PIL image, not str"):
        normalise_picture("a.png")  # type: ignore[arg-type]


PNG = KINDS["png"]


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "empty_image"),
        (b"<html>404</html>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not_an_image"),
        (PNG[: len(PNG) // 2], "truncated_image"),
        (KINDS["jpeg"][:-300], "truncated_image"),
        (PNG[:60] + bytes(200) + PNG[260:], "broken_image"),
        (file_of(Image.new("1", (2000, 501)), "PNG"), "too_many_pixels"),
        (file_of(Image.new("1", (20_000, 20_000)), "PNG"), "too_many_pixels"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_rule(data: bytes, rule: str) -> None:
    with pytest.raises(PictureError) as refused:
        decode_picture(data, LIMIT)
    assert refused.value.rule == rule
    assert str(refused.value)
    copy = pickle.loads(pickle.dumps(refused.value))
    assert (copy.rule, str(copy)) == (rule, str(refused.value))


def tiled(tile: int) -> bytes:
    """A grey TIFF of 64 x 64 pixels in one square tile, which may be larger."""
    entries = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 277: 1, 322: tile, 323: tile, 324: 134, 325: tile**2}
    packed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries.items())
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + bytes(tile**2)


def test_a_tile_may_have_as_many_pixels_as_the_limit_says() -> None:
    asked: list[int] = []
    assert decode_picture(tiled(128), 128**2, before_loading=asked.append).width == 64
    assert asked == [128**2]
    with pytest.raises(PictureError, match="a tile of 16384 pixels, limit 16383") as refused:
        decode_picture(tiled(128), 128**2 - 1)
    assert refused.value.rule == "too_many_pixels"


def test_a_picture_may_have_as_many_pixels_as_the_limit_says() -> None:
    assert decode_picture(PNG, 600).image.size == (30, 20)
    with pytest.raises(PictureError, match="30 x 20 pixels, limit 599"):
        decode_picture(PNG, 599)


def test_settings_allow_no_larger_picture_than_pillow_opens() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert 2 * Image.MAX_IMAGE_PIXELS == MAX_IMAGE_PIXELS
    CurationSettings(max_image_pixels=MAX_IMAGE_PIXELS)
    with pytest.raises(ValueError, match="max_image_pixels"):
        CurationSettings(max_image_pixels=MAX_IMAGE_PIXELS + 1)


def test_a_wrong_suffix_does_not_matter_and_the_true_format_is_named() -> None:
    assert decode_picture(KINDS["webp"], LIMIT).format == "WEBP"
    assert decode_picture(KINDS["mpo"], LIMIT).format == "JPEG"


@pytest.mark.filterwarnings("error")
def test_damaged_pictures_are_decoded_or_refused_and_never_crash() -> None:
    rng = random.Random(0)
    outcomes: dict[str, int] = {}
    for _ in range(600):
        data = bytearray(KINDS[rng.choice(list(KINDS))])
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        else:
            for _ in range(rng.randrange(1, 9)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            picture = decode_picture(bytes(data), LIMIT)
        except PictureError as error:
            outcomes[error.rule] = outcomes.get(error.rule, 0) + 1
        else:
            assert isinstance(picture, DecodedPicture)
            stored = store_picture(bytes(data), picture)
            assert image_id(reopened(stored.bytes)) == image_id(picture.image)
            outcomes["decoded"] = outcomes.get("decoded", 0) + 1
    assert sum(outcomes.values()) == 600
    assert {"decoded", "broken_image", "truncated_image", "not_an_image"} <= set(outcomes)


def test_the_id_knows_size_and_pixels_only() -> None:
    image = noise()
    assert image_id(image) == image_id(reopened(file_of(image, "PNG")))
    assert image_id(Image.new("RGB", (2, 6))) != image_id(Image.new("RGB", (3, 4)))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (300, 200), (1001, 701)])
def test_an_identity_is_the_hash_of_size_and_pixels(size: tuple[int, int]) -> None:
    image = noise(*size)
    whole = f"{size[0]}x{size[1]}:".encode() + image.tobytes()
    assert image_id(image) == xxhash.xxh3_128(whole).hexdigest()


def test_a_perceptual_hash_survives_a_smaller_copy() -> None:
    scene = Image.linear_gradient("L").convert("RGB")
    scene.paste("red", (40, 60, 120, 200))
    small = perceptual_hash(scene.resize((100, 100)))
    assert len(small) == 16
    assert bin(int(small, 16) ^ int(perceptual_hash(scene), 16)).count("1") <= 4
