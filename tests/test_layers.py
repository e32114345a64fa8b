"""The architecture as a test: who may import whom, what may be unpickled, what --help may load."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LTDD = ROOT / "python/ltdd"
LTDD_EXT = ROOT / "ltdd_ext"

# Lowest first. A module imports from its own layer or a lower one, and never in a circle.
LAYERS = (
    ("errors", "config", "interruption", "runtime", "progress", "units", "trees"),
    (
        "data",
        "models",
        "losses",
        "muon",
        "metrics",
        "files",
        "checkpoint",
        "packing",
        "distilled",
        "events",
        "tensorboard",
        "artifacts",
        "calibration",
        "observation",
        "targets",
        "drift",
        "inference",
        "chunks",
        "steps",
        "weights",
    ),
    ("stages",),
    (
        "pipeline",
        "evaluations",
        "context",
        "scoring",
        "preflight",
        "provenance",
        "stage_runner",
        "recipe",
        "card",
        "exports",
        "teacher_check",
    ),
    (
        "cli",
        "__main__",
        "commands",
        "completion",
        "ablate",
        "published",
        "reproduce",
        "switches",
        "tables",
        "options",
        "paper",
        "presets",
        "summary",
        "doctor",
        "report",
        "comparison",
        "pages",
        "accuracies",
        "charts",
        "curves",
        "drawing",
        "pictures",
        "verify",
    ),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
REPORT_USERS = {"commands", "pipeline", "report", "comparison"}
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def module_name(path: Path) -> str:
    parts = path.relative_to(LTDD.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(LTDD.rglob("*.py"))}
STAGES = [name for name in MODULES if name.startswith("ltdd.stages.")]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of everything imported anywhere in a file, lazily or not."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def ltdd_modules(tree: ast.AST) -> set[str]:
    """Return the modules of the package that a file imports."""
    found = set()
    for name in imported_names(tree):
        if name.split(".")[0] == "ltdd":
            # `from ltdd.a import b` is the module ltdd.a.b, or something inside ltdd.a.
            found.add(name if name in MODULES else name.rpartition(".")[0] or name)
    return found


def unit(module: str) -> str:
    return module.split(".")[1] if "." in module else "ltdd"


def layer_violations(module: str, tree: ast.AST) -> list[str]:
    mine = unit(module)
    wrong = [
        f"{module} imports {name} relatively, which hides its layer"
        for name in imported_names(tree)
        if name.startswith(".")
    ]
    for target in sorted(ltdd_modules(tree)):
        if target == "ltdd":  # the package itself: only its version is there without an import
            continue
        theirs = unit(target)
        if RANK.get(theirs, 0) > RANK.get(mine, 0):
            wrong.append(f"{module} imports {target} from a higher layer")
        if theirs == mine == "stages" and target not in (module, "ltdd.stages"):
            wrong.append(f"{module} imports another stage, {target}")
        if theirs == "report" and mine not in REPORT_USERS:
            wrong.append(f"{module} imports {target}")
    return wrong


def loads_unsafely(tree: ast.AST) -> list[int]:
    """Return the lines that unpickle, or could."""
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = imported_names(ast.Module([node], []))
            lines += [node.lineno for name in names if name.split(".")[0] in UNPICKLERS]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.load" and options.get("weights_only") != "True":
            lines.append(node.lineno)
        if options.get("allow_pickle", "False") != "False" or called.endswith(".read_pickle"):
            lines.append(node.lineno)
    return lines


def test_every_module_has_a_layer() -> None:
    known = set(RANK) | {"ltdd"}
    assert {unit(name) for name in MODULES} <= known, "say in LAYERS where the new module belongs"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "ltdd"])
def test_imports_point_downwards(module: str) -> None:
    assert layer_violations(module, tree_of(MODULES[module])) == []


def test_imports_have_no_circle() -> None:
    graph = {
        name: ltdd_modules(tree_of(path)) - {name, "ltdd"}
        for name, path in MODULES.items()
        if name != "ltdd"
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises on a circle
    places = [order.index(f"ltdd.{name}") for name in ("errors", "pipeline", "commands.distill")]
    assert places == sorted(places)


def test_the_six_stages_are_there() -> None:
    assert {name.rpartition(".")[2] for name in STAGES} >= {
        "experts",
        "statistics",
        "initialization",
        "recovery",
        "relabeling",
        "evaluation",
    }


@pytest.mark.parametrize("path", sorted(LTDD_EXT.rglob("*.py")), ids=lambda p: p.name)
def test_operators_do_not_know_the_method(path: Path) -> None:
    assert ltdd_modules(tree_of(path)) == set()


SOURCES = sorted(
    path for folder in (LTDD, LTDD_EXT, ROOT / "benchmarks") for path in folder.rglob("*.py")
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_nothing_is_unpickled(path: Path) -> None:
    assert loads_unsafely(tree_of(path)) == []


def included(folder: str) -> str:
    files = [p for p in (ROOT / "csrc" / folder).rglob("*") if p.suffix in (".h", ".cpp", ".cu")]
    return "\n".join(
        line for p in files for line in p.read_text().splitlines() if line.startswith("#include")
    )


def test_shared_maths_is_plain_cpp() -> None:
    assert not re.search(r"torch/|ATen/|c10/|cuda", included("common"))


def test_cpu_and_cuda_do_not_include_each_other() -> None:
    assert "cuda" not in included("cpu").lower()
    assert "cpu/" not in included("cuda")


@pytest.mark.parametrize(
    "command",
    [[], ["distill"], ["evaluate"], ["check-teacher"], ["report"], ["export"], ["card"], ["split"]],
)
def test_help_does_not_import_torch(command: list[str]) -> None:
    program = (
        "import sys\n"
        "from ltdd.cli.main import main\n"
        "try:\n"
        "    status = main(sys.argv[1:])\n"
        "except SystemExit as done:\n"
        "    status = done.code\n"
        "heavy = {'torch', 'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "print('status', status or 0, 'heavy', sorted(heavy))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"], capture_output=True, text=True
    )
    assert result.stdout.splitlines()[-1:] == ["status 0 heavy []"], result.stderr


# --- the checks themselves can fail ---


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("ltdd.stages.recovery", "from ltdd.stages.statistics import x", "another stage"),
        ("ltdd.stages.recovery", "from ltdd.stages import statistics", "another stage"),
        ("ltdd.data.augmentation.student_views", "def f():\n    import ltdd.pipeline", "a higher layer"),
        ("ltdd.engine.runtime", "from ltdd import losses", "a higher layer"),
        ("ltdd.data.augmentation.student_views", "from .augment import crop", "relatively"),
        ("ltdd.engine.provenance", "from ltdd.results.pages.report import write_report", "higher layer"),
        ("ltdd.cli.options", "from ltdd.results.pages.report import write_report", "imports ltdd.results.pages.report"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, said: str) -> None:
    assert any(said in violation for violation in layer_violations(module, ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
    ],
)
def test_an_unsafe_load_is_found(source: str) -> None:
    assert loads_unsafely(ast.parse(source)) == [1]


@pytest.mark.parametrize("source", ["torch.load(path, weights_only=True)", "np.load(path)"])
def test_a_safe_load_is_allowed(source: str) -> None:
    assert loads_unsafely(ast.parse(source)) == []
