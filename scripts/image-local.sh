#!/usr/bin/env bash
# Builds both images without a registry and without a daemon, as root: a base by debootstrap, a
# builder of that base and this machine's Go, then the Dockerfile by buildah. The images are
# started once, and stay in buildah's storage; the builder goes away.
# Usage: scripts/image-local.sh VERSION
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:?usage: image-local.sh VERSION}
suite=${SUITE:-bookworm}
mirror=${MIRROR:-}

# chroot isolation needs no namespaces, so it works inside a container too.
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot}

base=localhost/holdfast-base:$suite
builder=localhost/holdfast-builder:$suite
if ! buildah inspect --type image "$base" >/dev/null 2>&1; then
    scripts/image-base.sh "$base" "$suite" "$mirror" ca-certificates
fi

# The builder: the base and Go as it is on this machine. Listing the dependencies downloads what
# the build needs of the modules.
CGO_ENABLED=0 go list -deps -tags hashicorpmetrics ./cmd/holdfast >/dev/null
container=$(buildah from --pull-never "$base")
cleanup() {
    buildah rm "$container" >/dev/null 2>&1 || true
    buildah rmi "$builder" >/dev/null 2>&1 || true
}
trap cleanup EXIT
buildah add -q "$container" "$(go env GOROOT)" /usr/local/go >/dev/null
modules=$(go env GOMODCACHE)/cache/download
buildah config --env PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin \
    --env GOTOOLCHAIN=local "$container"
buildah commit -q --rm "$container" "$builder" >/dev/null

# The machine's downloaded modules are mounted as a module proxy of files: the build itself needs
# no network, and the layers do not carry them. go.sum still checks every one.
common=(--pull-never --build-arg "BUILDER=$builder" --build-arg "BASE=$base"
    --build-arg "DATABASE_BASE=$base" --build-arg "VERSION=$version"
    --build-arg GOPROXY=file:///modules
    --volume "$modules:/modules:ro")
# What is run in the image: a sidecar, and in the database image a group of one node. The base made
# here has a shell, unlike the one of a registry.
# shellcheck disable=SC2016 # expanded inside the image
start='
    dir=$(mktemp -d)
    cd "$dir"
    holdfast init --dir pki --node node=127.0.0.1 --node app=127.0.0.1 >/dev/null
    name=node roles="postgres: {secrets_dir: $dir/pki/secrets}"
    [ "$1" = database ] || name=app roles="raft: {enabled: false}
postgres: {enabled: false}"
    cat >config.yaml <<EOF
name: $name
data_dir: /var/lib/holdfast/try
group:
  nodes: [{name: node, address: "127.0.0.1:17400", postgres: "127.0.0.1:17432"}]
  tls: {ca_file: $dir/pki/ca.crt, cert_file: $dir/pki/$name.crt, key_file: $dir/pki/$name.key}
$roles
proxy: {listen: ["127.0.0.1:16432"], lookup_password_file: $dir/pki/secrets/lookup}
http: {listen: "127.0.0.1:17401"}
EOF
    holdfast config check -q -c config.yaml
    holdfast serve -c config.yaml >log 2>&1 &
    node=$!
    url=127.0.0.1:17401
    for i in $(seq 300); do
        if holdfast status --ready --url $url >/dev/null 2>&1 && { [ "$1" = holdfast ] ||
            holdfast status --url $url | grep -q ":17432 *primary"; }; then
            break
        fi
        kill -0 $node 2>/dev/null && [ "$i" -lt 300 ] || { cat log; exit 1; }
        sleep 0.1
    done
    kill $node
    wait $node || { cat log; exit 1; }
    echo "served as $1, user $(id -u)"
    if [ "$1" = database ]; then
        pid=$(head -1 /var/lib/holdfast/try/postgres/data/postmaster.pid 2>/dev/null || true)
        [ -z "$pid" ] || kill -QUIT "$pid"
    fi
'
for target in holdfast database; do
    name=localhost/holdfast
    [[ $target == holdfast ]] || name+=-$target
    buildah build -q "${common[@]}" --target "$target" -t "$name:$version" . >/dev/null
    container=$(buildah from --pull-never "$name:$version")
    buildah run "$container" -- /usr/local/bin/holdfast version
    if [[ $target == database ]]; then
        # shellcheck disable=SC2016 # expanded inside the image
        buildah run "$container" -- sh -c '/usr/lib/postgresql/*/bin/postgres --version; id -un'
    fi
    # As the image's own user: configuration, volume and ports, up to the answer that it lives.
    buildah run "$container" -- sh -euc "$start" sh "$target"
    buildah rm "$container" >/dev/null
    echo "built $name:$version"
done
