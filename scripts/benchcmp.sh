#!/usr/bin/env bash
# Compares the micro-benchmarks of two commits with benchstat, which comes through the module proxy
# at a fixed version and never touches go.mod. The commits are built in directories of their own,
# and their runs alternate, so that a slow spell of the machine hits both.
# Usage: scripts/benchcmp.sh OLD NEW [REGEXP [COUNT]]
set -euo pipefail
cd "$(dirname "$0")/.."
old=${1:?usage: scripts/benchcmp.sh OLD NEW [REGEXP [COUNT]]}
new=${2:?usage: scripts/benchcmp.sh OLD NEW [REGEXP [COUNT]]}
regexp=${3:-.}
count=${4:-8}
benchstat=golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
tags=hashicorpmetrics

dir=$(mktemp -d)
cleanup() {
    for name in old new; do
        git worktree remove --force "$dir/$name" 2>/dev/null || true
    done
    rm -rf "$dir"
}
trap cleanup EXIT
# With a handler bash waits for what runs in the directories before it removes them.
trap 'exit 130' INT TERM
git worktree add -q --detach "$dir/old" "$old"
git worktree add -q --detach "$dir/new" "$new"

# The packages that have benchmarks, in either of them.
packages() {
    git grep -l '^func Benchmark' "$1" -- '*_test.go' | sed 's/^[^:]*://' | xargs -r -n1 dirname
}
for package in $({ packages "$old"; packages "$new"; } | sort -u); do
    for name in old new; do
        if [[ -d $dir/$name/$package ]]; then
            (cd "$dir/$name" && go test -tags "$tags" -c -o "$dir/$name.test" "./$package") >&2
        fi
    done
    for ((i = 1; i <= count; i++)); do
        echo "$package: $i of $count" >&2
        for name in old new; do
            if [[ -x $dir/$name.test ]]; then
                (cd "$dir/$name/$package" && "$dir/$name.test" -test.run '^$' \
                    -test.bench "$regexp" -test.benchmem -test.benchtime 200ms) >>"$dir/$name.txt"
            fi
        done
    done
    rm -f "$dir"/*.test
done
go run "$benchstat" "old=$dir/old.txt" "new=$dir/new.txt"
