"""One table in Markdown of all that was found."""

# Kernels that are named in the table, and lines of a failure that are shown there; the JSON has all.
KERNELS = 12
LINES = 12


def number(value, digits=0):
    return "" if value is None else f"{value:,.{digits}f}"


def report(results):
    """Markdown. A stage that found nothing has a line that says why."""
    stages = results["stages"]
    writers = [("machine", machine), ("smoke", smoke), ("suite", suite), ("peer", speeds), ("step", kernels), ("lstm", lstm), ("sanitizer", sanitizer), ("training", training)]
    lines = []
    for name, write in writers:
        if name in stages:
            lines += [*write(stages), ""]
    rows = [f"| {name} | {stage.get('state', '')} | {number(stage.get('seconds'), 1)} |" for name, stage in stages.items()]
    return "\n".join([*lines, "| stage | state | seconds |", "|---|---|---|", *rows]) + "\n"


def machine(stages):
    found = stages["machine"]
    card = found.get("card", {})
    name = f"{card.get('name', 'no card')}, driver {card.get('driver_version', '')}" if card else "CPU"
    lines = [f"{name}; {found.get('cores')} cores; PyTorch {found.get('torch')}"]
    if "toolkit" in found:
        missing = [name for name, there in found["toolkit"]["headers"].items() if not there]
        lines.append(f"toolkit {found['toolkit']['home']}, NVRTC {found['toolkit']['nvrtc']}" + (f"; headers missing: {', '.join(missing)}" if missing else ""))
    if not found.get("starts", True):
        lines.append(f"the program does not start: {found.get('says')}")
    return lines


def failure(found):
    """The first failure, with its beginning."""
    first = found.get("first_failure")
    if not first:
        return []
    said = first["message"].splitlines()
    more = [f"... {len(said) - LINES} lines more in results.json"] if len(said) > LINES else []
    return [f"first failure: {first['test']}", "```text", *said[:LINES], *more, "```"]


def smoke(stages):
    found = stages["smoke"]
    if "tests" not in found:
        return [f"smoke: {found.get('why', found.get('state'))}"]
    lines = [*failure(found), f"smoke: {found['passed']} passed, {len(found['failures'])} failed"]
    lines += [f"- {name}: {result}" for name, result in found["tests"].items() if result not in ("ok", "ignored")]
    if "persistent" in found:
        persistent = found["persistent"]
        lines.append(f"smoke of the persistent LSTM: {persistent['passed']} passed, {persistent['failed']} failed")
        lines += failure(persistent)
    return lines


def suite(stages):
    lines = []
    for name, part in stages["suite"].get("parts", {}).items():
        if part["exit"] == "missing":
            lines.append(f"{name}: the test program is missing")
            continue
        lines.append(f"{name}: {part['passed']} passed, {part['failed']} failed, exit {part['exit']}, {part['seconds']} s")
        lines += failure(part)
    return lines or [f"suite: {stages['suite'].get('why', stages['suite'].get('state'))}"]


def speeds(stages):
    """Training, forward and decoding; ratios are to the best of the peer in the same mode."""
    modes = dict(stages.get("peer", {}).get("rows", {}))
    if not modes.get("train") and stages.get("step", {}).get("rows"):
        modes["train"] = stages["step"]["rows"]
    lines = ["| mode | | bytes/s | over PyTorch's best | median ms | enqueued ms | device MB |", "|---|---|---|---|---|---|---|"]
    for mode, rows in modes.items():
        peers = [row["tokens_per_s"] for name, row in rows.items() if name.startswith("PyTorch") and "error" not in row]
        for name, row in rows.items():
            if "error" in row:
                lines.append(f"| {mode} | {name} | {row['error'].replace('|', '/')[:200]} | | | | |")
                continue
            ratio = f"{row['tokens_per_s'] / max(peers):.2f}" if peers else ""
            enqueued = number(row.get("enqueue_s") and 1e3 * row["enqueue_s"], 2)
            lines.append(f"| {mode} | {name} | {number(row['tokens_per_s'])} | {ratio} | {1e3 * row['median_s']:.2f} | {enqueued} | {number(row.get('device_mb'))} |")
    return lines


def kernels(stages):
    found = stages["step"].get("kernels", {})
    lines = [] if "peer" in stages else speeds(stages)
    if "rows" in found:
        lines += ["", "A step of L in bf16 by kernel, each launched, waited for and timed on the host:", "", "| kernel | ms | launches |", "|---|---|---|"]
        rows = sorted(found["rows"], key=lambda row: -row["ms"])
        lines += [f"| {row['kernel'].replace('|', '/')[:100]} | {row['ms']:.3f} | {row['launches']} |" for row in rows[: KERNELS + 1]]
    elif "error" in found:
        lines.append(f"by kernel: {found['error']}")
    for name, values in stages["step"].get("counters", {}).items():
        lines.append(f"- ncu, {name}: {values if isinstance(values, str) else ', '.join(f'{key} {value}' for key, value in values.items())}")
    return lines


def lstm(stages):
    """Microseconds a step."""
    lines = ["| LSTM | pass | d | lanes | µs a step | persistent launches |", "|---|---|---|---|---|---|"]
    for name, kernel in stages["lstm"].get("kernels", {}).items():
        for row in kernel["rows"]:
            lines.append(f"| {name} | {row['pass']} | {row['d']} | {row['lanes']} | {row['median_us']:.2f} | {row.get('persistent_launches', '')} |")
        for notice in sorted({notice for row in kernel["rows"] for notice in row.get("notices", [])}):
            lines.append(f"| {name} | {notice} | | | | |")
        if "error" in kernel:
            lines.append(f"| {name} | {kernel['error'].replace('|', '/')[:200]} | | | | |")
    return lines


def sanitizer(stages):
    found = stages["sanitizer"]
    checks = found.get("checks", {})
    return [f"{name}: exit {check['exit']}, {check['says']}" for name, check in checks.items()] or [f"sanitizer: {found.get('skipped', found.get('why', found.get('state')))}"]


def training(stages):
    curves = stages["training"].get("curves", {})
    lines = ["| training | bytes | seconds | last training loss | validation |", "|---|---|---|---|---|"]
    for name, found in curves.items():
        if "error" in found:
            lines.append(f"| {name} | {found['error'].replace('|', '/')[:200]} | | | |")
        trained = [record for record in found["curve"] if record.get("train_bpc") is not None]
        end, reached = trained[-1] if trained else {}, found.get("reached", {})
        if trained or reached:
            columns = [number(end.get("bytes", end.get("tokens"))), number(end.get("seconds"), 1), number(end.get("train_bpc"), 3)]
            lines.append(f"| {name} | {' | '.join(columns)} | {number(reached.get('valid_bpc'), 3)} |")
    return lines if curves else [f"training: {stages['training'].get('why', stages['training'].get('state'))}"]
