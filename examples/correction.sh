#!/bin/sh
# An open experiment: the linear correction x_t / sqrt(abar_t) before the network, against none
# and against EDM's preconditioning, with equal budgets: the same data, network, seeds, steps,
# sampler and number of samples.
#
#     examples/correction.sh OUT [DATA] [STEPS] [COUNT]
#
# e.g. examples/correction.sh correction points:moons 2000, or, some minutes on two cores,
# examples/correction.sh correction digits 200 500. Needs `langevin` in the PATH, or its path in
# LANGEVIN. Prints the Frechet distance and MMD^2 of COUNT samples (2,000) for three seeds.
set -eu
langevin=${LANGEVIN:-langevin}
out=$1 data=${2:-points:moons} steps=${3:-2000} count=${4:-2000}
mkdir -p "$out"

# row NAME [ARGUMENTS OF TRAIN]
row() {
    name=$1
    shift
    for seed in 0 1 2; do
        run="$out/$name-$seed"
        rm -rf "$run"
        "$langevin" train --data "$data" --out "$run" --steps "$steps" --seed "$seed" \
            --device cpu "$@" >"$run.log" 2>&1
        scores=$("$langevin" evaluate "$run" --data "$data" --count "$count" --sampler ddim \
            --steps 50 --device cpu 2>/dev/null)
        printf '%s\n' "$scores" | awk -v name="$name" -v seed="$seed" \
            '$1 == "frechet" { f = $2 } $1 == "mmd^2" { m = $2 }
             END { printf "| %s | %s | %s | %s |\n", name, seed, f, m }' | tee -a "$out/table.md"
    done
}

printf '| input | seed | Frechet | MMD^2 |\n|---|---|---|---|\n' | tee "$out/table.md"
row none
row correction --set denoiser.correction=true
row edm --set denoiser.precondition=edm
row correction-edm --set denoiser.correction=true --set denoiser.precondition=edm
