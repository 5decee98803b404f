"""Pictures: from any bytes to upright RGB without metadata, the same for training and for `encode`."""

import io
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Final, TypeAlias

import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

DECODERS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO")
"""Formats that are opened, whatever a file is called. PostScript, PDF and the like run programs: never."""

DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""What Pillow's decoders raise on broken bytes, by experience with mutated files. A `MemoryError` is the
machine's want, not the picture's fault."""

Shrink: TypeAlias = Callable[[Image.Image], Image.Image]
"""Makes a picture smaller that is to be kept, such as `ViPolyQwenProcessor.shrink`."""

LARGE_PIXELS: Final = 32_000_000
"""Larger pictures take turns: with copies a decoder may hold 16 bytes a pixel, and many at once would fill
the memory. Photos of 24 megapixels still keep all threads at work."""
_LARGE_PICTURE: Final = Lock()
"""Held by the thread that has a large picture in memory."""

TOO_MANY_PIXELS = "too_many_pixels"
"""The rule of pictures that are larger than is asked for."""

_PLAIN_MODES = frozenset({"RGB", "L", "1", "P"})
"""Modes that `convert("RGB")` turns into the normalised pixels, where there is no transparency."""


_HARMLESS_INFO = frozenset(
    {"dpi", "gamma", "interlace", "compression", "aspect", "srgb", "chromaticity", "background"}
    | {"loop", "version", "duration", "timestamp", "extension", "sizes"}
)
"""What Pillow reports about a file that is no metadata in the sense of a photographer's name or place."""

_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""The marker that ends the pixels of a scan: stuffed zeros and restarts stand within them."""
_BETWEEN_SCANS = frozenset({0xC4, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE})
_PNG_CHUNKS = frozenset(
    {b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"bKGD", b"sBIT", b"hIST"}
)
"""What a PNG needs for its pixels, its size and its colours."""


class PictureError(ValueError):
    """A picture that cannot be used."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule = rule
        """Name of the rule, as the ledger counts it: `truncated_image`."""

    def __reduce__(self) -> tuple[type["PictureError"], tuple[str, str]]:
        return type(self), (self.rule, str(self))


@dataclass(frozen=True)
class DecodedPicture:
    """A picture that was read whole."""

    image: Image.Image
    """Upright RGB, without metadata."""
    format: str
    """What the bytes really are: JPEG, PNG, WEBP ..."""
    width: int
    """Pixels, upright."""
    height: int
    """Pixels, upright."""
    needs_reencoding: bool
    """Whether the bytes, opened and converted to RGB, give other pixels than `image`."""
    has_metadata: bool = False
    """Whether the file carries more than pixels and what their size and colours need."""


@dataclass(frozen=True)
class StoredPicture:
    """A picture as the image store keeps it: `Image.open(bytes).convert("RGB")` is the normalised picture."""

    bytes: bytes
    """The original bytes, the original without its metadata segments, or PNG."""
    format: str
    """What `bytes` are."""
    reencoded: bool
    """Whether the pixels had to be written anew."""


def as_it_is(image: Image.Image) -> Image.Image:
    """The picture: nothing is made smaller."""
    return image


@contextmanager
def taking_turns(
    large_pixels: int | None = None, turn: AbstractContextManager[object] = _LARGE_PICTURE
) -> Iterator[Callable[[int], None]]:
    """What to call with the number of pixels of a picture before they take memory: see `decode_picture`.

    A large one waits until no other thread has one, and is taken for gone at the end of the block, which is
    for one picture.

    Args:
        large_pixels: from where on a picture is large; None: LARGE_PIXELS
        turn: held by whoever has a large one: a lock of this process, or of several
    """
    with ExitStack() as held:

        def wait_for_turn(num_pixels: int) -> None:
            if num_pixels > (LARGE_PIXELS if large_pixels is None else large_pixels):
                held.enter_context(turn)

        yield wait_for_turn


def decode_picture(
    data: bytes, max_image_pixels: int, before_loading: Callable[[int], None] | None = None
) -> DecodedPicture:
    """The picture that the bytes hold, whole and normalised; the first frame of an animation.

    Args:
        data: the file
        max_image_pixels: larger pictures are refused, and larger tiles
        before_loading: called with the number of pixels before they take memory

    Raises:
        PictureError: with rule `empty_image`, `not_an_image`, `too_many_pixels`, `truncated_image` or
            `broken_image`
        MemoryError: memory is short
    """
    if not data:
        raise PictureError("empty_image", "the file is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes, which are checked here, and of odd metadata, which goes
        try:
            image = Image.open(io.BytesIO(data), formats=DECODERS)
            tile_pixels = _tile_pixels(image)
        except Image.DecompressionBombError as error:
            raise PictureError(TOO_MANY_PIXELS, str(error)) from error
        except UnidentifiedImageError as error:
            raise PictureError("not_an_image", f"{len(data)} bytes of no known picture format") from error
        except DECODING_ERRORS as error:
            raise PictureError("broken_image", _sentence(error)) from error
        with image:
            if image.width * image.height > max_image_pixels:
                raise PictureError(
                    TOO_MANY_PIXELS, f"{image.width} x {image.height} pixels, limit {max_image_pixels}"
                )
            if tile_pixels > max_image_pixels:
                raise PictureError(
                    TOO_MANY_PIXELS, f"a tile of {tile_pixels} pixels, limit {max_image_pixels}"
                )
            if before_loading is not None:
                before_loading(max(image.width * image.height, tile_pixels))
            try:
                image.load()
                upright = _to_rgb(_upright(image))  # no copy where nothing changes: the image is our own
                needs_reencoding = not _opens_as(image, upright)
                has_metadata = bool(set(image.info) - _HARMLESS_INFO) or getattr(image, "is_animated", False)
            except Image.DecompressionBombError as error:
                raise PictureError(TOO_MANY_PIXELS, str(error)) from error
            except DECODING_ERRORS as error:
                rule = "truncated_image" if "truncated" in str(error).lower() else "broken_image"
                raise PictureError(rule, _sentence(error)) from error
            upright.info.clear()
            return DecodedPicture(
                image=upright,
                format="JPEG" if image.format == "MPO" else str(image.format),
                width=upright.width,
                height=upright.height,
                needs_reencoding=needs_reencoding,
                has_metadata=has_metadata,
            )


def _tile_pixels(image: Image.Image) -> int:
    """Pixels of a tile of a TIFF, which is decoded whole, however small the picture in it; else 0."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    width, height = (
        image.tag_v2.get(tag, 0) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)
    )
    return int(width) * int(height)


def normalise_picture(image: Image.Image) -> Image.Image:
    """The picture upright, in RGB, alpha over white, without metadata; a new object.

    Of several frames or pages it is the one that the image stands at. A normalised picture stays as it is.
    `encode` applies this to the pictures it is given.

    Raises:
        TypeError: not a Pillow image
    """
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected a PIL image, not {type(image).__name__}")
    rgb = _to_rgb(_upright(image))
    if rgb is image:
        rgb = image.copy()
    rgb.info.clear()
    return rgb


def store_picture(data: bytes, picture: DecodedPicture) -> StoredPicture:
    """The bytes to keep of a picture: no metadata, and the same pixels to the bit.

    A JPEG only loses its metadata segments and what stands behind its end, where phones put a film or a
    second picture with its place; where pixels had to change, or where another format carries metadata, the
    picture becomes PNG.
    """
    if not picture.needs_reencoding:
        if picture.format == "JPEG":
            stripped = _strip_jpeg(data)
            if stripped is not None:
                return StoredPicture(stripped, "JPEG", reencoded=False)
        elif not picture.has_metadata and not (picture.format == "PNG" and _png_holds_more(data)):
            return StoredPicture(data, picture.format, reencoded=False)
    buffer = io.BytesIO()
    picture.image.save(buffer, format="PNG")
    return StoredPicture(buffer.getvalue(), "PNG", reencoded=True)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image) if _is_turned(image) else image
    except DECODING_ERRORS:  # a broken EXIF block says nothing about the pixels
        return image


def _is_turned(image: Image.Image) -> bool:
    """Whether the camera says so: 1 is upright, and 0, which many programs write, says nothing."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_deep_grey(image)
    if image.has_transparency_data:  # also of a palette: `quantize` leaves no word of it in `info`
        layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """Greys as bytes: 16-bit ones by their high byte, others from their lowest value to their highest.

    32-bit integers within 0 to 65,535 count as 16-bit ones, and stay as they are where none is above 255.
    Pillow's own conversion cuts every grey above 255 to white. The grey that stands for glass becomes white.
    """
    values = np.asarray(image, dtype=np.float64)
    if image.mode == "F":
        values = np.nan_to_num(values, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode != "F" and low >= 0 and high <= 65_535:
        grey = values if high <= 255 and image.mode == "I" else values // 256
    else:
        grey = (values - low) / ((high - low) or 1.0) * 255.0
    if isinstance(glass := image.info.get("transparency"), int):
        grey = np.where(values == glass, 255.0, grey)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _opens_as(image: Image.Image, upright: Image.Image) -> bool:
    """Whether a plain `convert("RGB")` of the opened file gives the normalised picture."""
    if image.mode not in _PLAIN_MODES or image.has_transparency_data or image.size != upright.size:
        return False
    try:
        return not _is_turned(image)
    except DECODING_ERRORS:
        return False  # PNG keeps the pixels and drops the block that cannot be read


def _strip_jpeg(data: bytes) -> bytes | None:
    """The JPEG up to its end without application segments and comments; None where it cannot be followed.

    JFIF (APP0) and Adobe (APP14) stay: they decide how the pixels decode.
    """
    if data[:2] != b"\xff\xd8":
        return None
    kept, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD9:
            return None
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if end < place + 4 or end > len(data):
            return None
        if marker == 0xDA:  # start of scan
            found = _AFTER_SCAN.search(data, end)
            if found is None:
                return b"".join([*kept, data[place:]])
            if (after := data[found.end() - 1]) not in _BETWEEN_SCANS:
                return None
            kept.append(data[place : found.start()])
            place = found.start()
            if after == 0xD9:  # the end of the image
                return b"".join([*kept, b"\xff\xd9"])
            continue
        if not (marker == 0xFE or (0xE1 <= marker <= 0xEF and marker != 0xEE)):
            kept.append(data[place:end])
        place = end
    return None


def _png_holds_more(data: bytes) -> bool:
    """Whether a PNG has chunks that its pixels do not need, or something behind its end."""
    place = 8
    while place + 12 <= len(data):
        kind = data[place + 4 : place + 8]
        place += int.from_bytes(data[place : place + 4], "big") + 12
        if kind == b"IEND":
            return place < len(data)
        if kind not in _PNG_CHUNKS:
            return True
    return False


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
