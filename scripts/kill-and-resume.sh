#!/bin/sh
# Kills a run (-9) at random moments, also while it starts, validates or writes a checkpoint, and resumes it each time. Its losses,
# scores, weights, moments and state must at the end be those of a run that was never killed, to the last bit.
#
#   scripts/kill-and-resume.sh PROGRAM [TIMES]
set -eu
. "$(dirname "$0")/compare-runs.sh"
program=$(realpath "${1:?which program}")
times=${2:-200}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
write_log

# A step of this model takes between one and two milliseconds: 500 of them, after which there is a checkpoint, about a second.
train() {
    exec "$program" train --data log.txt --preset xs --set model.d_model=16 --set model.d_ff=40 --dropout 0.1 --mem-len 64 --batch 4 \
        --seq-len 16 --precision f32 --threads 1 --recipe paper --valid-every 200 --valid-bytes 20000 --log-every 1 --checkpoint-every 500 --out "$@"
}
resume() { exec "$program" train --resume --out killed --log-every 1 --checkpoint-every 500 --threads 1 "$@"; }
newest() { find killed -maxdepth 1 -name 'step-*' | sed 's/.*step-0*//' | sort -n | tail -1; }
# Of the last record of a training step, which may be half-written.
measured() { grep -s '"event":"train".*}$' killed/metrics.jsonl | tail -1 | sed 's/.*"step":\([0-9]*\).*/\1/'; }

(train killed --steps 100000000 >/dev/null 2>killed.err) &
pid=$!
# From the moment that its directory holds the checkpoint of the start it can be killed.
until [ -n "$(newest 2>/dev/null)" ]; do sleep 0.01; done
i=0 half=0 lost=0 most_lost=0
while [ "$i" -lt "$times" ]; do
    i=$((i + 1))
    sleep "$(awk -v seed="$i" 'BEGIN { srand(seed * 7919); printf "%.3f", rand() * 3 }')"
    kill -9 "$pid" || { echo "before kill $i the run had ended:"; cat killed.err; exit 1; }
    wait "$pid" 2>/dev/null || true
    saved=$(newest) at=$(measured)
    # What it was writing.
    [ -z "$(find killed -maxdepth 1 -name '.tmp-*')" ] || half=$((half + 1))
    again=$((${at:-0} - ${saved:-0}))
    [ "$again" -le 0 ] || lost=$((lost + again))
    [ "$again" -le "$most_lost" ] || most_lost=$again
    (resume >/dev/null 2>killed.err) &
    pid=$!
done
kill -9 "$pid"
wait "$pid" 2>/dev/null || true
last=$((${saved:-0} + 1000))
(resume --steps "$last" --quiet >/dev/null)
(train whole --steps "$last" --quiet >/dev/null)

must_be_same killed whole "$last"
echo "$times times kill -9 up to step $last, $half of them while a directory was being written; $lost steps were done again, at most" \
    "$most_lost at once; $(wc -l <whole.txt) records, weights, moments, state and best weights are identical to the last bit"
