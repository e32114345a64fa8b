"""Run the operator tests on a CPU library built with address and undefined-behaviour sanitizers.

The library and the kernels' own C++ test are built by CMake below build/sanitized. The tests then
import a copy of ``ltdd_ext`` that holds the library, so that the usual build stays as it is. The
first error of a sanitizer ends the process that made it, and with it the run.

Arguments are handed to pytest; without any, tests/ops runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build/sanitized"
# Leaks are those of the interpreter and torch, which free little at their end.
OPTIONS = "detect_leaks=0:detect_stack_use_after_return=1:strict_init_order=1"


def build() -> None:
    """Build the library and put it into a copy of the package."""
    settings = {
        "LTDD_SANITIZE": "ON",
        "CMAKE_BUILD_TYPE": "RelWithDebInfo",
        "Python3_EXECUTABLE": sys.executable,
    }
    cmake = FOLDER / "cmake"
    options = [f"-D{name}={value}" for name, value in settings.items()]
    subprocess.run(["cmake", "-S", ROOT, "-B", cmake, *options], check=True)
    targets = ["--target", "ltdd_cpu", "cpu_kernels_test"]
    jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 1))
    subprocess.run(["cmake", "--build", cmake, "-j", jobs, *targets], check=True)
    package = FOLDER / "ltdd_ext"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "ltdd_ext", package, ignore=shutil.ignore_patterns("lib*.so", "__py*"))
    shutil.copy(cmake / "libltdd_cpu.so", package)


def runtime_libraries() -> str:
    """Return what must be in a process before anything else, as LD_PRELOAD takes it.

    The C++ library is among them because the interpreter itself does not load it, and what
    AddressSanitizer wraps it looks up only once, at the start.
    """
    compiler = os.environ.get("CXX", "c++")
    paths = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"):
        asked = [compiler, f"-print-file-name={name}"]
        path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
        if not os.path.isabs(path):  # the compiler repeats the name of a library it does not have
            raise SystemExit(f"test-sanitized: expected {compiler} to have {name} (gcc does)")
        paths.append(path)
    return " ".join(paths)


def main(arguments: list[str]) -> int:
    """Build, run the C++ test and the operator tests; return pytest's exit status."""
    preload = runtime_libraries()
    build()
    subprocess.run([FOLDER / "cmake/cpu_kernels_test"], check=True)
    environment = os.environ | {
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": OPTIONS,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": f"{FOLDER}{os.pathsep}{ROOT / 'python'}",
        "PYTHONMALLOC": "malloc",  # so that arrays of the interpreter are watched too
    }
    # From another folder, because the root holds the usual build of the package.
    command = [sys.executable, "-m", "pytest", f"--rootdir={ROOT}", f"-c{ROOT}/pyproject.toml"]
    command += arguments or [str(ROOT / "tests/ops")]
    return subprocess.run(command, cwd=FOLDER, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
