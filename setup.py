"""What pyproject.toml cannot say: where `kernels/` goes, and how the extension is built.

`kernels/` is installed as crossearth_sar.kernels. The symlink crossearth_sar/kernels -> ../kernels makes the
same import work in a checkout; `kernels/` has no __init__.py, so that it never shadows a top-level package of
that name.

CROSSEARTH_BUILD says what is built of csrc/ (which knows no torch, so none is needed here):
    auto   the CPU half where a C++ compiler is found, and the CUDA half where nvcc is found and can build it
           (default); says what it did. A compiler that fails is an error: only a missing one is not
    cpu    the CPU half
    cuda   both; without an nvcc that can, an error
    none   nothing: the package works with the reference form
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import find_packages, setup

# No fused multiply-adds: every instruction set, and the GPU, give the same bits.
CPU_FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"]
CUDA_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-Xcompiler", "-fPIC"]
GPU_CODE = ["arch=compute_80,code=sm_80", "arch=compute_90,code=sm_90", "arch=compute_90,code=compute_90"]
CUDA_LIBRARIES = ["cudart_static", "dl", "rt", "pthread"]

CHOICE = os.environ.get("CROSSEARTH_BUILD", "auto")
NVCC = shutil.which("nvcc")


def wants_cuda() -> bool:
    if CHOICE not in ("auto", "cpu", "cuda", "none"):
        sys.exit(f"CROSSEARTH_BUILD={CHOICE}: expected auto, cpu, cuda or none")
    if CHOICE == "cuda" and NVCC is None:
        sys.exit(
            "CROSSEARTH_BUILD=cuda, but nvcc is not on PATH: install the CUDA toolkit, or build with cpu"
        )
    return CHOICE == "cuda" or (CHOICE == "auto" and NVCC is not None)


class CudaError(Exception):
    """The CUDA half cannot be built here; the message is nvcc's own last word."""


class BuildExtension(build_ext):
    """Compiles the .cu file with nvcc and links it in where CUDA is wanted."""

    def build_extension(self, extension: Pybind11Extension) -> None:
        compiler = (os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++").split()[0]
        if CHOICE == "auto" and shutil.which(compiler) is None:
            extension.optional = True  # so that an editable install does not look for it
            say(f"nothing, for there is no {compiler}; the reference form computes the same, slower")
            return
        halves = "the CPU half"
        if wants_cuda():
            try:
                self.add_cuda(extension)
                halves = "the CPU and the CUDA half"
            except CudaError as error:
                if CHOICE == "cuda":
                    sys.exit(f"CROSSEARTH_BUILD=cuda: {error}. CROSSEARTH_BUILD=cpu builds without CUDA")
                halves = f"the CPU half only: {error}. CROSSEARTH_BUILD=cpu does not try"
        say(halves)
        super().build_extension(extension)

    def add_cuda(self, extension: Pybind11Extension) -> None:
        compiled, folder = self.compile_cuda(), cuda_library_folder()
        extension.extra_objects.append(compiled)
        extension.define_macros.append(("CROSSEARTH_CUDA", "1"))
        extension.libraries += CUDA_LIBRARIES
        extension.library_dirs.append(folder)

    def compile_cuda(self) -> str:
        target = Path(self.build_temp) / "descriptors_cuda.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        code = [flag for arch in GPU_CODE for flag in ("-gencode", arch)]
        done = ask_nvcc(*CUDA_FLAGS, *code, "-c", "csrc/descriptors_cuda.cu", "-o", str(target))
        print(done.stdout, done.stderr, sep="", end="", file=sys.stderr)
        if done.returncode != 0:
            said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise CudaError(f"{NVCC} failed: {said[-1].strip() if said else f'status {done.returncode}'}")
        return str(target)


def say(built: str) -> None:
    print(f"crossearth_sar._descriptors (CROSSEARTH_BUILD={CHOICE}): {built}", file=sys.stderr)


def ask_nvcc(*arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run([str(NVCC), *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise CudaError(f"{NVCC} does not run: {error}") from error


def cuda_library_folder() -> str:
    """Where nvcc's own libraries lie, as it says itself: it may be a wrapper, or called through a link."""
    spoken = ask_nvcc("--dryrun", "-x", "cu", os.devnull)
    folders = [Path(folder) for folder in re.findall(r'"-L([^"]+)"', spoken.stderr + spoken.stdout)]
    holding = [folder for folder in folders if (folder / "libcudart_static.a").exists()]
    if not holding:
        raise CudaError(f"{NVCC} names no folder with libcudart_static.a among {folders or 'none'}")
    return str(holding[0].resolve())


extension = Pybind11Extension(
    "crossearth_sar._descriptors",
    [
        "csrc/binding.cpp",
        "csrc/descriptors_cpu.cpp",
        "csrc/ffn_avx2.cpp",
        "csrc/ffn_avx512.cpp",
        "csrc/ffn_backward.cpp",
        "csrc/ffn_binding.cpp",
        "csrc/ffn_forward.cpp",
        "csrc/row_kernels.cpp",
        "csrc/scale_free_cpu.cpp",
        "csrc/scale_free_rows.cpp",
    ],
    depends=[
        "csrc/descriptor_math.h",
        "csrc/descriptors.h",
        "csrc/ffn_binding.h",
        "csrc/ffn_cpu.h",
        "csrc/ffn_jobs.h",
        "csrc/ffn_kernels.h",
        "csrc/ffn_tiles.h",
        "csrc/row_kernels.h",
        "csrc/instruction_sets.h",
        "csrc/scale_free.h",
        "csrc/scale_free_rows.h",
        "csrc/tasks.h",
        "csrc/descriptors_cuda.h",
        "csrc/descriptors_kernels.cuh",
    ],
    cxx_std=17,
    extra_compile_args=CPU_FLAGS,
    extra_link_args=["-fopenmp"],
)

setup(
    packages=[*find_packages(include=["crossearth_sar", "crossearth_sar.*"]), "crossearth_sar.kernels"],
    package_data={
        "crossearth_sar.evaluation": ["*.csv"],
        "crossearth_sar": ["py.typed", "weights/*/*"],
        "crossearth_sar.cli": ["recipes/*.yaml"],
    },
    ext_modules=[] if CHOICE == "none" else [extension],
    cmdclass={"build_ext": BuildExtension},
)
