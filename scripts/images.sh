#!/usr/bin/env bash
# Builds one image per engine with buildah, without any registry, and writes each as an archive:
# target/images/larder-ENGINE.tar, to be loaded as localhost/larder-ENGINE:TAG.
# LARDER_IMAGE_ENGINES, LARDER_IMAGE_TAG and LARDER_IMAGE_BINARY choose otherwise.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$here/target/images}
binary=${LARDER_IMAGE_BINARY:-$here/target/release/larder}
tag=${LARDER_IMAGE_TAG:-latest}
engines=${LARDER_IMAGE_ENGINES:-redis-6.2 redis-7.0 valkey-8.0 valkey-9.1}
export LARDER_TEST_ENGINES=${LARDER_TEST_ENGINES:-$here/target/engines}

command -v buildah >/dev/null || { echo "images: buildah is missing: apt-get install buildah" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"
# A store of its own: nothing is left in the machine's.
buildah=(buildah --root "$work/root" --runroot "$work/run" --storage-driver vfs)
version=$("$binary" --version | awk '{print $2}')

for engine in $engines; do
    context=$work/$engine
    mkdir -p "$context"
    "$here/packaging/images/rootfs.sh" "$engine" "$binary" "$context/rootfs"
    engine_version=$("$context/rootfs/opt/larder/bin/server" --version | grep -o 'v=[0-9.]*' | cut -c3-)
    image=localhost/larder-$engine:$tag
    # The same files make the same image: no times of the build.
    "${buildah[@]}" bud --quiet --isolation chroot --timestamp 0 \
        --build-arg "ENGINE=$engine" --build-arg "ENGINE_VERSION=$engine_version" \
        --build-arg "LARDER_VERSION=$version" \
        --file "$here/packaging/images/Containerfile" --tag "$image" "$context" >/dev/null
    rm -f "$out/larder-$engine.tar"
    "${buildah[@]}" push --quiet "$image" "docker-archive:$out/larder-$engine.tar:$image" >/dev/null
    rm -rf "$context"
    printf 'images: %s (%s) in %s\n' "$image" "$engine_version" "$out/larder-$engine.tar" >&2
done
