#!/usr/bin/env bash
# Runs every fuzz target over INPUTS inputs, one target after the other.
# Usage: scripts/fuzz.sh INPUTS [go test flags]
#
# A number and not a time: up to Go 1.26 a target that is ended by its time can fail with "context
# deadline exceeded" though nothing was found, when its coordinator sees the end before its workers'
# context does (golang/go#75804, mended in 1.27).
set -euo pipefail
cd "$(dirname "$0")/.."
inputs=$1
shift

# Targets of which an input costs many times that of the others, which have some 4000 a second on
# two cores, and how many times.
declare -A weight=([proxy.FuzzSession]=50 [election.FuzzFSM]=10 [election.FuzzRPC]=10
    [election.FuzzDiskFiles]=10 [config.FuzzParse]=5)

count=0
packages=$(go list ./...)
for package in $packages; do
    # On a line of its own: a package that does not build must not look like one without targets.
    listed=$(go test "$@" -list '^Fuzz' "$package")
    for target in $(grep '^Fuzz' <<<"$listed" || true); do
        count=$((count + 1))
        share=$((inputs / ${weight[${package##*/}.$target]:-1} + 1))
        echo "fuzz $package $target with $share inputs"
        # -parallel 2 leaves the workers of a small machine alone; minimizing is for people.
        go test "$@" -run '^$' -fuzz "^$target\$" -fuzztime "${share}x" \
            -fuzzminimizetime 20x -parallel 2 "$package"
    done
done
if [[ $count -eq 0 ]]; then
    echo "no fuzz target was found" >&2
    exit 1
fi
