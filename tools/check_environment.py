"""Tell in one sentence what an interpreter lacks for the Makefile's verbs; standard library only.

python tools/check_environment.py torch   status 0 if it has the torch of pyproject.toml
python tools/check_environment.py venv    can make the virtual environment and build in it
python tools/check_environment.py run     has all that running and building in place need
python tools/check_environment.py test    has all that `make test` needs
"""

import os
import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PYPROJECT = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text()
NOT_FOR_TESTS = {"build", "clang-format", "pre-commit", "ninja", "pybind11", "datasets"}


def requirements(pattern):
    """Return the strings of the first list in pyproject.toml behind `pattern`."""
    block = re.search(pattern + r"\s*=\s*\[(.*?)\]", PYPROJECT, re.DOTALL)
    return re.findall(r'"([^"]+)"', block.group(1))


def missing(wanted):
    """Return those of the requirements that are absent or too old."""
    return [requirement for requirement in dict.fromkeys(wanted) if not present(requirement)]


def present(requirement):
    name, _, least = requirement.partition(">=")
    try:
        found = version(name.strip())
    except PackageNotFoundError:
        return False
    return numbers(found) >= numbers(least)


def numbers(text):
    return [int(part) for part in re.findall(r"\d+", text.split("+")[0])[:2]]


def complaint(verb):
    """Return what is wrong, or an empty string."""
    python = f"{sys.executable} (Python {sys.version_info[0]}.{sys.version_info[1]})"
    if sys.version_info < (3, 10):  # noqa: UP036 - this file also runs where the package cannot
        return f"expected Python 3.10 or later, got {python}; set PYTHON=/path/to/python"
    if shutil.which(os.environ.get("CXX", "c++").split()[0]) is None:
        return "expected a C++20 compiler called c++ or named by CXX, got none"
    wanted = [] if verb == "venv" else requirements("requires") + requirements("dependencies")
    if verb == "test":
        wanted += [name for name in requirements("dev") if name not in NOT_FOR_TESTS]
    lacking = [name for name in missing(wanted) if name != "ninja"]  # the build is slower without
    if lacking:
        return f"{python} lacks {', '.join(lacking)}; install them there, or leave PYTHON out"
    return ""


def main(verb):
    if verb == "torch":
        return 1 if missing([r for r in requirements("requires") if r.startswith("torch")]) else 0
    problem = complaint(verb)
    if problem:
        print(f"make: {problem}", file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
