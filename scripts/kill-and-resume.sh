#!/usr/bin/env bash
# Proves exact resume: trains 200 steps without interruption, and again killed (-9) three times between checkpoints and
# resumed, and compares losses and final weights bit for bit.
#
#   scripts/kill-and-resume.sh [--data PATH ...]     further arguments go to the example
set -euo pipefail

program=${ENWIK8:-target/release/examples/enwik8}
[ -x "$program" ] || { echo "$program is missing: cargo build --release --example enwik8" >&2; exit 1; }
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
options=(--preset xs --recipe paper --steps 200 --dropout 0.1 --seq-len 128 --mem-len 640 --checkpoint-every 30 --log-every 1
    --valid-bytes 20000 --seed 5 "$@")

steps() { if [ -f "$1/metrics.jsonl" ]; then grep -c '"event":"train"' "$1/metrics.jsonl" || true; else echo 0; fi; }
# What a record holds but for the wall clock.
losses() { grep '"event":"train"' "$1/metrics.jsonl" | sed -E 's/"(seconds|bytes_per_s)":[^,}]*,?//g'; }

"$program" "${options[@]}" --out "$dir/whole" >"$dir/whole.log" 2>&1
resume=()
for at in 47 101 163; do
    "$program" "${options[@]}" --out "$dir/killed" "${resume[@]}" >>"$dir/killed.log" 2>&1 &
    pid=$!
    until [ "$(steps "$dir/killed")" -ge "$at" ]; do
        kill -0 "$pid" || { cat "$dir/killed.log" >&2; exit 1; }
        sleep 0.05
    done
    kill -9 "$pid"
    wait "$pid" 2>/dev/null || true
    echo "killed after step $(steps "$dir/killed"), newest checkpoint $(ls "$dir/killed" | grep step- | tail -1)"
    resume=(--resume)
done
"$program" "${options[@]}" --out "$dir/killed" --resume >>"$dir/killed.log" 2>&1

diff <(losses "$dir/whole") <(losses "$dir/killed")
[ "$(steps "$dir/whole")" = 200 ]
for file in step-00000200/weights.safetensors step-00000200/moments.safetensors step-00000200/state.safetensors; do
    cmp "$dir/whole/$file" "$dir/killed/$file"
done
echo "200 losses, final weights, moments and state are identical to the last bit"
sha256sum "$dir"/*/step-00000200/weights.safetensors | sed "s|$dir/||"
