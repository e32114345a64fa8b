"""``ltdd store``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from ltdd.cli.parser import Parser
from ltdd.cli.shared_options import add_store, chosen_store
from ltdd.config.settings import Weight
from ltdd.errors import UserError

SUMMARY = "List the results of stages that runs share, or remove unused ones."


def run(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = Parser(prog="ltdd store", description=SUMMARY)
    add_store(parser)
    parser.add_argument(
        "--prune",
        type=Weight | None,
        default=None,
        help="Keep so many gigabytes of what no run folder holds any more; 0 keeps nothing of it.",
    )
    parser.add_argument(
        "--unused-days",
        type=Weight | None,
        default=None,
        help="Remove what no run has taken for so many days.",
    )
    options = parser.parse_args(argv)
    store = chosen_store(options.store)
    if store is None:
        raise UserError(
            "expected a store of stage results, got none: LTDD_STORE or --store is none"
        )
    from ltdd.engine.storage.stage_store import entries, limit_bytes, prune, remove_unused
    from ltdd.engine.watching.units import size

    removed = []
    if options.unused_days is not None:
        since = datetime.now(timezone.utc) - timedelta(days=options.unused_days)
        removed += remove_unused(store, since)
    if options.prune is not None:
        removed += prune(store, int(options.prune * 1e9))
    if removed:
        print(f"removed: {len(removed)} files, {size(sum(entry.size for entry in removed))}")
    kept = entries(store)
    print(f"{'stage':<16}{'files':>7}{'size':>12}{'only here':>12}  last used")
    for stage in [*sorted({entry.stage for entry in kept}), "all"]:
        own = [entry for entry in kept if stage in (entry.stage, "all")]
        sizes = [size(sum(e.size for e in own if e.alone or every)) for every in (True, False)]
        used = max((entry.used.date().isoformat() for entry in own), default="-")
        print(f"{stage:<16}{len(own):>7}{sizes[0]:>12}{sizes[1]:>12}  {used}")
    print(
        f"{store}: what is only here may take {size(limit_bytes())} (LTDD_STORE_GB); what was used "
        "longest ago goes first"
    )
