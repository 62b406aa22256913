#!/usr/bin/env bash
# Builds one image per engine, and the one of the control plane, with buildah, without any registry, and writes each as
# an archive: target/images/larder-ENGINE.tar, to be loaded as localhost/larder-ENGINE:TAG, and larder.tar (localhost/larder:TAG).
# The tag is the version of the binary, as the chart and bindings look for it by themselves. LARDER_IMAGE_ENGINES,
# LARDER_IMAGE_TAG and LARDER_IMAGE_BINARY choose otherwise.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$here/target/images}
binary=${LARDER_IMAGE_BINARY:-$here/target/release/larder}
engines=${LARDER_IMAGE_ENGINES-redis-6.2 redis-7.0 valkey-8.0 valkey-9.1}
export LARDER_TEST_ENGINES=${LARDER_TEST_ENGINES:-$here/target/engines}

command -v buildah >/dev/null || { echo "images: buildah is missing: apt-get install buildah" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
# A store of its own: nothing is left in the machine's.
buildah=(buildah --root "$work/root" --runroot "$work/run" --storage-driver vfs)
version=$("$binary" --version | awk '{print $2}')
tag=${LARDER_IMAGE_TAG:-$version}

build() { # name containerfile build-args...
    local name=$1 file=$2 image=localhost/$1:$tag context=$work/$1 args=() arg
    shift 2
    for arg in "LARDER_VERSION=$version" "$@"; do args+=(--build-arg "$arg"); done
    # The same files make the same image: no times of the build.
    "${buildah[@]}" bud --quiet --isolation chroot --timestamp 0 "${args[@]}" \
        --file "$here/packaging/images/$file" --tag "$image" "$context" >/dev/null
    rm -f "$out/$name.tar"
    "${buildah[@]}" push --quiet "$image" "docker-archive:$out/$name.tar:$image" >/dev/null
    rm -rf "$context"
    printf 'images: %s in %s\n' "$image" "$out/$name.tar" >&2
}

for engine in $engines; do
    context=$work/larder-$engine
    mkdir -p "$context"
    "$here/packaging/images/rootfs.sh" "$engine" "$binary" "$context/rootfs"
    engine_version=$("$context/rootfs/opt/larder/bin/server" --version | grep -o 'v=[0-9.]*' | cut -c3-)
    build "larder-$engine" Containerfile "ENGINE=$engine" "ENGINE_VERSION=$engine_version"
done
mkdir -p "$work/larder"
"$here/packaging/images/rootfs.sh" - "$binary" "$work/larder/rootfs"
build larder Containerfile.serve
