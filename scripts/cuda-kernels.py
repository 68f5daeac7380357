#!/usr/bin/env python3
"""Compiles the CUDA source of every kernel with NVRTC, without a GPU, and prints what ptxas says of it.

    python3 -m venv nvrtc
    nvrtc/bin/pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12 nvidia-cuda-nvcc-cu12
    nvrtc/bin/python scripts/cuda-kernels.py [SOURCES]

SOURCES is a directory of sources that the project's test wrote already (its variable is SHARNN_CUDA_SOURCES); else it is run.
The f32 kernels are compiled for compute capability 7.0, all of them for 8.0 and 9.0. The exit code is 1 if one does not compile, or
if a kernel of bfloat16 has no instruction of the tensor cores.
"""

import ctypes
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent


def packages():
    """The directory of NVIDIA's packages."""
    try:
        import nvidia
    except ImportError:
        sys.exit("NVIDIA's packages are missing: see the top of this script for how to install them")
    return pathlib.Path(list(nvidia.__path__)[0])


def write_sources(directory):
    """Has the project's own test write the sources."""
    command = "cargo test --quiet -p sharnn-core --no-default-features --features cuda --lib cuda_source".split()
    subprocess.run(command, cwd=ROOT, env=dict(os.environ, SHARNN_CUDA_SOURCES=str(directory)), stdout=sys.stderr, check=True)


class Nvrtc:
    """As much of the library as is needed."""

    def __init__(self, nvidia):
        self.library = ctypes.CDLL(str(nvidia / "cuda_nvrtc/lib/libnvrtc.so.12"))
        self.includes = [nvidia / package / "include" for package in ["cuda_runtime", "cuda_nvcc"]]

    def text(self, program, what):
        size = ctypes.c_size_t()
        getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(self.library, f"nvrtcGet{what}")(program, text)
        return text.value.decode()

    def ptx(self, source, architecture):
        """The assembly, and what the compiler had to say where there is none."""
        program = ctypes.c_void_p()
        self.library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), None, 0, None, None)
        options = [f"--gpu-architecture=compute_{architecture}", *(f"--include-path={path}" for path in self.includes)]
        argv = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self.library.nvrtcCompileProgram(program, len(options), argv)
        result = (None, self.text(program, "ProgramLog")) if failed else (self.text(program, "PTX"), "")
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return result


def ptxas(nvidia, ptx, architecture, directory):
    """Registers of a unit, and bytes that are spilled."""
    assembly = directory / "kernel.ptx"
    assembly.write_text(ptx)
    command = [nvidia / "cuda_nvcc/bin/ptxas", "-v", f"-arch=sm_{architecture}", assembly, "-o", directory / "kernel.cubin"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    number = lambda pattern: int((re.search(pattern, out) or [0, 0])[1])
    spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
    return number(r"Used (\d+) registers"), spilled


def main():
    nvidia = packages()
    nvrtc = Nvrtc(nvidia)
    failures = 0
    print("| kernel | capability | registers | spilled bytes | tensor core instructions |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        sources = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else directory
        if sources == directory:
            write_sources(directory)
        paths = sorted(sources.glob("*.cu"))
        if not paths:
            sys.exit(f"there are no sources in {sources}")
        for path in paths:
            is_bf16 = path.stem.endswith("bf16")
            for architecture in [80, 90] if is_bf16 else [70, 80, 90]:
                ptx, log = nvrtc.ptx(path.read_text(), architecture)
                if ptx is None:
                    print(f"{path.stem} for {architecture / 10} does not compile:\n{log}", file=sys.stderr)
                    failures += 1
                    continue
                tensor = len(re.findall(r"\bw?mma\.(?:mma\.)?sync", ptx))
                # The last step backward comes before any product.
                if is_bf16 and path.stem.startswith("lstm") and not tensor and "backward_last" not in path.stem:
                    print(f"{path.stem} for {architecture / 10} has no tensor core instruction", file=sys.stderr)
                    failures += 1
                registers, spilled = ptxas(nvidia, ptx, architecture, directory)
                print(f"| {path.stem} | {architecture / 10} | {registers} | {spilled} | {tensor} |")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
