# What the scripts that break a run off have in common: they read this file, and run in a directory of their own.

# A log to train on.
write_log() {
    awk 'BEGIN { for (i = 1; i <= 20000; i++) printf "2031-05-%02d node%d job %d took %d ms\n", 1 + i % 28, i % 7, i, (i * 37) % 991 }' >log.txt
}

# Losses, scores, weights, moments and state of two runs of so many steps must be the same, to the last bit: must_be_same RUN RUN STEPS
must_be_same() {
    # What depends on the time is left out.
    for run in "$1" "$2"; do
        sed 's/"seconds":[^,}]*//; s/"bytes_per_s":[^,}]*//' "$run/metrics.jsonl" >"$run.txt"
    done
    cmp "$1.txt" "$2.txt"
    newest=$(printf 'step-%08d' "$3")
    for file in "$newest/weights" "$newest/moments" "$newest/state" best/weights; do
        cmp "$1/$file.safetensors" "$2/$file.safetensors"
    done
}
