"""A chunk holds what its rows say, wherever it is made."""

import errno
import gc
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Event

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.core.training.conftest import NUM_PICTURES
from tests.core.training.interrupted import Killed, KilledAfter
from vipolyqwen_core.contract import IMAGE_STORE, MINED, TRAINING, Side, Task
from vipolyqwen_core.corpus.hashing import side_hash
from vipolyqwen_core.corpus.image_store import ImageStore, write_images
from vipolyqwen_core.corpus.tables import arrow_schema, read_arrow, read_stage
from vipolyqwen_core.objectives.pairs import TASKS
from vipolyqwen_core.processing.packing import PackedBatch
from vipolyqwen_core.training import loading
from vipolyqwen_core.training.checkpoints import Checkpoints
from vipolyqwen_core.training.dry_run import describe
from vipolyqwen_core.training.loader_workers import begin_worker, received
from vipolyqwen_core.training.loading import ChunkLoader, ChunkRequest, load_chunks, refuse_other_lengths
from vipolyqwen_core.training.plan import read_plan_index
from vipolyqwen_core.training.rows import TrainingPictures, TrainingRows
from vipolyqwen_core.training.stopping import SIGNALS, StoppedEarly, StopSignal
from vipolyqwen_core.training.train import train


@pytest.fixture
def loader(training_set, tiny_backbone, tiny_processing) -> ChunkLoader:
    return ChunkLoader(training_set, tiny_backbone, tiny_processing, prefix_dropout=0.0, seed=0)


def request(*rows: int, epoch: int = 0, needs_picture: bool = False) -> ChunkRequest:
    return ChunkRequest(0, epoch, np.array(rows, dtype=np.int64), needs_picture)


def segments(packed: PackedBatch) -> list[list[int]]:
    return [part.tolist() for part in packed.input_ids.split(packed.segments.lengths)]


def text_of(loader: ChunkLoader, ids: list[int]) -> str:
    return loader.processor.tokenizer.decode(ids, skip_special_tokens=True)


def test_rows_come_in_the_order_asked_for_across_record_batches(training_set):
    rows = TrainingRows(training_set / "train.arrow")
    wanted = [40, 3, 17, 3, 29]
    assert len(rows) == 48
    assert [row["query"].split()[1].rstrip(":") for row in rows.take(wanted)] == [str(row) for row in wanted]
    assert rows.take([]) == []
    with pytest.raises(ValueError, match="has 48 rows, row 48 was asked for"):
        rows.take([48])


def test_a_chunk_holds_queries_then_targets_then_hard_negatives(loader):
    chunk = loader[request(0, 1, 2, 3, 4)]
    assert [TASKS[code] for code in chunk.keys.task] == list(Task)
    texts = [text_of(loader, ids) for ids in segments(chunk.packed)]
    assert len(texts) == 2 * 5 + 2
    assert all(f"question {row}:" in texts[row] for row in range(5))
    assert all(f"answer {row}:" in texts[5 + row] for row in range(5))
    assert texts[10].strip().startswith("not ")
    assert texts[11].strip() == "wrong 2"
    assert chunk.keys.negative_pair.tolist() == [2, 2]
    negative = loader.rows.take([2])[0]["negatives"][1]
    assert chunk.keys.negative_hash[1].item() % 2**64 == side_hash(negative["text"])
    assert chunk.keys.score.isnan().tolist() == [False, True, True, True, True]


def test_a_hard_negative_of_a_row_shows_its_pictures_and_is_known_by_them(loader, training_set, tmp_path):
    copy = shutil.copytree(training_set, tmp_path / "set")
    rows = pa.ipc.open_file(training_set / "train.arrow").read_all().to_pylist()
    image, number = rows[3]["query_images"][0], rows[3]["query_image_rows"][0]
    rows[2] |= {"negatives": [{"text": "<image>not", "images": [image]}], "negative_image_rows": [[number]]}
    table = pa.Table.from_pylist(rows, schema=arrow_schema(TRAINING))
    with pa.ipc.new_file(copy / "train.arrow", table.schema) as writer:
        writer.write_table(table)
    _, *others = loader.arguments
    chunk = ChunkLoader(copy, *others)[request(2, 3)]
    assert chunk.keys.negative_hash.tolist()[0] % 2**64 == side_hash("<image>not", [image])
    pictures = chunk.packed.pictures
    assert pictures is not None
    shown = pictures.patches.split(pictures.segments.lengths)
    assert len(shown) == len(rows[2]["query_images"]) + len(rows[3]["query_images"]) + 1
    assert torch.equal(shown[-1], shown[len(rows[2]["query_images"])])


def test_a_chunk_knows_the_pairs_and_hard_negatives_of_every_rank(loader):
    by_rank = tuple(np.array(rows, dtype=np.int64) for rows in ([12, 0, 22], [], [2, 7]))
    for rows in by_rank:
        chunk = loader[replace(request(*rows), rows_by_rank=by_rank)]
        assert chunk.sizes == ((3, 4), (0, 0), (2, 2))
        assert (chunk.keys.num_pairs, chunk.keys.num_negatives) in chunk.sizes


def test_the_history_of_a_dialogue_stands_in_its_query(loader):
    query, target = segments(loader[request(1)].packed)
    text = text_of(loader, query)
    assert text.index("hello") < text.index("what is it?") < text.index("question 1:")
    assert "hello" not in text_of(loader, target)


def test_text_pairs_have_the_prefix_on_both_sides_and_others_on_the_query(loader):
    prefixes = loader.processor.prompt.prefixes
    for row, task in enumerate(Task):
        query, target, *negatives = segments(loader[request(row)].packed)
        assert query[0] == prefixes[task]
        assert (target[0] == prefixes[task]) == (task is Task.TEXT_PAIR)
        assert all(negative[0] != prefixes[task] for negative in negatives)


def test_a_dropped_prefix_is_dropped_on_both_sides_and_returns_in_other_epochs(loader):
    ids = set(loader.processor.prompt.prefixes.values())
    sometimes = ChunkLoader(*replace_dropout(loader, 0.5))
    seen = []
    for epoch in range(6):
        query, target = segments(sometimes[request(0, epoch=epoch)].packed)
        assert (query[0] in ids) == (target[0] in ids)
        seen.append(query[0] in ids)
    assert set(seen) == {True, False}
    never = ChunkLoader(*replace_dropout(loader, 1.0))
    assert not ids & set(never[request(0, 1, 2, 3, 4)].packed.input_ids.tolist())


def replace_dropout(loader: ChunkLoader, share: float) -> tuple[object, ...]:
    training_set, backbone, processing, _, *others = loader.arguments
    return training_set, backbone, processing, share, *others


def test_sizes_are_those_of_the_index(loader, training_set):
    index = read_plan_index(training_set / "index.parquet")
    for row in range(len(index)):
        chunk = loader[request(row)]
        assert chunk.packed.num_tokens == index.tokens[row]
        assert chunk.packed.num_patches == index.patches[row]
        assert chunk.filler_tokens == 0


def test_a_rank_without_pairs_still_has_something_to_run(loader):
    chunk = loader[request(needs_picture=True)]
    assert chunk.keys.num_pairs == 0
    assert chunk.packed.num_items == 1
    assert chunk.packed.pictures is not None
    assert chunk.filler_tokens == chunk.packed.num_tokens


def test_text_gets_a_dummy_picture_only_where_another_rank_has_one(loader):
    assert loader[request(0, 1)].packed.pictures is None
    assert loader[request(0, 1, needs_picture=True)].packed.num_patches == 4


def test_workers_change_nothing(loader):
    requests = [request(0, 1, 2), request(3, 4, needs_picture=True), request(7)]
    here = [loader[one] for one in requests]
    there = list(load_chunks(loader, requests, num_workers=1, pin_memory=False))
    assert len(there) == 3
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.packed.input_ids, other.packed.input_ids)
        assert torch.equal(one.packed.position_ids, other.packed.position_ids)
        assert torch.equal(one.keys.query_hash, other.keys.query_hash)
        if one.packed.pictures is not None:
            assert torch.equal(one.packed.pictures.patches, other.packed.pictures.patches)


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_that_are_told_to_stop_while_they_start_go_on(loader, number):
    """The launcher of several ranks tells all processes of a run at once, as many a service manager does."""
    others = multiprocessing.active_children()
    with closing(load_chunks(loader, [request(0)], num_workers=1, pin_memory=False)) as chunks:
        (worker,) = (process for process in multiprocessing.active_children() if process not in others)
        assert worker.pid is not None
        os.kill(worker.pid, number)
        assert len(list(chunks)) == 1
    assert not {number} & signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_chunk_that_is_held_keeps_no_file_open(loader):
    def num_open() -> int:
        return psutil.Process().num_fds()

    with closing(load_chunks(loader, [request(0, 1)] * 12, num_workers=1, pin_memory=False)) as chunks:
        held, before = [next(chunks)], num_open()
        held += islice(chunks, 10)
        assert num_open() < before + len(held) == before + 11


def test_a_chunk_that_cannot_be_handed_over_is_an_error(loader, tmp_path, monkeypatch):
    # where processes meet; full shared memory is told in the same way
    monkeypatch.setitem(multiprocessing.current_process()._config, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(OSError, match=r"could not hand over a chunk \(.*No such file.*\). It wants room in"):
        list(load_chunks(loader, [request(0), request(1)], num_workers=1, pin_memory=False))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of torch, half made
def test_workers_that_cannot_all_be_started_leave_none_behind(loader, monkeypatch):
    """This process would wait for them at its end, which they take for a signal to go on for a while."""
    started, start = [], SpawnProcess.start

    def start_one(process: SpawnProcess) -> None:
        if started:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        started.append(process)
        start(process)

    monkeypatch.setattr(SpawnProcess, "start", start_one)
    with pytest.raises(OSError, match=r"could not be started \(.*unavailable\). They want memory") as failure:
        list(load_chunks(loader, [request(0)], num_workers=2, pin_memory=False))
    assert len(started) == 1
    assert not multiprocessing.active_children(), failure
    del failure
    gc.collect()  # torch complains now, and not in another test


def test_workers_leave_when_training_fails_or_one_of_them_does(make_run, training_set, tiny_backbone):
    run = make_run(training={"loader_workers": 1})
    with pytest.raises(Killed) as failure:  # its traceback has references to all that there was
        train(run, KilledAfter(1))
    assert not multiprocessing.active_children(), failure
    narrow = ChunkLoader(training_set, tiny_backbone, replace(run.recipe.processing, max_tokens=4), 0.0, 0)
    with pytest.raises(ValueError, match="sample") as failure:
        list(load_chunks(narrow, [request(3)], num_workers=1, pin_memory=False))
    assert not multiprocessing.active_children(), failure


def test_a_checkpoint_in_progress_is_written_before_the_death_of_a_worker_is_told(make_run, monkeypatch):
    """In the middle of its exchanges a rank that leaves them would have the others wait for ever."""
    run, save = make_run(training={"loader_workers": 1}), Checkpoints.save

    def saved_beside_a_dying_worker(*given):
        (worker,) = multiprocessing.active_children()
        worker.kill()
        while psutil.Process(worker.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        return save(*given)

    monkeypatch.setattr(Checkpoints, "save", saved_beside_a_dying_worker)
    with pytest.raises(RuntimeError, match="killed by signal"):
        train(run, StopSignal())
    assert (run.output / "checkpoints" / "step_2" / "state.json").is_file()


def test_a_worker_needs_no_model_and_gets_no_index(loader):
    assert len(pickle.dumps(loader)) < 2000
    code = "import sys, vipolyqwen_core.training.loading; print([n for n in sys.modules if 'qwen2_vl' in n])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_missing_picture_is_an_error_that_names_it(loader, training_set, tmp_path):
    copy = shutil.copytree(training_set, tmp_path / "copy")
    pinned = {"shop": {"path": str(copy / "shop.lance"), "version": 1}}
    (copy / "images.json").write_text(json.dumps(pinned), encoding="utf-8")
    pictures = TrainingPictures(copy)
    pictures.check()
    with pytest.raises(ValueError, match=r"pictures \[99\] of source 'shop' cannot be read"):
        pictures.read([("shop", 99)])
    for file in (copy / "shop.lance" / "data").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="of source 'shop' cannot be read from"):
        TrainingPictures(copy).read([("shop", 0)])
    shutil.rmtree(copy / "shop.lance")
    with pytest.raises(ValueError, match="does not exist"):
        TrainingPictures(copy).check()
    with pytest.raises(ValueError, match="pins no image store for 'else'"):
        pictures.read([("else", 0)])


def test_data_that_were_replaced_before_a_worker_opens_them_are_refused(loader, training_set, tmp_path):
    copy = shutil.copytree(training_set, tmp_path / "set")
    _, *others, _ = loader.arguments
    early, late = (pickle.loads(pickle.dumps(ChunkLoader(copy, *others))) for _ in range(2))
    before = early[request(3)]
    summary = read_stage(copy)
    replace(summary, data_version="data2").write(copy)
    assert torch.equal(early[request(3)].packed.input_ids, before.packed.input_ids), "its files are open"
    with pytest.raises(ValueError, match="was replaced while a run trained on it"):
        late[request(3)]


def test_hard_negatives_that_were_mined_anew_before_a_worker_opens_them_are_refused(loader, tmp_path):
    training_set, *others, _, _ = loader.arguments
    num_rows = len(TrainingRows(training_set / "train.arrow"))
    lists: list[list[int]] = [[]] * num_rows
    columns = {
        "negatives": lists,
        "similarities": lists,
        **dict.fromkeys(("tokens", "patches", "images"), [0] * num_rows),
    }
    table = pa.table(columns, schema=arrow_schema(MINED))
    with pa.ipc.new_file(tmp_path / "mined.arrow", table.schema) as writer:
        writer.write_table(table)
    summary = read_stage(training_set)
    replace(summary, data_version="mined1").write(tmp_path)
    early, late = (pickle.loads(pickle.dumps(ChunkLoader(training_set, *others, tmp_path))) for _ in range(2))
    early[request(3)]
    replace(summary, data_version="mined2").write(tmp_path)
    with pytest.raises(ValueError, match="was replaced while a run trained on it"):
        late[request(3)]


def test_a_store_of_pictures_that_is_gone_is_told_before_the_first_chunk_with_a_picture(
    loader, training_set, tmp_path
):
    copy = shutil.copytree(training_set, tmp_path / "set")
    pinned = {"shop": {"path": str(tmp_path / "gone.lance"), "version": 1}}
    (copy / "images.json").write_text(json.dumps(pinned), encoding="utf-8")
    _, *others, _ = loader.arguments
    with pytest.raises(ValueError, match="does not exist"):
        ChunkLoader(copy, *others)[request()]


def test_pictures_are_those_of_the_files_that_are_open(loader, training_set, tmp_path):
    copy = shutil.copytree(training_set, tmp_path / "set")
    _, *others, _ = loader.arguments
    early = ChunkLoader(copy, *others)
    early[request()]  # no pair, and so no picture: yet all is open by now
    (copy / "images.json").write_text("{}", encoding="utf-8")
    early[request(3)]


@pytest.mark.parametrize(
    ("row", "side"), [(3, "query"), (7, "target"), (1, "hard negative 2"), (7, "hard negative 3")]
)
@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (0, "1 pictures for 2 <image> placeholders"),
        (99, r"pictures \[99\] of source 'shop' cannot be read"),
        (NUM_PICTURES, r"picture 'cut.png' of source 'shop', row 12 of .*, cannot be decoded"),
    ],
)
def test_a_side_that_cannot_be_encoded_is_named_with_its_sample(
    loader, training_set, tmp_path, row, side, image, reason
):
    copy = shutil.copytree(training_set, tmp_path / "set")
    table = read_arrow(copy / "train.arrow")
    rows = table.to_pylist()
    spoilt = rows[row]
    for number, count in {1: 2, 3: 0, 7: 3}.items():
        rows[number]["negatives"] = [{"text": f"wrong {place}", "images": []} for place in range(count)]
        rows[number]["negative_image_rows"] = [[] for _ in range(count)]
    if side in list(Side):
        spoilt[side], spoilt[f"{side}_image_rows"] = "<image><image>", [image]
    else:
        place = int(side[-1]) - 1
        spoilt["negatives"][place]["text"], spoilt["negative_image_rows"][place] = "<image><image>", [image]
    with pa.ipc.new_file(tmp_path / "train.arrow", table.schema) as writer:
        writer.write_table(pa.Table.from_pylist(rows, table.schema))
    (tmp_path / "train.arrow").replace(copy / "train.arrow")
    stored = ImageStore(copy / "shop.lance").table([column.name for column in IMAGE_STORE]).to_pylist()
    cut = {**stored[0], "bytes": stored[0]["bytes"][:60], "origin": "cut.png"}
    store = write_images(copy / "shop.lance", [*stored, cut])
    (copy / "images.json").write_text(json.dumps({"shop": store.pin}), encoding="utf-8")
    _, *others, _ = loader.arguments
    with pytest.raises(ValueError, match=f"^step 0, sample {spoilt['sample_id']}, {side}: {reason}"):
        ChunkLoader(copy, *others)[request(1, 3, 7)]


def test_pairs_measured_for_another_processing_or_backbone_are_not_trained_on(make_run, monkeypatch):
    run = make_run()
    index = read_plan_index(run.training_set / "index.parquet")
    refuse_other_lengths(run, index)
    with_pictures = make_run(processing={"min_pixels": 100 * 28 * 28, "max_pixels": 100 * 28 * 28})
    with pytest.raises(ValueError, match=r"was measured for another .*: sample \w{32} has \d+ tokens there"):
        refuse_other_lengths(with_pictures, index)
    table = TrainingRows(run.training_set / "train.arrow", ("query_tokens",))
    (longest,) = table.take([table.largest("query_tokens")])
    shorter = make_run(processing={"max_tokens": longest["query_tokens"] - 1})  # this row alone shows it
    monkeypatch.setattr(loading, "MEASURED_PAIRS", 1)
    with pytest.raises(ValueError, match="was measured for another"):
        refuse_other_lengths(shorter, index)
    cut = make_run(processing={"max_tokens": 4})
    for use in (describe, lambda run: train(run, StopSignal())):
        with pytest.raises(ValueError, match="was measured for another"):
            use(cut)


def test_an_index_of_another_training_set_is_not_planned_with(make_run, training_set, tmp_path):
    run = replace(make_run(), training_set=shutil.copytree(training_set, tmp_path / "set"))
    index = pq.read_table(training_set / "index.parquet")
    for other in (index.slice(1), index.take([*range(1, len(index)), 0])):
        pq.write_table(other, tmp_path / "set" / "index.parquet")
        with pytest.raises(ValueError, match=r"index\.parquet and train\.arrow are not of one"):
            train(run, StopSignal())


def test_targets_may_be_mined_from_rows_with_hard_negatives_of_their_own(make_run, tmp_path):
    run = make_run()
    rows = TrainingRows(run.training_set / "train.arrow", ("negatives", "target_tokens"))
    everything = rows.take(range(len(rows)))
    chosen = [[2] if number % 5 == 2 and number != 2 else [] for number in range(len(rows))]
    assert everything[2]["negatives"], "its tokens count in those of its target"
    added = [sum(everything[row]["target_tokens"] for row in of_row) for of_row in chosen]
    nothing = [0] * len(rows)
    columns = {"negatives": chosen, "similarities": [[0.5] * len(of_row) for of_row in chosen],
               "tokens": added, "patches": nothing, "images": nothing}  # fmt: skip
    table = pa.table(columns, schema=arrow_schema(MINED))
    with pa.ipc.new_file(tmp_path / "mined.arrow", table.schema) as writer:
        writer.write_table(table)
    index = read_plan_index(run.training_set / "index.parquet", tmp_path)
    refuse_other_lengths(replace(run, hard_negatives=tmp_path), index)


def hang(has_begun: Event) -> None:
    """A worker that hears of nothing, as where the system lets it start no thread."""
    begin_worker(0)
    has_begun.set()
    time.sleep(600)


class Hanging:
    """Chunks of a worker that hangs; it is told to leave as DataLoader tells it."""

    def __init__(self, worker: SpawnProcess) -> None:
        self._workers = [worker]

    def __iter__(self) -> Iterator[str]:
        yield "chunk"

    def _shutdown_workers(self) -> None:
        for worker in self._workers:
            worker.terminate()


def test_a_worker_that_hangs_does_not_keep_the_training_from_leaving() -> None:
    context = multiprocessing.get_context("spawn")
    has_begun = context.Event()
    worker = context.Process(target=hang, args=(has_begun,), daemon=True)
    worker.start()
    try:
        assert has_begun.wait(120)
        with closing(received(Hanging(worker), are_pinned=True)) as chunks:
            next(chunks)
        worker.join(60)
        assert worker.exitcode == -signal.SIGKILL
    finally:
        worker.kill()


class AbortedAtTheEnd(Hanging):
    """Chunks of a worker that was still sending one when it was told to leave, and dies of that."""

    def _shutdown_workers(self) -> None:
        super()._shutdown_workers()
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Aborted.")


def test_how_a_worker_ends_that_was_told_to_leave_is_no_error() -> None:
    """What its user says must not be lost for it: that the run was stopped, or what failed."""
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,), daemon=True)

    def stop() -> None:
        with closing(received(AbortedAtTheEnd(worker), are_pinned=True)) as chunks:
            next(chunks)
            raise StoppedEarly

    worker.start()
    try:
        with pytest.raises(StoppedEarly):
            stop()
        worker.join(60)
        assert worker.exitcode is not None
    finally:
        worker.kill()
