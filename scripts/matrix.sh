#!/usr/bin/env bash
# Runs tests on another version of PostgreSQL than this machine's, as root: makes the Debian
# release that carries it by debootstrap (kept below $MATRIX_ROOTS), and runs the built binary
# and the tests in it by chroot.
# Usage: scripts/matrix.sh VERSION TESTS [AGENT_TESTS [PROXY_TESTS]]    (regular expressions for
# -run; those of the agent are ^TestAgent unless named, those of the proxy none; none if empty)
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:?usage: matrix.sh VERSION TESTS}
tests=${2?usage: matrix.sh VERSION TESTS}
agent_tests=${3-^TestAgent}
proxy_tests=${4-}
tags=${TAGS:-hashicorpmetrics}
mirror=${MIRROR:-http://deb.debian.org/debian}

# Debian never released 14 and 16.
case $version in
    13) suite=bullseye ;;
    15) suite=bookworm ;;
    17) suite=trixie ;;
    18) suite=forky ;;
    *)
        echo "holdfast: no Debian release has PostgreSQL $version (13, 15, 17, 18 do)" >&2
        exit 1
        ;;
esac
if [[ $(id -u) -ne 0 ]]; then
    echo "holdfast: the test on PostgreSQL $version makes a Debian $suite by debootstrap: run it" \
        "as root" >&2
    exit 1
fi
if ! command -v debootstrap >/dev/null; then
    install=(apt-get install -y -q --no-install-recommends debootstrap)
    "${install[@]}" >/dev/null || { apt-get update -q && "${install[@]}"; } >/dev/null
fi

roots=${MATRIX_ROOTS:-${XDG_CACHE_HOME:-$HOME/.cache}/holdfast}
root=$roots/$suite
# The marker is the last thing made: a root without it is the rest of an interrupted one.
if [[ ! -e $root/.complete ]]; then
    rm -rf "$root"
    mkdir -p "$roots"
    script=/usr/share/debootstrap/scripts/$suite
    [[ -e $script ]] || script=/usr/share/debootstrap/scripts/sid
    echo "holdfast: making a Debian $suite with PostgreSQL $version in $root" >&2
    if ! debootstrap --variant=minbase --include="postgresql-$version,procps,iproute2,e2fsprogs" \
        "$suite" "$root" "$mirror" "$script" >"$root.log" 2>&1; then
        tail -30 "$root.log" >&2
        exit 1
    fi
    rm -rf "$root.log" "$root"/var/cache/apt/archives/*.deb
    touch "$root/.complete"
fi

# A root of before tests needed file systems of their own.
if [[ ! -x $root/sbin/mkfs.ext4 ]]; then
    chroot "$root" apt-get -o APT::Sandbox::User=root install -y -q --no-install-recommends \
        e2fsprogs >"$root.log" 2>&1 || { tail -30 "$root.log" >&2; exit 1; }
fi

# Namespaces of their own: whatever happens, no mount is left behind, and no shared memory of a
# server that a test killed.
work=$(mktemp -d "$root/tmp/holdfast.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
CGO_ENABLED=0 go build -trimpath -tags "$tags" -o "$work/holdfast" ./cmd/holdfast
CGO_ENABLED=0 go test -tags "$tags" -c -o "$work/election.test" ./election
CGO_ENABLED=0 go test -tags "$tags" -c -o "$work/e2e.test" ./cmd/holdfast
if [[ -n $proxy_tests ]]; then
    CGO_ENABLED=0 go test -tags "$tags" -c -o "$work/proxy.test" ./proxy
fi
inside=/tmp/${work##*/}
# shellcheck disable=SC2016 # expanded in the namespace
unshare --mount --ipc --propagation private bash -euo pipefail -c '
    root=$1 inside=$2 tests=$3 agent_tests=$4 proxy_tests=$5
    mount --rbind /proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
    mount --rbind /sys "$root/sys"
    exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/usr/bin:/bin:/usr/sbin:/sbin \
        CI=true HOLDFAST_REQUIRE_POSTGRES=1 HOLDFAST_BINARY="$inside/holdfast" \
        sh -euc "
            /usr/lib/postgresql/*/bin/postgres --version
            cd $inside
            if [ -n \"\$2\" ]; then
                ./election.test -test.run \"\$2\" -test.count 1 -test.timeout 10m -test.v
            fi
            if [ -n \"\$3\" ]; then
                ./proxy.test -test.run \"\$3\" -test.count 1 -test.timeout 20m
            fi
            if [ -n \"\$1\" ]; then
                ./e2e.test -test.run \"\$1\" -test.count 1 -test.timeout 20m -test.v
            fi
        " sh "$tests" "$agent_tests" "$proxy_tests"
' bash "$root" "$inside" "$tests" "$agent_tests" "$proxy_tests"
