"""Pictures: verify, hash and store, beside bare Pillow decoding of the same files on the same cores.

The files are photograph-like JPEGs of 448 x 336 to 1600 x 1200 pixels, scanned pages as JPEG and drawn pages
as PNG. Ours is the real intake (open, verify whole, turn upright, flatten, hash content and look) into a
Lance image store, with processes; Pillow opens the same files with as many threads and converts them to RGB,
and that is all. Each round of either has a fresh process. Two numbers of pictures are measured: the start of
our processes, about 0.4 s, is a third of the time of the few, and little of that of the many.
"""

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from quality.intake import PictureIntake
from tests.benchmarks.measure import measure
from vipolyqwen_core.corpus.image_root import ImageRoot
from vipolyqwen_core.corpus.image_store import write_images

NUM_DRAWN = 200
COPIES = 30
"""Every picture is also stored shifted in a circle: other pixels and bytes, equal work."""
ROUNDS = 3
SIZES = ((448, 336), (640, 480), (1024, 768), (1600, 1200))
MAX_PIXELS = 100_000_000


def photograph(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """Soft shapes of all scales with grain, which compresses like a photograph."""
    layers = np.zeros((size[1], size[0], 3), dtype=np.float32)
    for scale in (2, 5, 12, 40, 120):
        coarse = random.normal(0, 60 / scale**0.5, (scale, scale, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[:, :, channel]).resize(size, Image.Resampling.BICUBIC)
            layers[:, :, channel] += np.asarray(layer)
    layers += random.normal(0, 4, layers.shape).astype(np.float32)
    return Image.fromarray(np.clip(layers + 120, 0, 255).astype(np.uint8))


def page(size: tuple[int, int], random: np.random.Generator) -> Image.Image:
    """A page of text."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for line in range(size[1] // 24):
        words = [
            "".join(random.choice(list("abcdeghiklmnopqrstuvxy"), random.integers(2, 8))) for _ in range(12)
        ]
        draw.text((20, 24 * line), " ".join(words), fill="black", font_size=18)
    return image


def write_pictures(few: Path, many: Path) -> None:
    """Write the files: 60 % photographs, 25 % scanned pages, 15 % drawn pages; the drawn ones to `few`."""
    random = np.random.default_rng(0)
    for number in range(NUM_DRAWN):
        size, kind = SIZES[number % len(SIZES)], number % 20
        image = photograph(size, random) if kind < 12 else page(size, random)
        suffix, quality = (".jpg", 88) if kind < 12 else (".jpg", 80) if kind < 17 else (".png", None)
        pixels = np.asarray(image)
        for copy in range(COPIES):
            shifted = Image.fromarray(np.roll(pixels, (37 * copy, 91 * copy), axis=(0, 1)))
            shifted.save(many / f"{number}_{copy}{suffix}", **({"quality": quality} if quality else {}))
        shutil.copy(many / f"{number}_0{suffix}", few)


def decode_all(folder: Path) -> int:
    """Bare decoding, by threads."""

    def decode(path: Path) -> int:
        with Image.open(path) as image:
            return image.convert("RGB").width

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return len(list(pool.map(decode, sorted(folder.iterdir()))))


def store_all(folder: Path, store: Path) -> int:
    """The real intake into an image store of its own."""
    shutil.rmtree(store, ignore_errors=True)
    intake = PictureIntake(ImageRoot(str(folder)), MAX_PIXELS)
    names = [(path.name, path.name) for path in sorted(folder.iterdir())]
    try:
        return write_images(store, intake.load(names)).version
    finally:
        intake.close()


def run() -> list[str]:
    """Images a second of both, and their ratio; the best of the rounds."""
    folder = Path(tempfile.mkdtemp(prefix="pictures_"))
    few, many = folder / "few", folder / "many"
    few.mkdir()
    many.mkdir()
    write_pictures(few, many)
    lines = [
        "| pictures | MB | decoding, images/s | verify, hash, store, images/s | ratio | CPU ms each"
        " | CPU ratio | peak GB |",
        "| --- " * 8 + "|",
    ]
    for files in (few, many):
        rounds = [
            (measure(decode_all, files), measure(store_all, files, folder / "store.lance"))
            for _ in range(ROUNDS)
        ]
        sizes = [path.stat().st_size for path in files.iterdir()]
        decoding, storing = (min(cost.seconds for cost in costs) for costs in zip(*rounds, strict=True))
        decoding_cpu, storing_cpu = (
            min(cost.cpu_seconds for cost in costs) for costs in zip(*rounds, strict=True)
        )
        lines.append(
            f"| {len(sizes):,} | {sum(sizes) / 2**20:.0f} | {len(sizes) / decoding:,.0f}"
            f" | {len(sizes) / storing:,.0f} | {decoding / storing:.2f}"
            f" | {decoding_cpu / len(sizes) * 1e3:.1f} and {storing_cpu / len(sizes) * 1e3:.1f}"
            f" | {decoding_cpu / storing_cpu:.2f} | {max(ours.peak_gb for _, ours in rounds):.2f} |"
        )
    shutil.rmtree(folder)
    return lines
