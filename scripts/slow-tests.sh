#!/usr/bin/env bash
# Prints, as one regular expression for -run, which tests of a package the race detector's run
# leaves out or does less of: those that ask testing.Short() or isRace, and those of files that
# are not built with it. A question outside of a test would go unnoticed, and is an error.
# Usage: scripts/slow-tests.sh DIRECTORY
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:?usage: slow-tests.sh DIRECTORY}

awk '
    FNR == 1 { test = ""; all = 0 }
    /^\/\/go:build !race/ { all = 1 }
    /^}/ { test = "" }
    /^func / { test = "" }
    /^func Test[A-Z0-9]/ {
        test = $2
        sub(/\(.*/, "", test)
        if (all) { found[test] = 1 }
    }
    /^[^/]*(testing\.Short\(\)|isRace)/ && !/^const isRace/ {
        if (test == "") {
            printf "%s:%d: not in a test of its own\n", FILENAME, FNR > "/dev/stderr"
            failed = 1
        }
        found[test] = 1
    }
    END {
        if (failed) { exit 1 }
        for (name in found) { names = names (names == "" ? "" : "|") name }
        if (names == "") { exit 1 }
        printf "^(%s)$\n", names
    }
' "$dir"/*_test.go
