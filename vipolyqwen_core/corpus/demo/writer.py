"""Writes the built-in corpus: source files, pictures, `manifest.yaml` and `dirt.json`."""

import json
import logging
import random
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import yaml

from vipolyqwen_core.corpus.demo.dirt import DIRT, REJECTED, plant
from vipolyqwen_core.corpus.demo.files import IMAGE_ROOT, SOURCE_FILES, Entry, SourceFile
from vipolyqwen_core.corpus.demo.samples import Picture, Sample
from vipolyqwen_core.corpus.demo.spoiling import photo_outside
from vipolyqwen_core.written_aside import written_aside

VERSION = 4
"""Rises with every change of what is written."""
LANGUAGES = ("vi", "en", "zh")
ENDINGS = {".png": "PNG", ".jpg": "JPEG"}

log = logging.getLogger(__name__)


def write_demo_corpus(folder: Path, seed: int = 0, scale: float = 1.0) -> Path:
    """Write the built-in corpus below a folder, and return the path of its manifest.

    The same version, seed and scale give the same bytes. A folder that holds them already stays as it is; any
    other content of the folder is replaced.

    Args:
        seed: another seed fills the templates otherwise
        scale: share of the rows; the dirt keeps its amount
    Raises:
        ValueError: the scale is not above 0, or the fonts are missing
    """
    if scale <= 0:
        raise ValueError(f"scale must be above 0, not {scale}")
    manifest = folder / "manifest.yaml"
    identity = {"version": VERSION, "seed": seed, "scale": scale}
    if _stands(folder, identity):
        log.info("the built-in corpus in %s is unchanged", folder)
        return manifest
    with written_aside(folder) as aside:
        aside.mkdir()
        report: dict[str, Any] = {**identity, "sources": {}, "dirt": []}
        planted: dict[str, list[Entry]] = {}
        for source in SOURCE_FILES:
            rng = random.Random(f"{seed} {source.name}")
            planted[source.name] = entries = plant(_clean(source, seed, scale), source.name, planted, rng)
            path = aside / source.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source.render([entry.record for entry in entries]), encoding="utf-8", newline="")
            _write_pictures(entries, aside / IMAGE_ROOT)
            report["sources"][source.name] = _counts(source, entries)
            report["dirt"].extend(_dirt_report(source, entries))
        (aside / "outside").mkdir()
        (aside / "outside" / "photo.png").write_bytes(photo_outside())
        (aside / "manifest.yaml").write_text(_manifest(), encoding="utf-8")
        (aside / "dirt.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    total = sum(counts["clean_pairs"] for counts in report["sources"].values())
    log.info(
        "wrote the built-in corpus to %s: %d clean pairs in %d sources", folder, total, len(SOURCE_FILES)
    )
    return manifest


def demo_texts(seed: int = 0, scale: float = 1.0) -> Iterator[str]:
    """All texts of the clean samples, for a tokenizer to be trained on. Nothing is drawn or written."""
    for sample in demo_samples(seed, scale):
        yield from sample.texts


def demo_samples(seed: int = 0, scale: float = 1.0) -> Iterator[Sample]:
    """All samples, before dirt spoils some of them."""
    for source in SOURCE_FILES:
        yield from source.samples(seed, scale)


def _stands(folder: Path, identity: dict[str, Any]) -> bool:
    report = folder / "dirt.json"
    if not report.is_file() or not (folder / "manifest.yaml").is_file():
        return False
    try:
        written = json.loads(report.read_text(encoding="utf-8"))
    except ValueError:  # cut short by a power cut: the files beside it may be, too
        return False
    return all(written.get(key) == value for key, value in identity.items())


def _clean(source: SourceFile, seed: int, scale: float) -> list[Entry]:
    return [
        Entry(record=source.write(sample, number), pictures=sample.pictures, sample=sample)
        for number, sample in enumerate(source.samples(seed, scale))
    ]


def _write_pictures(entries: list[Entry], root: Path) -> None:
    """Write the pictures of the entries, each once."""
    pictures = {picture.path: picture for entry in entries for picture in entry.pictures}
    for path, picture in pictures.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_encoded(picture))


def _encoded(picture: Picture) -> bytes:
    image = picture.draw()
    kind = picture.format or ENDINGS[Path(picture.path).suffix]
    options: dict[str, Any] = {"quality": 92} if kind == "JPEG" else {"compress_level": 1}
    if len(exif := image.getexif()):
        options["exif"] = exif
    data = BytesIO()
    image.save(data, kind, **options)
    image.close()
    return picture.spoil(data.getvalue()) if picture.spoil else data.getvalue()


def _counts(source: SourceFile, entries: list[Entry]) -> dict[str, Any]:
    rejected = {dirt.kind for dirt in DIRT if dirt.outcome == REJECTED}
    clean = [entry.sample for entry in entries if entry.dirt not in rejected and entry.sample]
    return {
        "file": source.path,
        "records": len(entries),
        "clean_pairs": len(clean),
        "tasks": dict(Counter(sample.task.value for sample in clean)),
        "languages": dict(Counter(sample.language.value for sample in clean)),
    }


def _dirt_report(source: SourceFile, entries: list[Entry]) -> Iterator[dict[str, Any]]:
    """For each kind of dirt in the source: how many, where, and what must become of them."""
    line_of = {id(entry): line for line, entry in enumerate(entries, start=source.first_line)}
    for dirt in DIRT:
        if source.name in dirt.amounts:
            planted = [entry for entry in entries if entry.dirt == dirt.kind]
            originals = [line_of[id(entry.original)] for entry in planted if entry.original]
            yield {
                "kind": dirt.kind,
                "source": source.name,
                "count": len(planted),
                "outcome": dirt.outcome,
                "stage": dirt.stage,
                "rule": dirt.rule,
                "lines": [line_of[id(entry)] for entry in planted],
                "originals": originals,
            }


def _manifest() -> str:
    entries = [
        {
            "name": source.name,
            **source.manifest,
            "paths": [source.path],
            "languages": list(LANGUAGES),
            "license": "Apache-2.0",
        }
        for source in SOURCE_FILES
    ]
    head = "# The built-in corpus. Written by code; dirt.json says what is wrong with it on purpose.\n"
    return head + yaml.dump({"sources": entries}, Dumper=_Plain, sort_keys=False, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    """Writes equal values out each time, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always: a manifest is read by people."""
        return True
