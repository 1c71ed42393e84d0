#!/bin/sh
# One network under every sampler that fits it: evaluations of the network an image
# against Frechet distance and MMD to the data, and a grid of each.
#
#     examples/samplers.sh MODEL DATA OUT [COUNT]
#
# e.g. examples/samplers.sh runs/digits digits samplers 1797. Needs `langevin` in the
# PATH, or its path in LANGEVIN. OUT gets NAME.png (the first 64 images) and
# NAME.safetensors for every row, and table.md, which is also printed. The images of
# all samplers start from the same noise. examples/samplers.png, a row of 16 images for
# each of some samplers, is made from them by
#
#     cargo run --release --example rows -- samplers.png 16 samplers/ddim-50.safetensors ...
set -eu
langevin=${LANGEVIN:-langevin}
model=$1 data=$2 out=$3 count=${4:-1797}
mkdir -p "$out"
table="$out/table.md"
printf '| sampler | steps | evaluations | Frechet | MMD^2 |\n|---|---|---|---|---|\n' >"$table"

# row NAME SAMPLER STEPS [FURTHER ARGUMENTS OF SAMPLE]
row() {
    name=$1 sampler=$2 n=$3
    shift 3
    file="$out/$name.safetensors"
    said=$("$langevin" sample "$model" --sampler "$sampler" --steps "$n" --count "$count" \
        --out "$out/all.png" --tensors "$file" --json "$@" 2>/dev/null) || {
        echo "$name: does not fit this model, left out" >&2
        return 0
    }
    all=$(printf '%s' "$said" | tr -d ' \n' | sed 's/.*"evaluations":\([0-9]*\).*/\1/')
    "$langevin" sample "$model" --sampler "$sampler" --steps "$n" --count 64 \
        --out "$out/$name.png" --json "$@" >/dev/null 2>&1
    scores=$("$langevin" evaluate "$file" --data "$data")
    frechet=$(printf '%s\n' "$scores" | awk '$1 == "frechet" { print $2 }')
    mmd=$(printf '%s\n' "$scores" | awk '$1 == "mmd^2" { print $2, "+-", $4 }')
    printf '| %s | %s | %s | %s | %s |\n' \
        "$name" "$n" "$((all / count))" "$frechet" "$mmd" | tee -a "$table"
}

for steps in 10 20 50; do
    row "ddim-$steps" ddim "$steps"
    row "ddim-eta1-$steps" ddim "$steps" --eta 1
    row "ode-euler-$steps" ode-euler "$steps"
    row "euler-a-$steps" euler-a "$steps"
    row "dpmpp-2m-$steps" dpmpp-2m "$steps"
    row "dpmpp-sde-2m-$steps" dpmpp-sde-2m "$steps"
    row "unipc-$steps" unipc "$steps"
    # Two evaluations a step.
    row "ode-heun-$((steps / 2))" ode-heun "$((steps / 2))"
    row "edm-$((steps / 2))" edm "$((steps / 2))"
    row "edm-churn-$((steps / 2))" edm "$((steps / 2))" --set sampler.s_churn=10
done
row ddpm-200 ddpm 200
row euler-maruyama-200 euler-maruyama 200
row pc-100 pc 100
row ode-rk45 ode-rk45 50
row ald-100 ald 100
row reversal-200 reversal 200
row reversal-literal-200 reversal 200 --set sampler.literal=true
rm -f "$out/all.png"
