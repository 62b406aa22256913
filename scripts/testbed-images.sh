#!/usr/bin/env bash
# Builds images of a binary of Larder and loads them into all workers of the test bed in LARDER_TESTBED_DIR: the control
# plane's as localhost/larder:testbed, an engine's as localhost/larder-ENGINE:testbed. What the test bed has of this
# binary already is left alone.
#   testbed-images.sh BINARY ENGINE...
set -euo pipefail
# What ends it without a word of its own is told.
trap 'echo "images: line $LINENO failed" >&2' ERR
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
binary=${1:?usage: testbed-images.sh BINARY ENGINE...}
shift
engines=("$@")
export LARDER_TESTBED_DIR=${LARDER_TESTBED_DIR:-$root/target/testbed}
say() { printf 'images: %s\n' "$*" >&2; }

work=$(mktemp -d "${TMPDIR:-/tmp}/l-XXXXXX")
trap 'rm -rf "$work"' EXIT

# A worker without power would lack them when it is back.
off=$(scripts/testbed.sh status | awk '$3 == "off" || $3 == "cut" {print $1}')
if [ -n "$off" ]; then
    say "all workers have to be there, and these are not: $(tr '\n' ' ' <<<"$off")"
    exit 1
fi

# Each start of a test bed has keys of its own, so its kubeconfig says which one it is. What was loaded is written
# down outside of its folder, which may be root's; that of a test bed that was not used for days is forgotten.
bed=$(sha256sum "$LARDER_TESTBED_DIR/kubeconfig" | cut -c1-16)
loaded=$root/target/testbed-images/$bed
mkdir -p "$loaded"
touch "$loaded"
find "$root/target/testbed-images" -mindepth 1 -maxdepth 1 -mtime +3 -exec rm -r {} +
of_all=$({
    # A substitution does without it.
    set -e
    cat "$binary" scripts/images.sh packaging/images/*
    # Those of the system are not there.
    mkdir -p "${LARDER_TEST_ENGINES:=$root/target/engines}"
    find -H "$LARDER_TEST_ENGINES" -name '*-server' -type f -exec sha256sum {} + | sort
} | sha256sum | cut -c1-32)
missing=()
for engine in "${engines[@]}"; do
    [ "$(cat "$loaded/$engine" 2>/dev/null)" = "$of_all" ] || missing+=("$engine")
done
if [ ${#missing[@]} -eq 0 ] && [ "$(cat "$loaded/larder" 2>/dev/null)" = "$of_all" ]; then exit 0; fi

LARDER_IMAGE_ENGINES="${missing[*]}" LARDER_IMAGE_TAG=testbed LARDER_IMAGE_BINARY=$binary scripts/images.sh "$work"
for image in "$work"/*.tar; do
    scripts/testbed.sh image load "$image"
    name=$(basename "$image" .tar)
    printf '%s\n' "$of_all" >"$loaded/${name#larder-}"
    rm "$image"
done
