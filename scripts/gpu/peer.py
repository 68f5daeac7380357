#!/usr/bin/env python3
"""Times the PyTorch statement of the model in many ways within one process, so that PyTorch is loaded once.

    peer.py STATEMENT CONFIGURATIONS

STATEMENT is `sharnn_torch.py`; CONFIGURATIONS a JSON list of lists, each the options of its command `bench`. A line of JSON for each, flushed at
once: what `bench` prints with `device_mb` added, or `{"error": ...}`.
"""

import contextlib
import importlib.util
import io
import json
import sys
import traceback


def device_memory(torch):
    """Forgets what was used at most; returns a function that tells what has been since, in MB, as nvidia-smi counts it."""
    if not torch.cuda.is_available():
        return lambda: None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()

    def mb():
        free, total = torch.cuda.mem_get_info()
        context = total - free - torch.cuda.memory_reserved()
        return (torch.cuda.max_memory_reserved() + context) // 2**20

    return mb


def main():
    path, configurations = sys.argv[1], json.loads(sys.argv[2])
    spec = importlib.util.spec_from_file_location("statement", path)
    statement = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(statement)
    torch = statement.torch
    for options in configurations:
        sys.argv = [path, "bench", *options]
        printed = io.StringIO()
        try:
            mb = device_memory(torch)
            with contextlib.redirect_stdout(printed):
                statement.main()
            line = json.loads(printed.getvalue().strip().splitlines()[-1])
            line["device_mb"] = mb()
        except (Exception, SystemExit):
            line = {"error": traceback.format_exc()}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
