#!/usr/bin/env bash
# Runs tests on another version of PostgreSQL than this machine's, as root: makes the Debian
# release that carries it by debootstrap (kept below $MATRIX_ROOTS), and runs the built binary
# and the tests in it by chroot.
# Usage: scripts/matrix.sh VERSION TESTS [AGENT_TESTS [PROXY_TESTS]]    (regular expressions for
# -run; those of the agent are ^TestAgent unless named, those of the proxy none; none if empty)
#        scripts/matrix.sh --prepare VERSION    makes that Debian, unless it is there, and no more
set -euo pipefail
cd "$(dirname "$0")/.."
usage="usage: matrix.sh VERSION TESTS | --prepare VERSION"
only_prepare=
if [[ ${1-} == --prepare ]]; then
    only_prepare=yes
    set -- "${2:?$usage}" ""
fi
version=${1:?$usage}
tests=${2?$usage}
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
export DEBIAN_FRONTEND=noninteractive
install=(apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300)
if ! command -v debootstrap >/dev/null; then
    { "${install[@]}" debootstrap || { apt-get update -q && "${install[@]}" debootstrap; }; } \
        >/dev/null
fi

roots=${MATRIX_ROOTS:-${XDG_CACHE_HOME:-$HOME/.cache}/holdfast}
root=$roots/$suite
# make_root tries to make it. A mirror that stops answering must not hold CI up for ever: two to
# five minutes are usual. In a namespace of its own no mount outlives one that was killed, for rm to
# find.
make_root() {
    local script=/usr/share/debootstrap/scripts/$suite
    [[ -e $script ]] || script=/usr/share/debootstrap/scripts/sid
    rm -rf "$root"
    # timeout has a process group of its own, which Ctrl-C does not reach.
    timeout --kill-after=10 900 unshare --mount --propagation private \
        debootstrap --variant=minbase \
        --include="postgresql-$version,procps,iproute2,e2fsprogs" "$suite" "$root" "$mirror" \
        "$script" >"$root.log" 2>&1 &
    local rc=0 job=$!
    trap 'kill "$job" 2>/dev/null; wait "$job"; exit 130' INT TERM
    wait "$job" || rc=$?
    trap - INT TERM
    return "$rc"
}
# The marker is the last thing made: a root without it is the rest of an interrupted one.
mkdir -p "$roots"
# What makes it holds the lock, also if this script was killed: nobody makes it beside that.
exec 9>"$root.lock"
if ! flock -w 1000 9; then
    echo "holdfast: somebody else makes the Debian $suite in $root and does not end" >&2
    exit 1
fi
if [[ ! -e $root/.complete ]]; then
    echo "holdfast: making a Debian $suite with PostgreSQL $version in $root" >&2
    for try in 1 2 3; do
        ! make_root || break
        tail -30 "$root.log" >&2
        [[ $try -lt 3 ]] || exit 1
        echo "holdfast: Debian $suite could not be made; try $((try + 1)) of 3" >&2
        sleep 10
    done
    rm -rf "$root.log" "$root"/var/cache/apt/archives/*.deb
    touch "$root/.complete"
fi

# What a root is given beside its server, in one that was made before tests needed it too. Nothing
# that is installed there may start by itself.
missing=()
[[ -x $root/sbin/mkfs.ext4 ]] || missing+=(e2fsprogs)
[[ -x $root/usr/bin/patroni ]] || missing+=(patroni python3-pysyncobj)
install_missing() {
    local sandbox=(-o APT::Sandbox::User=root)
    chroot "$root" "${install[@]}" "${sandbox[@]}" "${missing[@]}" ||
        { chroot "$root" apt-get update -q "${sandbox[@]}" &&
            chroot "$root" "${install[@]}" "${sandbox[@]}" "${missing[@]}"; }
}
if [[ ${#missing[@]} -gt 0 ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    install_missing >"$root.log" 2>&1 || { tail -30 "$root.log" >&2; exit 1; }
    rm -f "$root.log" "$root"/var/cache/apt/archives/*.deb
fi
exec 9>&-

# A release that is not out yet changes: which one it was belongs to the result.
echo "holdfast: PostgreSQL $version on the Debian $suite of" \
    "$(date -u -r "$root/.complete" +%Y-%m-%d) in $root" >&2
[[ -z $only_prepare ]] || exit 0

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
                ./election.test -test.run \"\$2\" -test.count 1 -test.timeout 40m -test.v
            fi
            if [ -n \"\$3\" ]; then
                ./proxy.test -test.run \"\$3\" -test.count 1 -test.timeout 40m
            fi
            if [ -n \"\$1\" ]; then
                ./e2e.test -test.run \"\$1\" -test.count 1 -test.timeout 40m -test.v
            fi
        " sh "$tests" "$agent_tests" "$proxy_tests"
' bash "$root" "$inside" "$tests" "$agent_tests" "$proxy_tests"
