"""Pictures of rows of several sources, each with an image store of its own."""

import json
from pathlib import Path

import pyarrow as pa

from tests.core.small_training_set import SOURCE, SmallPair, picture, write_training_set
from tests.stored_pictures import store_row
from vipolyqwen_core.contract import Side, Split
from vipolyqwen_core.corpus.image_store import write_images
from vipolyqwen_core.corpus.tables import read_arrow
from vipolyqwen_core.serving.exported_sides import ExportedSides
from vipolyqwen_core.serving.stored_sides import SideRequest, StoredSides
from vipolyqwen_core.training.identity import data_version


def of_two_sources(folder: Path) -> Path:
    """A training set whose second pair is of another source, where row 1 is another picture."""
    pairs = [SmallPair(f"<image>{number}", f"{number}", query_pictures=(number,)) for number in (1, 2)]
    write_training_set(folder, pairs)
    scans = [store_row(picture(number), f"scans/{number}.png") for number in (3, 4)]
    other = write_images(folder / "other.lance", scans)
    pins = json.loads((folder / "images.json").read_text())
    (folder / "images.json").write_text(json.dumps({**pins, "other": other.pin}))
    eval_file = folder / Split.EVAL.file
    table = pa.Table.from_batches(read_arrow(eval_file).to_batches())
    sources = pa.array([SOURCE, "other"], pa.large_string())
    table = table.set_column(table.column_names.index("source"), "source", sources)
    with pa.ipc.new_file(folder / "written", table.schema) as writer:
        writer.write_table(table)
    (folder / "written").replace(eval_file)
    return folder


def test_pictures_and_their_origins_are_those_of_the_row_s_own_source(tmp_path: Path) -> None:
    folder = of_two_sources(tmp_path / "set")
    rows = [row for block in ExportedSides(folder).blocks() for row in block.rows.to_pylist()]
    of_queries = [row["origin"] for row in rows if row["side"] == Side.QUERY.value]
    assert of_queries == ["pictures/1.png", "scans/4.png"]
    sides = StoredSides(folder, Split.EVAL, data_version(folder))
    shown = [item.images[0] for item in sides.items([SideRequest(row, Side.QUERY) for row in (0, 1)])]
    assert [image.tobytes() for image in shown] == [picture(number).tobytes() for number in (1, 4)]
