#!/usr/bin/env python3
"""How well scores find the oddities that plant.py planted.

    scripts/anomalies/measure.py DIR PROGRAM [--steps N]        needs: pip install zstandard

A line's score is what it costs divided by its length. For each method: the area under the curve (AUC, the chance that an odd line scores
above an ordinary one, ties counting half) and the median rank of the odd lines among 2,000, each the mean of three seeds.

Without a past: today's file alone, from its first line on.
    model           the bundled model, each line after all before it (score --no-adapt)
    model + adapt   the same mixed with what was read (score)
    gzip, zstd      bytes that a line adds to what was compressed before it (the newest 32 KB; the newest 1 MB)
    n-gram          bytes of orders 0 to 5 with Witten-Bell smoothing, counted from what was read
With a past: yesterday's file is read first.
    model + adapt   a model trained on it (train --preset xs --steps N) that then has read it (score --to-state, --from-state)
    gzip, zstd, n-gram as above, with the past read first
"""

import argparse
import json
import math
import statistics
import subprocess
import zlib
from collections import defaultdict
from pathlib import Path

import zstandard

FORMATS, SEEDS = ["syslog", "nginx", "jsonl", "csv"], [1, 2, 3]


def lines_of(path):
    return [line + b"\n" for line in path.read_bytes().splitlines()]


def program_scores(arguments):
    out = subprocess.run(arguments, check=True, capture_output=True).stdout
    return [json.loads(line)["bits_per_byte"] for line in out.splitlines()]


def gzip_scores(past, today):
    seen, scores = b"".join(past)[-32768:], []
    for line in today:
        press = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, seen) if seen else zlib.compressobj(9, zlib.DEFLATED, -15)
        scores.append(len(press.compress(line) + press.flush()) / len(line))
        seen = (seen + line)[-32768:]
    return scores


def zstd_scores(past, today):
    seen, scores = b"".join(past)[-(1 << 20) :], []
    for line in today:
        dictionary = zstandard.ZstdCompressionDict(seen, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if len(seen) > 8 else None
        press = zstandard.ZstdCompressor(level=6, dict_data=dictionary, write_content_size=False, write_checksum=False, write_dict_id=False)
        scores.append(len(press.compress(line)) / len(line))
        seen = (seen + line)[-(1 << 20) :]
    return scores


class NGram:
    """Bytes of orders 0 to 5: p_k = (n · seen + distinct · p_(k-1)) / (n + distinct), p_(-1) = 1/256."""

    def __init__(self):
        self.counts, self.context = [defaultdict(lambda: defaultdict(int)) for _ in range(6)], b"\n" * 5

    def read(self, line):
        bits = 0.0
        for byte in line:
            p = 1 / 256
            for order, counts in enumerate(self.counts):
                seen = counts[self.context[5 - order :]]
                n = seen[None] if seen else 0
                if n:
                    distinct = len(seen) - 1
                    p = (seen.get(byte, 0) + distinct * p) / (n + distinct)
                seen[byte] += 1
                seen[None] = n + 1
            bits -= math.log2(p)
            self.context = self.context[1:] + bytes([byte])
        return bits / len(line)


def ngram_scores(past, today):
    model = NGram()
    for line in past:
        model.read(line)
    return [model.read(line) for line in today]


def auc_and_rank(scores, odd):
    order = sorted(scores)
    first, last = {}, {}
    for i, score in enumerate(order):
        first.setdefault(score, i)
        last[score] = i
    n, m = len(odd), len(scores) - len(odd)
    # Mean ranks from the smallest, as Mann and Whitney have it.
    mean = {score: (first[score] + last[score]) / 2 + 1 for score in first}
    auc = (sum(mean[scores[i]] for i in odd) - n * (n + 1) / 2) / (n * m)
    return auc, statistics.median(len(scores) + 1 - mean[scores[i]] for i in odd)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dir", type=Path)
    parser.add_argument("program")
    parser.add_argument("--steps", type=int, help="train on each past for so many steps; without it only what needs no past is measured")
    arguments = parser.parse_args()
    results = defaultdict(lambda: defaultdict(list))
    by_kind = defaultdict(lambda: defaultdict(list))
    for name in FORMATS:
        for seed in SEEDS:
            base = arguments.dir / f"{name}-{seed}"
            today, past = lines_of(base.with_suffix(".today")), lines_of(base.with_suffix(".past"))
            kinds = {int(number) - 1: kind for number, kind in map(str.split, base.with_suffix(".odd").read_text().splitlines())}
            score = [arguments.program, "score", f"{base}.today", "--json"]
            found = {
                "model": program_scores([*score, "--no-adapt"]),
                "model + adapt": program_scores(score),
                "gzip": gzip_scores([], today),
                "zstd": zstd_scores([], today),
                "n-gram": ngram_scores([], today),
            }
            if arguments.steps:
                run, state = f"{base}.run", f"{base}.state"
                if not Path(run).exists():
                    subprocess.run([arguments.program, "train", "--data", f"{base}.past", "--preset", "xs", "--steps", str(arguments.steps), "--out", run, "--quiet"], check=True, capture_output=True)
                subprocess.run([arguments.program, "score", f"{base}.past", "--total", "--model", run, "--to-state", state], check=True, capture_output=True)
                found["past: model + adapt"] = program_scores([*score, "--model", run, "--from-state", state])
                found["past: gzip"] = gzip_scores(past, today)
                found["past: zstd"] = zstd_scores(past, today)
                found["past: n-gram"] = ngram_scores(past, today)
            for method, scores in found.items():
                results[method][name].append(auc_and_rank(scores, list(kinds)))
                ordinary = [score for i, score in enumerate(scores) if i not in kinds]
                for kind in sorted(set(kinds.values())):
                    odd = [scores[i] for i in kinds if kinds[i] == kind]
                    by_kind[method][kind].append(auc_and_rank(odd + ordinary, range(len(odd)))[0])
            print(f"{name} {seed}: " + ", ".join(f"{method} {results[method][name][-1][0]:.3f}" for method in found), flush=True)
    print("\nAUC (median rank of the odd lines)\n| method | " + " | ".join(FORMATS) + " | mean |\n|" + "---|" * (len(FORMATS) + 2))
    for method, of_format in results.items():
        means = [(statistics.mean(auc for auc, _ in of_format[name]), statistics.mean(rank for _, rank in of_format[name])) for name in FORMATS]
        cells = [f"{auc:.3f} ({rank:.0f})" for auc, rank in means]
        print(f"| {method} | " + " | ".join(cells) + f" | {statistics.mean(auc for auc, _ in means):.3f} |")
    kinds = ["range", "wrong", "order", "new", "broken"]
    print("\nAUC by kind, all formats\n| method | " + " | ".join(kinds) + " |\n|" + "---|" * (len(kinds) + 1))
    for method, of_kind in by_kind.items():
        print(f"| {method} | " + " | ".join(f"{statistics.mean(of_kind[kind]):.3f}" for kind in kinds) + " |")


main()
