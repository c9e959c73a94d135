#!/usr/bin/env bash
# gofmt, go vet, staticcheck and shellcheck, the last one outside CI only where it is installed.
# staticcheck comes through the module proxy at a fixed version and never touches go.mod.
# Usage: scripts/lint.sh STATICCHECK_VERSION [go build flags]
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1
shift

unformatted=$(gofmt -l .)
if [[ -n $unformatted ]]; then
    echo "gofmt -w is needed for:" >&2
    echo "$unformatted" >&2
    exit 1
fi
go vet "$@" ./...
go run "honnef.co/go/tools/cmd/staticcheck@$version" "$@" ./...
if [[ ${CI:-} == true ]] || command -v shellcheck >/dev/null; then
    shellcheck scripts/*.sh .ci/run
fi
