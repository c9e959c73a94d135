#!/usr/bin/env bash
# Runs every fuzz target for a while, one after the other.
# Usage: scripts/fuzz.sh DURATION [go test flags]
set -euo pipefail
cd "$(dirname "$0")/.."
duration=$1
shift

count=0
packages=$(go list ./...)
for package in $packages; do
    # On a line of its own: a package that does not build must not look like one without targets.
    listed=$(go test "$@" -list '^Fuzz' "$package")
    for target in $(grep '^Fuzz' <<<"$listed" || true); do
        count=$((count + 1))
        echo "fuzz $package $target for $duration"
        # -parallel 2 leaves the workers of a small machine alone; minimizing is for people.
        go test "$@" -run '^$' -fuzz "^$target\$" -fuzztime "$duration" \
            -fuzzminimizetime 20x -parallel 2 "$package"
    done
done
if [[ $count -eq 0 ]]; then
    echo "no fuzz target was found" >&2
    exit 1
fi
