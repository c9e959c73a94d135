#!/usr/bin/env bash
# Fetches and builds drivers' own tests, and PostgreSQL's, for `go test ./proxy -run TestSuites`:
# from Go modules, npm and Debian's source packages. No line of them is kept in this repository.
# What cannot be fetched is said, and left out.
# Usage: scripts/suites.sh DIR [libpq|sql]       as root, on Debian
# With libpq, whose tests come from a Go module, nothing else is fetched and nothing installed; with
# sql it is PostgreSQL's source alone, for its SQL files.
# SUITES_FROM is a directory with sources of your own, by the names of the suites, for what Debian
# does not have: SUITES_FROM/psycopg3, for example, a checkout of its repository.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=${1:?usage: suites.sh DIR [libpq|sql]}
only=${2:-}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
chmod 755 "$dir"
mirror=${MIRROR:-http://deb.debian.org/debian}

# module copies a Go module at the version that go.mod has.
module() { # NAME MODULE
    [[ -e $dir/$1 ]] && return
    local from
    go mod download "$2"
    from=$(go list -m -f '{{.Dir}}' "$2")
    cp -r "$from" "$dir/$1"
    chmod -R u+w "$dir/$1"
}

log=$dir/apt.log
keys=/usr/share/keyrings/debian-archive-keyring.gpg

# debian_source leaves the upstream source of a package in $dir/NAME, from the first of the
# releases that has it.
debian_source() { # NAME PACKAGE RELEASE...
    local name=$1 package=$2 release state
    shift 2
    [[ -e $dir/$name ]] && return
    for release in "$@"; do
        state=$dir/.apt/$release
        mkdir -p "$state/lists/partial" "$dir/.src"
        echo "deb-src [signed-by=$keys] $mirror $release main" >"$state/sources"
        local apt=(apt-get -q -o "Dir::Etc::sourcelist=$state/sources"
            -o Dir::Etc::sourceparts=/nonexistent -o "Dir::State::lists=$state/lists"
            -o APT::Sandbox::User=root)
        if [[ ! -e $state/updated ]]; then
            "${apt[@]}" update >>"$log" 2>&1 || continue
            touch "$state/updated"
        fi
        # Some of its files may be had though others cannot; what is wanted is the upstream one.
        (cd "$dir/.src" && "${apt[@]}" source --download-only "$package") >>"$log" 2>&1 || true
        local tar
        for tar in "$dir/.src/${package}"_*.orig.tar.*; do
            [[ -s $tar ]] || continue
            rm -rf "$dir/$name.new"
            mkdir "$dir/$name.new"
            tar -xf "$tar" --strip-components=1 -C "$dir/$name.new"
            mv "$dir/$name.new" "$dir/$name"
            return
        done
    done
    echo "holdfast: Debian's source of $package cannot be fetched: its tests are left out" >&2
    return 1
}

# postgresql_source fetches that of this machine's release: the tests are those of the very server.
postgresql_source() {
    local newest
    newest=$(printf '%s\n' /usr/lib/postgresql/*/bin/postgres | sort -V | tail -1)
    version=$(basename "$(dirname "$(dirname "$newest")")")
    debian_source postgresql "postgresql-$version" \
        "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)"
}

if [[ $only == sql ]]; then
    postgresql_source
    exit
fi

module libpq github.com/lib/pq
chmod 600 "$dir"/libpq/testdata/ssl/*.key
{
    echo 'CREATE ROLE pqgo SUPERUSER LOGIN; CREATE DATABASE pqgo OWNER pqgo;'
    grep -v '^alter system' "$dir/libpq/testdata/postgres/docker-entrypoint-initdb.d/20-config.sql"
} >"$dir/libpq/holdfast.sql"
[[ $only != libpq ]] || exit 0

if [[ $(id -u) -ne 0 ]]; then
    echo "holdfast: the suites install packages and need the user postgres: run this as root" >&2
    exit 1
fi

scripts/setup.sh drivers
version=$(printf '%s\n' /usr/lib/postgresql/*/bin/postgres | sort -V | tail -1)
version=$(basename "$(dirname "$(dirname "$version")")")
server_lib=/usr/lib/postgresql/$version/lib
packages=(gcc libc6-dev libpq-dev "postgresql-server-dev-$version" python3-dev
    python3-setuptools python3-pytest python3-pytest-asyncio libdbd-pg-perl)
install=(apt-get install -y -q --no-install-recommends "${packages[@]}")
"${install[@]}" >"$log" 2>&1 || { apt-get update -q && "${install[@]}"; } >>"$log" 2>&1 || {
    tail -20 "$log" >&2
    exit 1
}

# own takes a source that the caller has.
own() { # NAME
    [[ -n ${SUITES_FROM:-} && -d $SUITES_FROM/$1 && ! -e $dir/$1 ]] || return 0
    cp -r "$SUITES_FROM/$1" "$dir/$1"
}

certificates() { # FROM TO
    mkdir -p "$2"
    local f
    for f in "$1"/*.b64; do
        base64 -d "$f" >"$2/$(basename "$f" .b64)"
    done
    chmod 600 "$2"/*.key
}

for name in psycopg2 psycopg3 asyncpg node-postgres dbdpg postgresql; do
    own "$name"
done

module pgx github.com/jackc/pgx/v5
certificates "$dir/pgx/testsetup/certs" "$dir/pgx/certs"
cat >"$dir/pgx/holdfast.sql" <<'EOF'
CREATE DATABASE pgx_test;
\c pgx_test
\i testsetup/postgresql_setup.sql
EOF

if debian_source psycopg2 psycopg2 bookworm trixie forky sid; then
    cat >"$dir/psycopg2/holdfast.sql" <<'EOF'
CREATE DATABASE psycopg2_test;
\c psycopg2_test
CREATE EXTENSION hstore;
EOF
fi

debian_source psycopg3 psycopg3 bookworm trixie forky sid || true

if debian_source asyncpg asyncpg trixie forky sid; then
    if ! (cd "$dir/asyncpg" && /usr/bin/python3 setup.py build_ext --inplace) >>"$log" 2>&1; then
        tail -20 "$log" >&2
        exit 1
    fi
fi

if debian_source node-postgres node-postgres bookworm trixie forky sid; then
    pg=$dir/node-postgres/packages/pg
    release=$(node -p "require('$pg/package.json').version")
    own=$dir/node-postgres/holdfast # not the workspace, whose packages would have to be built
    mkdir -p "$own"
    npm install --no-audit --no-fund --prefix "$own" "pg@$release" async@2.6.4 bluebird@3.7.2 \
        co@4.6.0 pg-copy-streams@0.3.0 >>"$log" 2>&1
    cp -r "$pg/test" "$pg/script" "$own/node_modules/pg/"
    certificates "$dir/pgx/testsetup/certs" "$own/tls"
fi

debian_source dbdpg libdbd-pg-perl bookworm trixie forky sid || true

if postgresql_source; then
    src=$dir/postgresql/src
    flags=(-O1 -w "-I/usr/include/postgresql/$version/server" -I/usr/include/postgresql/internal
        -I/usr/include/postgresql "-I$src/include" -I. "-I$src/test/regress" "-I$dir/.include")
    libs=("-L$server_lib" -lpgfeutils -lpgcommon -lpgport -lpq -lm)
    mkdir -p "$dir/.include"
    cat >"$dir/.include/pg_config_paths.h" <<EOF
#define PGBINDIR "/usr/lib/postgresql/$version/bin"
#define PGSHAREDIR "/usr/share/postgresql/$version"
#define LIBDIR "/usr/lib"
#define PKGLIBDIR "$server_lib"
EOF
    driver=(-DHOST_TUPLE='"linux"' -DSHELLPROG='"/bin/sh"' -DDLSUFFIX='".so"'
        "$src/test/regress/pg_regress.c")
    cd "$src/test/regress"
    gcc "${flags[@]}" -fPIC -shared regress.c -o regress.so
    gcc "${flags[@]}" "${driver[@]}" pg_regress_main.c -o pg_regress "${libs[@]}"
    cp "$server_lib"/{autoinc,refint}.so .
    cd "$src/test/isolation"
    gcc "${flags[@]}" isolationtester.c specparse.c -o isolationtester "${libs[@]}"
    gcc "${flags[@]}" "${driver[@]}" isolation_main.c -o pg_isolation_regress "${libs[@]}"
    cd "$src/test/modules/libpq_pipeline"
    gcc "${flags[@]}" libpq_pipeline.c -o libpq_pipeline "${libs[@]}"
    chmod -R a+rwX "$src/test"
fi
