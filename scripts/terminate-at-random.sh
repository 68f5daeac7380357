#!/bin/sh
# SIGTERM at random moments of one run, validations among them: each time the run must end within two seconds with status 130 and
# leave a checkpoint that is no older than what was measured; at the end its losses, weights, moments and state must be those of a run
# that was never stopped, to the last bit.
#
#   scripts/terminate-at-random.sh PROGRAM [TIMES]
set -eu
. "$(dirname "$0")/compare-runs.sh"
program=$(realpath "${1:?which program}")
times=${2:-100}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
write_log

# A step of this model takes milliseconds; a validation, every 25 steps, far longer.
train() {
    exec "$program" train --data log.txt --preset xs --set model.d_model=16 --set model.d_ff=40 --mem-len 64 --batch 4 --seq-len 16 \
        --precision f32 --threads 1 --recipe paper --valid-every 25 --valid-bytes 20000 --log-every 1 --out "$@"
}
now() { date +%s%N; }

(train stopped --steps 1000000 >/dev/null 2>first.err) &
pid=$!
in_validation=0 slowest=0 i=0
while [ "$i" -lt "$times" ]; do
    i=$((i + 1))
    # Not before it hears signals: the run's directory is there.
    while [ ! -e stopped/ends.json ] || ! grep -qs "starting\|resuming" ./*.err; do sleep 0.01; done
    sleep "$(awk -v seed="$i" 'BEGIN { srand(seed * 7919); printf "%.3f", rand() * 2 }')"
    began=$(now)
    kill -TERM "$pid"
    status=0
    wait "$pid" || status=$?
    took=$((($(now) - began) / 1000000))
    [ "$status" = 130 ] || { echo "stop $i: status $status"; cat ./*.err; exit 1; }
    [ "$took" -le 2000 ] || { echo "stop $i took $took ms"; exit 1; }
    [ "$took" -le "$slowest" ] || slowest=$took
    measured=$(grep '"event":"train"' stopped/metrics.jsonl | tail -1 | sed 's/.*"step":\([0-9]*\).*/\1/')
    saved=$(find stopped -maxdepth 1 -name 'step-*' | sed 's/.*step-0*//' | sort -n | tail -1)
    [ "${saved:-0}" -ge "${measured:-0}" ] || { echo "stop $i: saved after ${saved:-0}, measured ${measured:-0}"; exit 1; }
    # A validation was broken off where it was due and is not there.
    [ "$((${saved:-1} % 25))" != 0 ] || grep -q "\"event\":\"valid\",\"step\":$saved," stopped/metrics.jsonl || in_validation=$((in_validation + 1))
    rm -f ./*.err
    if [ "$i" -lt "$times" ]; then
        (exec "$program" train --resume --log-every 1 --out stopped --threads 1 >/dev/null 2>again.err) &
        pid=$!
    fi
done
last=$saved
"$program" train --resume --log-every 1 --out stopped --threads 1 --steps "$((last + 5))" --quiet >/dev/null
(train whole --steps "$((last + 5))" --quiet >/dev/null)
must_be_same stopped whole "$((last + 5))"
echo "$times times SIGTERM up to step $last, $in_validation of them in a validation; the slowest end took $slowest ms; nothing was lost"
