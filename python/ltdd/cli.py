"""The ``ltdd`` command: distill, evaluate, report, split, verify, doctor.

A command imports what it needs when it runs, so that ``--help`` does not wait for torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from ltdd import interruption
from ltdd.config import Labels
from ltdd.errors import UserError
from ltdd.options import Parser, add_on_bad_image, parse_distill

_LABELS = get_args(Labels)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments without the program's name; None takes those of the process.

    Returns:
        The exit status: 0; 2 for bad input and for failures of disk or memory, 3 for a folder in
        use (one sentence on stderr); what a shell reports for a process that a signal ended (130
        for SIGINT, 143 for SIGTERM).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        with interruption.handled():
            return _dispatch(words)
    except UserError as error:
        return _fail(str(error), error.exit_status)
    except interruption.Interrupted as stop:
        print(f"ltdd: stopped by {stop}; resume with the same command", file=sys.stderr)
        return stop.exit_status
    except BrokenPipeError:  # whoever read our output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        # torch reports exhausted memory as a RuntimeError, in one of these wordings.
        reason = str(error).partition("\n")[0]
        if isinstance(error, MemoryError) or "memory" in reason:
            return _fail(f"out of memory: {reason}")
        raise


def _fail(reason: str, status: int = 2) -> int:
    print(f"ltdd: error: {' '.join(reason.splitlines())}", file=sys.stderr)
    return status


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from ltdd import __version__

        print(f"ltdd {__version__}")
        return 0
    if words[0] not in COMMANDS:
        raise UserError(f"unknown command {words[0]!r}; allowed: {', '.join(COMMANDS)}")
    COMMANDS[words[0]][1](words[1:])
    return 0


def _overview() -> str:
    lines = [
        "usage: ltdd COMMAND [options]",
        "",
        "Dataset distillation for long-tailed image data.",
        "",
        *(f"  {name:<10}{summary}" for name, (summary, _) in COMMANDS.items()),
        "",
        "ltdd COMMAND --help lists the options of a command, ltdd --version the version.",
    ]
    return "\n".join(lines)


def _distill(argv: Sequence[str]) -> None:
    request = parse_distill(argv)
    from ltdd.pipeline import distill
    from ltdd.report import write_report

    results = distill(
        request.config,
        request.out,
        preset=request.preset,
        quiet=request.quiet,
        checkpoint_seconds=request.checkpoint_seconds,
        on_bad_image=request.on_bad_image,
    )
    report = write_report(request.out)
    print(f"\n{accuracy_table(results)}\n\nreport: {report}")


def _evaluate(argv: Sequence[str]) -> None:
    parser = Parser(prog="ltdd evaluate", description=COMMANDS["evaluate"][0])
    parser.add_argument("folder", type=str, help="Folder of a finished run.")
    parser.add_argument(
        "--arch", type=str | None, default=None, help="Architecture of the students; as the run's."
    )
    parser.add_argument(
        "--seeds", type=int | None, default=None, help="Number of students; as the run's."
    )
    parser.add_argument(
        "--labels",
        type=str | None,
        default=None,
        help=f"Labels they learn from: {', '.join(_LABELS)}; as the run's.",
    )
    parser.add_argument("--quiet", action="store_true", help="No progress output.")
    add_on_bad_image(parser)
    options = parser.parse_args(argv)
    if options.labels not in (None, *_LABELS):
        raise UserError(f"expected --labels {', '.join(_LABELS)}; got {options.labels!r}")
    if options.seeds is not None and options.seeds < 1:
        raise UserError(f"expected --seeds 1 or more, got {options.seeds}")
    from ltdd.distilled import read_manifest

    folder = Path(options.folder)
    recipe = read_manifest(folder)["student_recipe"]
    from ltdd.pipeline import evaluate
    from ltdd.report import write_report

    results = evaluate(
        folder,
        options.arch or recipe["student"],
        options.seeds or recipe["seeds"],
        cast(Labels, options.labels or recipe["labels"]),
        options.quiet,
        options.on_bad_image,
    )
    print(f"\n{accuracy_table(results)}\n\nreport: {write_report(folder)}")


def _report(argv: Sequence[str]) -> None:
    parser = Parser(prog="ltdd report", description=COMMANDS["report"][0])
    parser.add_argument("folder", type=str, help="Folder of a finished run.")
    options = parser.parse_args(argv)
    from ltdd.report import write_report

    print(f"report: {write_report(Path(options.folder))}")


def _split(argv: Sequence[str]) -> None:
    parser = Parser(prog="ltdd split", description=COMMANDS["split"][0])
    parser.add_argument(
        "--data", type=str, default="digits", help="As in ltdd distill: digits, imagefolder:PATH..."
    )
    parser.add_argument(
        "--imbalance-factor", type=float | None, default=None, help="n_max / n_min, 1 or more."
    )
    parser.add_argument(
        "--image-size", type=int | None, default=None, help="Side in pixels, 8..224."
    )
    add_on_bad_image(parser)
    options = parser.parse_args(argv)
    from ltdd.config import DistillConfig
    from ltdd.data.datasets import load_data
    from ltdd.data.long_tail import accuracy_groups

    wanted = DistillConfig(  # checks the ranges
        data=options.data,
        imbalance_factor=options.imbalance_factor,
        image_size=options.image_size,
    )
    data = load_data(wanted.data, wanted.imbalance_factor, wanted.image_size, options.on_bad_image)
    for file in data.left_out:
        print(f"left out: {file}", file=sys.stderr)
    groups = accuracy_groups(data.counts)
    width = max(5, *(len(name) for name in data.class_names))
    print(f"{'':>4} {'class':<{width}} {'images':>7}  third   shot")
    for label, (name, count) in enumerate(zip(data.class_names, data.counts, strict=True)):
        third = _group_of(label, head=groups.head, medium=groups.medium, tail=groups.tail)
        shot = _group_of(
            label, many=groups.many_shot, medium=groups.medium_shot, few=groups.few_shot
        )
        print(f"{label:>4} {name:<{width}} {count:>7}  {third:<7} {shot}")
    print(
        f"{'':>4} {'total':<{width}} {sum(data.counts):>7}  (test images: {len(data.test_labels)})"
    )
    print(f"imbalance factor: {max(data.counts) / min(data.counts):.4g}")
    print(f"split sha256: {data.split_sha256}")


def _group_of(label: int, **groups: Sequence[int]) -> str:
    return next(name for name, members in groups.items() if label in members)


def _verify(argv: Sequence[str]) -> None:
    parser = Parser(prog="ltdd verify", description=COMMANDS["verify"][0])
    parser.add_argument("folder", type=str, help="Folder of a run, finished or not.")
    options = parser.parse_args(argv)
    from ltdd.verify import verify

    findings = verify(Path(options.folder))
    for found in findings:
        print(f"{'BAD' if found.problem else 'ok ':<4}{found.name} {found.problem or found.note}")
    bad = [found for found in findings if found.problem]
    if bad:
        raise UserError(
            f"verify: {len(bad)} of {len(findings)} parts of {options.folder} are damaged, "
            f"first {bad[0].name}"
        )


def _doctor(argv: Sequence[str]) -> None:
    parser = Parser(prog="ltdd doctor", description=COMMANDS["doctor"][0])
    parser.parse_args(argv)
    from ltdd.doctor import describe_installation

    print(describe_installation())


COMMANDS: Mapping[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "distill": (
        "Distil a long-tailed image set, evaluate the result and write a report.",
        _distill,
    ),
    "evaluate": ("Train other students on the distilled set of a finished run.", _evaluate),
    "report": ("Write report.html again from the files of a run.", _report),
    "split": ("Show how many images of each class a training split has, and its hash.", _split),
    "verify": ("Check every file of a run: hashes, formats, finite values.", _verify),
    "doctor": ("Show versions, and which backend every compiled operator has.", _doctor),
}
"""Name -> one line about the command, and what runs it."""


def accuracy_table(results: Mapping[str, Any]) -> str:
    """Return accuracies in percent, mean and standard deviation over networks, one row each.

    Args:
        results: the content of ``results.json``.
    """
    rows = [("student", results["student"])]
    rows += list(results.get("baselines", {}).items())
    rows += [(name, results[name]) for name in ("teacher", "observer") if name in results]
    columns = {"accuracy": "overall", "head": "head", "medium": "medium", "tail": "tail"}
    lines = [f"{'accuracy in %':<18}" + "".join(f"{title:>15}" for title in columns.values())]
    for name, scores in rows:
        cells = "".join(f"{_percent(scores.get(column)):>15}" for column in columns)
        lines.append(f"{name:<18}{cells}".rstrip())
    student = results["student"]
    lines.append(
        f"student: {student['arch']} on {student['labels']} labels, {student['epochs']} epochs, "
        f"n = {student['accuracy']['n']}"
    )
    return "\n".join(lines)


def _percent(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    deviation = f" ± {100 * score['std']:4.1f}" if score["n"] > 1 else " " * 7
    return f"{100 * score['mean']:.1f}{deviation}"
