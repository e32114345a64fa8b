"""The architecture as a test: who may import whom, what may be unpickled, what --help may load."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LTDD = ROOT / "python/ltdd"
LTDD_EXT = ROOT / "ltdd_ext"

# Lowest first. A module imports from its own folder or from a lower layer, and never in a circle.
LAYERS = (
    ("errors",),
    ("config", "recipes"),
    ("engine",),
    ("data",),
    ("models",),
    ("stages",),
    ("results",),
    ("pipeline", "preflight", "forecast"),
    ("studies",),
    ("cli", "__main__"),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
FORMS = ("experts", "statistics", "initialization", "recovery", "relabeling", "evaluation")
COMPOSING = ("ltdd.stages.baselines",)
LARGEST_FOLDER = 16
UNPICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def module_name(path: Path) -> str:
    parts = path.relative_to(LTDD.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(LTDD.rglob("*.py"))}


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


def stage_of(module: str) -> str | None:
    """Return the stage that a module is of, None for what stages share and all others."""
    parts = module.split(".")
    return parts[2] if parts[1:2] == ["stages"] and parts[2:3] and parts[2] in FORMS else None


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
        composes = module in COMPOSING
        if stage_of(target) not in (None, stage_of(module)) and mine == "stages" and not composes:
            wrong.append(f"{module} imports another stage, {target}")
        if target in COMPOSING and mine == "stages":
            wrong.append(f"{module} imports {target}, which is made of stages")
        if target.startswith("ltdd.data.sources.") and module.startswith("ltdd.data.reading."):
            wrong.append(f"{module} imports {target}, which is read by its means")
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
    places = [
        order.index(f"ltdd.{name}") for name in ("errors", "pipeline", "cli.commands.distill")
    ]
    assert places == sorted(places)


def test_the_six_stages_are_there() -> None:
    assert {stage_of(name) for name in MODULES} >= set(FORMS)


def test_no_folder_is_a_hall() -> None:
    folders = {path for path in LTDD.rglob("*") if path.is_dir() and path.name != "__pycache__"}
    sizes = {folder: len(list(folder.glob("*.py"))) for folder in [LTDD, *folders]}
    assert {f: n for f, n in sizes.items() if n > LARGEST_FOLDER + 1} == {}  # and its __init__


def test_the_tree_in_the_readme_is_that_on_the_disk() -> None:
    readme = (LTDD / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```\n(python/ltdd/.*?)```", readme, re.DOTALL)
    assert tree is not None, "python/ltdd/README.md shows the tree"
    shown = re.findall(r"^  (\w[\w.]*/?)  ", tree.group(1), re.MULTILINE)
    there = [p.name + "/" * p.is_dir() for p in LTDD.iterdir() if p.name != "__pycache__"]
    unlisted = ("README.md", "py.typed", "__init__.py", "__main__.py")
    assert sorted(shown) == sorted(name for name in there if name not in unlisted)


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


# --- the checks themselves can fail ---


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("ltdd.stages.recovery", "from ltdd.stages.statistics import x", "another stage"),
        ("ltdd.stages.recovery", "from ltdd.stages import statistics", "another stage"),
        ("ltdd.stages.run", "from ltdd.stages.experts import x", "another stage"),
        ("ltdd.stages.evaluation", "from ltdd.stages.baselines import x", "made of stages"),
        ("ltdd.data.duplicates", "def f():\n    import ltdd.pipeline", "a higher layer"),
        ("ltdd.engine.runtime", "from ltdd.stages import losses", "a higher layer"),
        ("ltdd.data.duplicates", "from .summary import describe", "relatively"),
        ("ltdd.engine.storage.run_folder", "from ltdd.results.card import CARD", "a higher layer"),
        ("ltdd.studies.ablate", "from ltdd.cli.options import Request", "a higher layer"),
        ("ltdd.recipes.rldd", "from ltdd.engine import files", "a higher layer"),
        ("ltdd.data.reading.arrays", "from ltdd.data.sources import npz", "by its means"),
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
