#!/usr/bin/env bash
# Installs what is needed beside Go. What is there already is left alone. As a plain user with
# something missing it says what to install, in one line, and exits 1.
# Usage: scripts/setup.sh demo|tools|test|bench|drivers
#   demo   PostgreSQL's server and tools
#   tools  and for the tests iproute2, procps, git, openssl, what the fault lab's disks need, a C
#          compiler for the race detector, shellcheck, PgBouncer, and Debian's drivers for Python
#   bench  PostgreSQL's, and the proxies that the relay is measured beside
#   drivers as tools, and pgjdbc with a JDK, and npm
#   test   as tools, and root: the fault lab's tests make namespaces and file systems. And Patroni,
#          which a test adopts a cluster from; its service does not start without a configuration
set -euo pipefail
for_what=${1:?usage: setup.sh demo|tools|test|bench|drivers}
case $for_what in
    demo | tools | test | bench | drivers) ;;
    *)
        echo "usage: setup.sh demo|tools|test|bench|drivers" >&2
        exit 2
        ;;
esac
if [[ $for_what == test && $(id -u) -ne 0 ]]; then
    echo "holdfast: the end-to-end tests need root, for network namespaces and file systems of" \
        "their own: run this as root, or 'make lint unit race', which need none" >&2
    exit 1
fi

# Packages' servers do not start while this file forbids it. The second line of one that this script
# makes has its pid: where that runs no more it was killed, and what it left would forbid for ever.
policy=/usr/sbin/policy-rc.d
policy_mark="# holdfast: scripts/setup.sh, pid"
if [[ -f $policy ]]; then
    line=
    { read -r _ && read -r line; } <"$policy" || true
    if [[ $line == "$policy_mark "* && ! -e /proc/${line##* } ]]; then
        rm -f "$policy" 2>/dev/null || true # a plain user installs nothing
    fi
fi

# pg_bin prints the newest directory that has every program the agent and the tests run.
pg_bin() {
    local dir program
    for dir in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -t/ -k5 -rV) \
        "$(dirname "$(command -v postgres || echo /nonexistent/postgres)")"; do
        for program in postgres initdb pg_ctl pg_controldata pg_basebackup pg_rewind psql \
            pgbench; do
            [[ -x $dir/$program ]] || continue 2
        done
        echo "$dir"
        return
    done
    return 1
}

missing=()
pg_bin >/dev/null || missing+=(postgresql)
if [[ $for_what == bench ]]; then
    [[ -x /usr/sbin/haproxy ]] || missing+=(haproxy)
    [[ -x /usr/sbin/pgbouncer ]] || missing+=(pgbouncer)
fi
if [[ $for_what == tools || $for_what == test || $for_what == drivers ]]; then
    command -v ip >/dev/null || [[ -x /sbin/ip ]] || missing+=(iproute2)
    command -v ps >/dev/null || missing+=(procps)
    [[ -x /sbin/mkfs.ext4 ]] || missing+=(e2fsprogs)
    [[ -x /sbin/fsfreeze ]] || missing+=(util-linux)
    command -v mount >/dev/null || missing+=(mount)
    command -v gcc >/dev/null || missing+=(gcc libc6-dev)
    command -v openssl >/dev/null || missing+=(openssl)
    command -v git >/dev/null || missing+=(git)
    command -v shellcheck >/dev/null || missing+=(shellcheck)
    [[ -x /usr/sbin/pgbouncer ]] || missing+=(pgbouncer)
    for module in psycopg2 psycopg asyncpg; do
        /usr/bin/python3 -c "import $module" 2>/dev/null || missing+=("python3-$module")
    done
fi
if [[ $for_what == test ]]; then
    [[ -x /usr/bin/patroni && -x /usr/bin/patronictl ]] || missing+=(patroni)
    /usr/bin/python3 -c "import pysyncobj" 2>/dev/null || missing+=(python3-pysyncobj)
fi
if [[ $for_what == drivers ]]; then
    [[ -r /usr/share/java/postgresql.jar ]] || missing+=(libpostgresql-jdbc-java)
    command -v javac >/dev/null || missing+=(default-jdk-headless)
    command -v npm >/dev/null || missing+=(npm)
fi
[[ ${#missing[@]} -gt 0 ]] || exit 0

if [[ $(id -u) -ne 0 ]] || ! command -v apt-get >/dev/null; then
    echo "holdfast: please install: ${missing[*]} (on Debian: sudo apt-get install" \
        "${missing[*]}; 'make setup' as root does it and starts no server)" >&2
    exit 1
fi

# Debian's package starts a server on port 5432 unless it is told not to before it is installed.
# The file goes away afterwards, so that later packages do what the machine's owner expects.
dropin=/etc/postgresql-common/createcluster.d/holdfast-setup.conf
made_policy=
cleanup() {
    rm -f "$dropin"
    [[ -z $made_policy ]] || rm -f "$policy"
    rmdir --ignore-fail-on-non-empty "${dropin%/*}" 2>/dev/null || true
}
trap cleanup EXIT
# With a handler bash waits for apt, which has the signal too, before it runs the trap for EXIT.
trap 'exit 130' INT TERM
mkdir -p "${dropin%/*}"
echo "create_main_cluster = false" >"$dropin"
if [[ ! -e $policy ]]; then
    made_policy=yes
    printf '#!/bin/sh\n%s %s\nexit 101\n' "$policy_mark" $$ >"$policy"
    chmod 755 "$policy"
fi

export DEBIAN_FRONTEND=noninteractive
install=(apt-get install -y -q --no-install-recommends -o DPkg::Lock::Timeout=300)
echo "holdfast: installing ${missing[*]}" >&2
log=$(mktemp)
if ! "${install[@]}" "${missing[@]}" >"$log" 2>&1; then
    # The package lists may be old or not there yet.
    if ! { apt-get update -q && "${install[@]}" "${missing[@]}"; } >>"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        echo "holdfast: could not install ${missing[*]}; see above" >&2
        exit 1
    fi
fi
rm -f "$log"
if ! pg_bin >/dev/null; then
    echo "holdfast: PostgreSQL was installed, but not all of its programs were found" >&2
    exit 1
fi
