"""``ltdd split``."""

from __future__ import annotations

from collections.abc import Sequence

from ltdd.cli.parser import Parser
from ltdd.cli.shared_options import add_cut
from ltdd.config import DistillConfig, Fit, IncompleteClasses

SUMMARY = "Show the classes of a training split, images that occur twice, and its hash."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = Parser(prog="ltdd split", description=SUMMARY)
    parser.add_argument(
        "--data", type=str, default="digits", help="As in ltdd distill: imagefolder:PATH..."
    )
    parser.add_argument(
        "--fit", type=Fit, default="crop", help="Images that are not square: crop, pad, squeeze."
    )
    parser.add_argument(
        "--incomplete-classes",
        type=IncompleteClasses,
        default="fail",
        help="Classes without test images: fail, keep, hold_out; see ltdd distill --help.",
    )
    add_cut(parser)
    options = parser.parse_args(argv)
    from ltdd.data.splitting.long_tail import accuracy_groups
    from ltdd.data.summary import describe
    from ltdd.engine.run_options import RunOptions
    from ltdd.pipeline import load_source

    wanted = DistillConfig(
        data=options.data,
        imbalance_factor=options.imbalance_factor,
        image_size=options.image_size,
        fit=options.fit,
        incomplete_classes=options.incomplete_classes,
    )
    data = load_source(wanted, RunOptions(on_bad_image=options.on_bad_image))
    groups = accuracy_groups(data.counts)
    width = max(5, *(len(name) for name in data.class_names))
    print(f"{'':>4} {'class':<{width}} {'images':>7}  third   shot")
    for label, (name, count) in enumerate(zip(data.class_names, data.counts, strict=True)):
        third = _group_of(label, head=groups.head, medium=groups.medium, tail=groups.tail)
        shot = _group_of(
            label, many=groups.many_shot, medium=groups.medium_shot, few=groups.few_shot
        )
        print(f"{label:>4} {name:<{width}} {count:>7}  {third:<7} {shot}")
    print(f"{'':>4} {'total':<{width}} {sum(data.counts):>7}")
    print(describe(data))


def _group_of(label: int, **groups: Sequence[int]) -> str:
    return next(name for name, members in groups.items() if label in members)
