"""Build the two packages and the compiled operators.

Three shared objects come out of this file:

* ``ltdd_ext/libltdd_cpu.so``: schemas and CPU kernels, on the LibTorch stable ABI: one build serves
  every torch from the target version on, and every Python.
* ``ltdd_ext/libltdd_cuda.so``: the CUDA kernels, when nvcc and a CUDA torch of the same major
  version are there. ``LTDD_CUDA=1`` makes anything else an error, ``LTDD_CUDA=0`` leaves it out.
* ``ltdd_ext/_build``: a pybind11 module that says what the others were built with.

A build in place or an editable one stays where it is: it compiles for the GPUs that are there, and
nothing for CUDA where there is none. A wheel, which may go anywhere, and ``LTDD_CUDA=1`` take every
architecture of ``DEFAULT_ARCH_LIST``. ``TORCH_CUDA_ARCH_LIST`` always wins; it, ``MAX_JOBS`` and
``DEBUG`` mean what they mean elsewhere.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "2.11"
TORCH_TARGET_VERSION = "0x020b000000000000"
DEFAULT_ARCH_LIST = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
CUDA_LIBRARY = "ltdd_ext.libltdd_cuda"
DEBUG = os.environ.get("DEBUG", "0") not in ("", "0")


def nvcc_home() -> Path | None:
    """Ask nvcc where its toolkit lies; the nvcc on PATH may be a wrapper in some other folder."""
    root = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = str(Path(root, "bin", "nvcc")) if root else shutil.which("nvcc")
    if nvcc is None or not Path(nvcc).exists():
        return None
    dry_run = subprocess.run(
        [nvcc, "--dryrun", "none.cu"], capture_output=True, text=True, check=False
    )
    top = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr + dry_run.stdout, re.MULTILINE)
    return Path(top.group(1)).resolve() if top else Path(nvcc).resolve().parent.parent


CUDA_HOME = nvcc_home()
if CUDA_HOME is not None:  # torch reads it once, when cpp_extension is imported
    os.environ["CUDA_HOME"] = str(CUDA_HOME)

import torch  # noqa: E402
from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths  # noqa: E402


@dataclass(frozen=True)
class CudaPlan:
    """Whether the CUDA library is built, and the one reason."""

    build: bool
    reason: str
    version: str = ""
    arch_list: str = ""


def nvcc_version(home: Path) -> str:
    out = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True)
    found = re.search(r"release (\d+\.\d+)", out.stdout)
    return found.group(1) if found else ""


def known_archs(home: Path) -> list[tuple[int, int]]:
    """Return the architectures that this nvcc compiles for, in order."""
    out = subprocess.run([home / "bin" / "nvcc", "--list-gpu-arch"], capture_output=True, text=True)
    found = {divmod(int(digits), 10) for digits in re.findall(r"compute_(\d+)", out.stdout)}
    return sorted(found)


def default_archs(known: list[tuple[int, int]]) -> str:
    """Leave out of our own list what nvcc does not know."""
    names = {f"{major}.{minor}" for major, minor in known}
    return ";".join(
        arch for arch in DEFAULT_ARCH_LIST.split(";") if arch.removesuffix("+PTX") in names
    )


def gpus_here() -> list[tuple[int, int]]:
    """Return the architectures of the GPUs that torch can use, each once."""
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    return sorted({torch.cuda.get_device_capability(index) for index in range(count)})


def archs_here(known: list[tuple[int, int]]) -> str:
    """Serve the GPUs that are here, newer ones than nvcc knows by what they compile themselves."""
    archs = []
    for gpu in gpus_here():
        older = [arch for arch in known if arch <= gpu]
        if older:
            major, minor = older[-1]
            archs.append(f"{major}.{minor}" + ("" if older[-1] == gpu else "+PTX"))
    return ";".join(archs)


def choose_archs(home: Path, everything: bool) -> tuple[str, str]:
    """Return the list of architectures and where it comes from."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    if asked:
        return asked, "TORCH_CUDA_ARCH_LIST"
    known = known_archs(home)
    if everything:
        return default_archs(known), "default list"
    return archs_here(known), "of the GPUs here"


def plan_cuda() -> CudaPlan:
    """Decide on the CUDA library from the environment, nvcc, torch and the GPUs that are here."""
    switch = os.environ.get("LTDD_CUDA", "")
    if switch not in ("", "0", "1"):
        raise SystemExit(f"setup: expected LTDD_CUDA 0, 1 or unset, got {switch}")
    if switch == "0":
        return CudaPlan(False, "LTDD_CUDA=0")
    sources = cuda_sources()
    if torch.version.cuda is None:
        plan = CudaPlan(False, f"torch {torch.__version__} is built without CUDA")
    elif CUDA_HOME is None:
        plan = CudaPlan(False, "nvcc was not found on PATH, in CUDA_HOME or in CUDA_PATH")
    elif nvcc_version(CUDA_HOME).split(".")[0] != torch.version.cuda.split(".")[0]:
        plan = CudaPlan(
            False, f"nvcc {nvcc_version(CUDA_HOME)} does not fit torch's CUDA {torch.version.cuda}"
        )
    elif not sources:
        plan = CudaPlan(False, "csrc/cuda holds no source")
    else:
        archs, why = choose_archs(CUDA_HOME, everything=switch == "1" or "bdist_wheel" in sys.argv)
        plan = CudaPlan(
            bool(archs),
            f"nvcc {nvcc_version(CUDA_HOME)} in {CUDA_HOME}, torch CUDA {torch.version.cuda}, "
            f"architectures {archs} ({why})"
            if archs
            else "no GPU here that nvcc can compile for; LTDD_CUDA=1 builds it for every "
            "architecture, TORCH_CUDA_ARCH_LIST=9.0 for one",
            nvcc_version(CUDA_HOME) if archs else "",
            archs,
        )
    if switch == "1" and not plan.build:
        raise SystemExit(f"setup: LTDD_CUDA=1 asks for the CUDA library, but {plan.reason}")
    return plan


def sources_in(folder: str, *suffixes: str) -> list[str]:
    """List sources relative to this file, in a fixed order."""
    found = [p for s in suffixes for p in glob.glob(f"csrc/{folder}/*{s}", root_dir=ROOT)]
    return sorted(found)


def cuda_sources() -> list[str]:
    return sources_in("cuda", ".cu", ".cpp")


CXX_FLAGS = [
    "-std=c++20",
    f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    *(["-O0", "-g"] if DEBUG else ["-O3", "-g0"]),
]
# Contraction is left to the compiler per instruction set; NaN and Inf must keep their meaning, so
# no -ffast-math. -fno-math-errno and -fno-trapping-math change no value.
CPU_FLAGS = [*CXX_FLAGS, "-fno-math-errno", "-fno-trapping-math"]


def cpu_library() -> Extension:
    return Extension(
        "ltdd_ext.libltdd_cpu",
        ["csrc/library.cpp", *sources_in("cpu", ".cpp")],
        include_dirs=[str(ROOT / "csrc"), *include_paths()],
        library_dirs=library_paths(),
        libraries=["c10", "torch", "torch_cpu"],
        extra_compile_args={"cxx": CPU_FLAGS},
    )


def cuda_library(arch_list: str) -> Extension:
    assert CUDA_HOME is not None
    os.environ["TORCH_CUDA_ARCH_LIST"] = arch_list
    nvcc_flags = ["-std=c++20", "--expt-relaxed-constexpr", "-Xptxas", "-v"]
    nvcc_flags += ["-O0", "-g", "-lineinfo"] if DEBUG else ["-O3"]
    return Extension(
        CUDA_LIBRARY,
        cuda_sources(),
        include_dirs=[str(ROOT / "csrc"), *include_paths(), str(CUDA_HOME / "include")],
        library_dirs=[*library_paths(), str(CUDA_HOME / "lib64")],
        # cudart is linked statically: the toolkit that compiled need not be there at run time.
        libraries=["c10", "torch", "torch_cpu", "torch_cuda", "cudart_static", "dl", "rt"],
        extra_compile_args={"cxx": [*CXX_FLAGS, "-DUSE_CUDA"], "nvcc": nvcc_flags},
    )


def build_module(cuda: CudaPlan) -> Extension:
    strings = {
        "LTDD_TORCH_VERSION": torch.__version__,
        "LTDD_TORCH_TARGET": TORCH_TARGET,
        "LTDD_CUDA_VERSION": cuda.version,
        "LTDD_CUDA_ARCHITECTURES": cuda.arch_list,
        "LTDD_CUDA_REASON": cuda.reason,
    }
    macros = [(name, '"{}"'.format(value.replace('"', ""))) for name, value in strings.items()]
    return Extension(
        "ltdd_ext._build",
        ["csrc/module.cpp"],
        include_dirs=include_paths(),  # torch ships the pybind11 headers it was built with
        define_macros=macros,
        extra_compile_args={"cxx": CXX_FLAGS},
    )


class Build(BuildExtension):
    """BuildExtension with plain names for the operator libraries and atomic in-place copies."""

    def run(self) -> None:
        super().run()
        if self.inplace and all(ext.name != CUDA_LIBRARY for ext in self.extensions):
            # What an earlier build left there knows other operators, or other arguments of them.
            ROOT.joinpath(*CUDA_LIBRARY.split(".")).with_suffix(".so").unlink(missing_ok=True)

    def get_ext_filename(self, fullname: str) -> str:
        package, _, stem = fullname.rpartition(".")
        if stem.startswith("libltdd_"):  # loaded by torch.ops.load_library, not imported
            return os.path.join(*package.split("."), stem + ".so")
        return super().get_ext_filename(fullname)

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return [] if "libltdd_" in ext.name else super().get_export_symbols(ext)

    def copy_file(self, src: str, dst: str, *args: object, **kwargs: object) -> tuple[str, bool]:
        """Replace a library in one step: a running process may have the old one mapped."""
        if not str(dst).endswith(".so"):
            return super().copy_file(src, dst, *args, **kwargs)
        target = Path(dst)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as handle:
            handle.write(Path(src).read_bytes())
        os.chmod(handle.name, 0o755)
        os.replace(handle.name, target)
        return str(target), True


def main() -> None:
    cuda = plan_cuda()
    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    # Late versions of torch call ccache where there is one; so it knows sources in another folder.
    os.environ.setdefault("CCACHE_BASEDIR", str(ROOT))
    print(
        f"ltdd: building the CPU library (torch {torch.__version__}, stable ABI {TORCH_TARGET}) "
        + (f"and the CUDA library ({cuda.reason})" if cuda.build else "")
        + ("" if cuda.build else f"without the CUDA library: {cuda.reason}"),
        flush=True,
    )
    extensions = [cpu_library(), build_module(cuda)]
    if cuda.build:
        extensions.append(cuda_library(cuda.arch_list))
    setup(
        packages=["ltdd_ext", *find_packages("python")],
        package_dir={"ltdd_ext": "ltdd_ext", "ltdd": "python/ltdd"},
        package_data={"ltdd_ext": ["py.typed"], "ltdd": ["py.typed", "**/*.html", "**/*.j2"]},
        ext_modules=extensions,
        cmdclass={"build_ext": Build},
        zip_safe=False,
    )


main()
