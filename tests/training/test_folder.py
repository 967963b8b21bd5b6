"""One owner of a run folder, and what is left in it."""

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_run import tiny_supervised, write_frames

from mdepth_fast.training.folder import find_checkpoint, owning
from mdepth_fast.training.run import train

HOLD = """
import fcntl, json, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
print(json.dumps({"pid": 12345, "host": "elsewhere", "started": "2030-01-01 00:00:00"}), file=file, flush=True)
print("held", flush=True)
time.sleep(100)
"""


def test_a_run_folder_has_one_owner_and_a_killed_one_keeps_nobody_out(tmp_path: Path) -> None:
    lock, left = tmp_path / "run.lock", tmp_path / f".last.{'0123456789abcdef' * 2}.ckpt"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout is not None and owner.stdout.readline() == b"held\n"
            left.write_bytes(b"half")
            with (
                pytest.raises(ValueError, match="process 12345 on elsewhere, since 2030-01-01 00:00:00 trains in this"),
                owning(tmp_path, new=False),
            ):
                pass
            assert left.exists(), "it may be the owner's, who is writing it"
        finally:
            owner.send_signal(signal.SIGKILL)
            owner.wait()
    assert lock.exists()
    with owning(tmp_path, new=False):
        assert not left.exists()
        with pytest.raises(ValueError, match="trains in this folder already"), owning(tmp_path, new=False):
            pass
        # The refusal has left the folder locked, or the next process would say "held".
        with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE) as second:
            try:
                assert second.stdout is not None and not select.select([second.stdout], [], [], 0.7)[0]
            finally:
                second.kill()
        assert json.loads(lock.read_text())["pid"] == os.getpid()  # last: closing the file ends the lock
    assert list(tmp_path.iterdir()) == []


def test_a_failed_start_leaves_no_folder_and_auto_starts_where_nothing_is(tmp_path: Path) -> None:
    root = write_frames(tmp_path / "frames")

    def config(**changes: Any) -> Any:
        options = {"data__val_split": None, "stages": {"coarse": 4}, "trainer__max_epochs": 1, **changes}
        options |= {"trainer__log_every_n_steps": 50}
        return tiny_supervised(root, **{"output": str(tmp_path / "runs"), **options})

    with pytest.raises(ValueError, match=r"batch_size: expected at most the 8 samples"):
        train(config(data__batch_size=100))
    assert list((tmp_path / "runs" / "tiny").iterdir()) == []
    assert find_checkpoint(config(), "auto") is None
    lines: list[str] = []
    result = train(config(), resume="auto", say=lines.append)
    assert result is not None and result.folder.name == "001"

    # Without ground truth the losses are the result; no file is there for the sake of being there.
    assert result.losses.keys() == {"loss"} and "lr" not in result.losses
    assert f"no ground truth: no metrics; at the end loss {result.losses['loss']:.4g}" == result.table()
    record = json.loads((result.folder / "metrics.json").read_text())
    assert record == {"losses": result.losses, "checkpoints": {"last": {"step": 4}}}
    names = {entry.name for entry in result.folder.iterdir() if "tfevents" not in entry.name}
    assert names == {"config.yaml", "last.ckpt", "metrics.json", "panel.png"}

    # What a person reads, with a terminal or without: where the run is, how fast, how long it takes.
    (line,) = (line for line in lines if line.startswith("epoch"))
    assert line.startswith("epoch 1 of 1, step 4 of 4: loss ") and line.endswith(" images/s, 0:00:00 left")
    # A run shorter than the logging interval has a curve all the same, with rate and picture.
    events = EventAccumulator(str(result.folder))
    events.Reload()
    assert {"loss", "lr"} <= {*events.Tags()["scalars"]} and events.Tags()["images"] == ["panel"]
    assert len(events.Scalars("loss")) == 4

    # A folder that is a file, a folder that cannot be written to: named.
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"output: expected a folder for runs, got a file in .*file"):
        train(config(output=str(tmp_path / "file")))
