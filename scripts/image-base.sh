#!/usr/bin/env bash
# Makes a base image out of Debian's packages by debootstrap, where there is no registry.
# Usage: scripts/image-base.sh IMAGE [SUITE [MIRROR [extra packages, comma between]]]
# Runs as root; needs debootstrap and buildah. Without a mirror, that of the machine is used.
set -euo pipefail
image=${1:?usage: image-base.sh IMAGE [SUITE [MIRROR [PACKAGES]]]}
suite=${2:-bookworm}
mirror=${3:-}
packages=${4:-}

for tool in debootstrap buildah; do
    if ! command -v "$tool" >/dev/null; then
        echo "holdfast: please install $tool (on Debian: apt-get install debootstrap buildah)" >&2
        exit 1
    fi
done

root=$(mktemp -d)
log=$root.log
container=
cleanup() {
    [[ -z $container ]] || buildah rm "$container" >/dev/null 2>&1 || true
    # debootstrap mounts /proc there while it works; one that was interrupted leaves it mounted.
    umount --recursive "$root/proc" "$root/sys" 2>/dev/null || true
    rm -rf --one-file-system "$root" "$log"
}
trap cleanup EXIT
options=(--variant=minbase)
[[ -z $packages ]] || options+=("--include=$packages")
if ! debootstrap "${options[@]}" "$suite" "$root" ${mirror:+"$mirror"} >"$log" 2>&1; then
    tail -20 "$log" >&2
    exit 1
fi
# What a base does not need: package caches, documentation, translations.
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log \
    "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/locale/* "$root"/tmp/*

container=$(buildah from scratch)
buildah add -q "$container" "$root" / >/dev/null
buildah config --cmd /bin/bash "$container"
buildah commit -q --rm "$container" "$image" >/dev/null
container=
echo "$image"
