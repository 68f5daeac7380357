#!/usr/bin/env python3
"""Runs a program that was built for CUDA where there is no device: its own calls, NVRTC itself, and nothing computed.

    python3 -m venv nvrtc
    nvrtc/bin/pip install nvidia-cuda-{nvrtc,runtime,nvcc,crt,cccl}==13.0.*
    nvrtc/bin/python scripts/without-gpu.py target/release/sharnn train --backend cuda --preset xs --steps 2

A library takes the driver's place (scripts/without-gpu.c; a C compiler is needed): a device of capability 9.0 with 80 GB on which every value
is what its memory held. So numbers mean nothing, and all the rest is as on a device: what is compiled, with which options, what is
launched and how often, and how much memory is reserved. Then ptxas assembles every kernel. The exit code is the program's, and 1 if a
kernel is not assembled.
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

SOURCE = pathlib.Path(__file__).resolve().with_suffix(".c")


def toolkit():
    """NVIDIA's packages, which are laid out as a toolkit is."""
    try:
        import nvidia.cu13
    except ImportError:
        sys.exit("NVIDIA's packages are missing: see the top of this script for how to install them")
    return pathlib.Path(list(nvidia.cu13.__path__)[0])


def run(command, directory, toolkit):
    driver = directory / "lib"
    driver.mkdir()
    build = ["cc", "-shared", "-fPIC", "-O1", "-D_GNU_SOURCE", "-Wl,-soname,libcuda.so.1", "-o", driver / "libcuda.so.1", SOURCE]
    subprocess.run(build, check=True)
    paths = [str(driver), os.environ.get("LD_LIBRARY_PATH")]
    variables = dict(CUDA_PATH=str(toolkit), LD_LIBRARY_PATH=":".join(filter(None, paths)), STANDIN_DIR=str(directory))
    return subprocess.run(command, env=dict(os.environ, **variables)).returncode


def assembled(path, toolkit):
    """Registers of a kernel and the bytes of them that it spills; nothing if it is not assembled."""
    command = [toolkit / "bin/ptxas", "-v", "-arch=sm_90a", path, "-o", path.with_suffix(".cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{path.name} is not assembled: {done.stderr}", file=sys.stderr)
        return None
    number = lambda pattern: int((re.search(pattern, done.stderr) or [0, 0])[1])
    return number(r"Used (\d+) registers"), number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    cuda = toolkit()
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        status = run(sys.argv[1:], directory, cuda)
        report = directory / "report.tsv"
        if not report.exists():
            print("the program made no use of the device", file=sys.stderr)
            return status or 1
        (peak, to_device, from_device), *kernels = [line.split("\t") for line in report.read_text().splitlines()]
        print(f"\n{int(peak):,} bytes of the device's memory were reserved at most; {len(kernels)} kernels, ", end="")
        print(f"{sum(int(kernel[2]) for kernel in kernels):,} launches; {to_device} copies to the device, {from_device} from it\n")
        print("| kernel | launches | blocks, at most | units of a block | dynamic shared memory | bytes of parameters | registers | spilled bytes |")
        print("|---|---|---|---|---|---|---|---|")
        for module, name, *numbers in sorted(kernels, key=lambda kernel: -int(kernel[2])):
            takes = assembled(directory / f"{module}.ptx", cuda)
            if takes is None:
                status = status or 1
                continue
            print("|", " | ".join(map(str, [name, *numbers, *takes])), "|")
    return status


if __name__ == "__main__":
    sys.exit(main())
