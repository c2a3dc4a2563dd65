"""`staticgrad train MODEL`: one native call a step, a checkpoint an epoch."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from staticgrad.api.program import Program

from . import checkpoint
from .checkpoint import Checkpoint
from .console import InterruptedRun, Result, UsageError, shown
from .model import Model, load_model
from .numbers import count, positive
from .training import Trainer, figures

_EXAMPLES = """\
examples:
  staticgrad train samples/digits_mlp.py --epochs 10
  staticgrad train samples/digits_mlp.py --epochs 20 --resume
  staticgrad train model.py --seed 3 --checkpoint runs/seed3.safetensors --json
  staticgrad train model.py --limit-batches 5 --no-checkpoint

The checkpoint is that of the last whole epoch, after Ctrl-C too; --resume goes on from it exactly,
as if training had not been interrupted.
"""


def add_parser(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "train",
        parents=[common],
        help="train a model",
        description="Trains the model of a Python file and evaluates it after every epoch on its "
        "test_batches: by the metrics of predict, or by the loss if it has none.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a Python file with build()")
    parser.add_argument(
        "--epochs", type=count, metavar="N", help="train up to epoch N (default: the model's)"
    )
    parser.add_argument(
        "--seed", type=count, metavar="S", help="seed of parameters and data order (default: 0)"
    )
    parser.add_argument(
        "--checkpoint", metavar="PATH", help="where to write it (default: MODEL.safetensors here)"
    )
    parser.add_argument("--no-checkpoint", action="store_true", help="write no checkpoint")
    parser.add_argument(
        "--resume", nargs="?", const="", metavar="PATH", help="go on from a checkpoint"
    )
    parser.add_argument(
        "--limit-batches", type=positive, metavar="N", help="take the first N batches of an epoch"
    )
    parser.add_argument(
        "--threads",
        type=positive,
        metavar="N",
        help="threads of a step (default: STATICGRAD_NUM_THREADS, else all cores)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Result:
    """Trains, and says how it went."""
    if options.model.endswith(".sgir"):
        raise UsageError(f"{shown(options.model)}: a graph's text can be run and compiled; to "
                         "train, give a Python file with build()")  # fmt: skip
    target, source = _paths(options)
    if target is not None:
        checkpoint.check_target(target)
    resumed = None if source is None else checkpoint.load(source)
    seed = _seed(options.seed, resumed)
    model = load_model(options.model, seed=seed)
    program = _trainable(model)
    trainer = Trainer(program, seed, target, options.limit_batches, options.threads)
    if resumed is not None:
        trainer.resume(resumed)
    epochs = program.epochs if options.epochs is None else options.epochs
    start = time.perf_counter()
    try:
        trainer.train(epochs)
    except KeyboardInterrupt:
        raise _interrupted(trainer) from None
    return _result(model.name, trainer, start)


def _paths(options: argparse.Namespace) -> tuple[str | None, str | None]:
    """Where checkpoints go, and the one to go on from."""
    stem = os.path.splitext(os.path.basename(options.model))[0]
    if options.no_checkpoint:
        if options.checkpoint is not None:
            raise UsageError("--checkpoint and --no-checkpoint exclude each other")
        target = None
    else:
        target = options.checkpoint or options.resume or f"{stem}.safetensors"
    if options.resume is None:
        return target, None
    return target, options.resume or options.checkpoint or f"{stem}.safetensors"


def _seed(asked: int | None, resumed: Checkpoint | None) -> int:
    if resumed is None:
        return 0 if asked is None else asked
    known = resumed.progress.seed
    if asked is not None and asked != known:
        raise UsageError(
            f"--seed {asked}: the checkpoint {resumed.path} was trained with seed {known}; "
            "leave --seed out to go on"
        )
    return known


def _trainable(model: Model) -> Program:
    program = model.program
    assert program is not None
    if program.train is None:
        raise UsageError(f"{model.path}: build() gives no training graph (sg.Program(train=...))")
    if program.train_batches is None and program.train.inputs:
        names = ", ".join(v.node.attrs["name"] for v in program.train.inputs)
        raise UsageError(f"{model.path}: the training graph has inputs ({names}), but build() "
                         "gives no train_batches")  # fmt: skip
    return program


# --- how it went ----------------------------------------------------------------------------------


def _interrupted(trainer: Trainer) -> InterruptedRun:
    text = f"interrupted in epoch {trainer.done + 1}"
    writer = trainer.writer
    if writer is None or not writer.saved:
        return InterruptedRun(f"{text}; no checkpoint was written")
    return InterruptedRun(
        f"{text}; the checkpoint {shown(writer.path)} holds epoch {writer.saved}, "
        "--resume goes on from there"
    )


def _result(name: str, trainer: Trainer, start: float) -> Result:
    """The summary line and the JSON document's fields."""
    history = trainer.history
    tested = history[-1].test if history else trainer.evaluate()
    loss = history[-1].train["loss"] if history else None
    trained_s = sum(e.seconds for e in history)
    rate = sum(e.samples for e in history) / trained_s if trained_s else None
    seconds = time.perf_counter() - start
    parts = [_epochs(trainer)]
    if history:
        parts += figures({"loss": loss} if tested else history[-1].train)
    parts += [*figures(tested, "test "), f"{seconds:.1f} s"]
    if rate is not None:
        parts.append(f"{rate:,.0f} {trainer.unit}/s")
    writer = trainer.writer
    saved = shown(writer.path) if writer is not None and writer.saved else None
    if saved is not None:
        parts.append(f"checkpoint {saved}")
    fields = {
        "model": name,
        "epochs": trainer.done,
        "seed": trainer.seed,
        "loss": loss,
        "test": tested,
        "seconds": seconds,
        "samples_per_s": rate,
        "resumed_from_epoch": trainer.resumed_from,
        "checkpoint": saved,
        "history": [e.plain() for e in history],
    }
    return Result(fields, f"{name}: {', '.join(parts)}")


def _epochs(trainer: Trainer) -> str:
    count = f"{trainer.done} epoch{'' if trainer.done == 1 else 's'}"
    if trainer.resumed_from is None:
        return count
    more = len(trainer.history)
    return f"{count} ({more} more)" if more else f"already trained for {count}"
