"""What a run goes on with: which settings may differ from those of its checkpoint, and where it stands."""

import math
from collections.abc import Sequence
from typing import Any

from mdepth_fast.systems import Config

__all__ = ["ChangedSettings", "batches_done", "compare_settings", "place_of"]

# What the weights do not depend on, or what only says when to end: taken as given.
_FREE = (
    "run",
    "output",
    "protocol",
    "data.workers",
    "data.skip_bad",
    "data.keep",
    "data.cache",
    "data.val_split",
    "data.val_root",
    "trainer.max_epochs",
    "trainer.max_steps",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.deterministic",
    "trainer.log_every_n_steps",
    "trainer.checkpoint_every_n_steps",
    "trainer.check_val_every_n_epoch",
    "trainer.val_every_n_steps",
    "trainer.monitor",
    "trainer.monitor_mode",
)
# What a checkpoint holds the state of: another value is another run.
_FIXED = (
    "system",
    "seed",
    "model",
    "pose",
    "optimizer.name",
    "optimizer.schedule",
    "optimizer.state",
    "data.name",
    "data.batch_size",
    "data.repeat",
    "trainer.accumulate_grad_batches",
)


class ChangedSettings(ValueError):
    """Settings that are not those of the run to resume; `lines` has one for each."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def compare_settings(config: Config, checkpoint: dict[str, Any], allowed: Sequence[str] = ()) -> str | None:
    """A line that says which settings are not those of the run that wrote the checkpoint, or None.

    Args:
        allowed: settings (`optimizer.lr`) or sections (`optimizer`) that may differ besides those that do not change
            what is learnt.

    Raises:
        ChangedSettings: others differ; a line for each.
    """
    if "mdepth_fast" not in checkpoint:
        raise ValueError("resume: the checkpoint was not written by `mdepth-fast train`")
    # What the run did not know of had its default.
    old, new = _flat(Config.from_dict(checkpoint["mdepth_fast"]["config"]).to_dict()), _flat(config.to_dict())
    for name in allowed:
        if not _within(name, (*old, *new)) and not any(_within(key, [name]) for key in (*old, *new)):
            raise ValueError(f"allow_changed: expected a setting such as optimizer.lr, or a section, got {name!r}")
        if _within(name, _FIXED):
            raise ValueError(f"allow_changed: {name} cannot change within a run; start another one")
    faults, changed = [], []
    for key in {**old, **new}:
        before, now = old.get(key), new.get(key)
        if before == now:
            continue
        expected = f"{key}: expected {before!r}, as the run to resume has it, got {now!r}"
        if _within(key, _FIXED):
            faults.append(expected)
        elif _within(key, _FREE) or _within(key, allowed):
            changed.append(f"{key} {before} -> {now}")
        else:
            faults.append(f"{expected}; --allow-changed {key} takes it")
    if faults:
        raise ChangedSettings(faults)
    return f"resuming with other settings than the run had: {', '.join(changed)}" if changed else None


def _within(key: str, names: Sequence[str]) -> bool:
    """Whether a setting is one of `names` or in a section of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def batches_done(checkpoint: dict[str, Any]) -> int:
    """Training batches whose steps are in the weights of a checkpoint."""
    known = checkpoint["mdepth_fast"].get("batches")
    if known is None:  # of a run from before that was noted, which saved when all that had been handed out were done
        loop = checkpoint["loops"]["fit_loop"]
        loaders = loop["state_dict"].get("combined_loader") or [{}]
        known = loaders[0].get("batches", loop["epoch_loop.batch_progress"]["total"]["processed"])
    return int(known)


def place_of(loop: dict[str, Any], batches: int, steps: int, length: int, accumulate: int, *, over: bool) -> None:
    """Sets Lightning's counters to those of a run that was never resumed, after its step of the last batch.

    Lightning keeps two of each, of the run and of the epoch, and several stages of each; it tells by comparing them
    where a run stopped. After a resumption those of the run lag, so that the next one is taken for another kind of
    stop, and does a step or an epoch too many. All of them follow from how many batches are done.

    Args:
        loop: the state of Lightning's fit loop, which is changed.
        batches: done in the run. steps: of the optimiser, done in the run.
        length: batches of an epoch. accumulate: batches of a step.
        over: the run has no step left; else the counters are those of the moment before the last batch is ticked off,
            so that the end of the epoch is still to come if it was the last one of an epoch.
    """
    epoch, batch = divmod(batches, length)
    if batch == 0 and not over and batches:
        epoch, batch = epoch - 1, length
    last = 0 if over or not batches else 1

    def counters(ready: int, completed: int, **more: int) -> dict[str, int]:
        return {"ready": ready, "completed": completed, **more}

    def all_of(total: int, current: int, open_: int) -> dict[str, Any]:
        return {
            name: counters(count, count - open_, started=count, processed=count)
            for name, count in (("total", total), ("current", current))
        }

    loop["state_dict"]["combined_loader"] = [{"batches": batches}]
    loop["epoch_loop.state_dict"] = {"_batches_that_stepped": max(steps - last, 0)}
    loop["epoch_loop.batch_progress"] = {**all_of(batches, batch, last), "is_last_batch": batch == length}
    of_epoch = math.ceil(batch / accumulate)
    step = {"total": counters(steps, steps), "current": counters(of_epoch, of_epoch)}
    zero = {name: {**count, "started": count["ready"]} for name, count in step.items()}
    loop["epoch_loop.automatic_optimization.optim_progress"] = {"optimizer": {"step": step, "zero_grad": zero}}
    loop["epoch_loop.val_loop.batch_progress"] = {**all_of(0, 0, 0), "is_last_batch": False}
    begun = epoch + 1 if batch and not (over and batch == length) else epoch
    progress = counters(begun, epoch, started=begun, processed=epoch)
    loop["epoch_progress"] = {"total": progress, "current": dict(progress)}
