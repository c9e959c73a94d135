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
trap 'buildah rm "$container" >/dev/null 2>&1 || true' EXIT
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
    buildah rm "$container" >/dev/null
    echo "built $name:$version"
done
buildah rmi "$builder" >/dev/null
