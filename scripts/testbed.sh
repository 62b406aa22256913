#!/usr/bin/env bash
# The test bed's program: built from testbed/ when this version of it is not in the cache, then run with the arguments
# given. `testbed.sh build` only builds, and prints where the program is.
#
# The cache is outside of the tree, so that a clean tree or another clone does not build it again: a cold build takes
# several minutes on two cores, and links all of Kubernetes. Its key is the hash of the sources, this script and Go.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cache=${LARDER_TESTBED_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/larder/testbed}
export LARDER_TESTBED_DIR=${LARDER_TESTBED_DIR:-$root/target/testbed}
PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin

say() { printf 'testbed: %s\n' "$*" >&2; }

command -v go >/dev/null || { say "there is no Go on this machine: scripts/testbed-setup.sh installs it"; exit 1; }

hash=$(
    cd "$root"
    {
        go env GOVERSION GOARCH
        find testbed \( -name '*.go' -o -name go.mod -o -name go.sum \) ! -name '*_test.go' -print0 | sort -z | xargs -0 sha256sum
        sha256sum scripts/testbed.sh
    } | sha256sum | cut -c1-16
)
bin=$cache/$hash

build() {
    # Kubernetes says its version by variables set here; the one in go.mod is the truth.
    local version minor flags package
    version=$(awk '$1 == "k8s.io/kubernetes" {print $2}' "$root/testbed/go.mod")
    minor=$(cut -d. -f2 <<<"$version")
    flags="-s -w"
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
        flags+=" -X $package.gitTreeState=clean -X $package.gitCommit=none -X $package.buildDate=1970-01-01T00:00:00Z"
    done
    local new=$bin.new
    rm -rf "$new"
    mkdir -p "$new"
    say "building the test bed for Kubernetes $version; the first time takes minutes"
    export CGO_ENABLED=0
    (cd "$root/testbed" && go build -trimpath -buildvcs=false -ldflags "$flags" -o "$new/testbed" .)
    (cd "$root/testbed" && go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$new/" ./pause ./probe)
    (cd "$root/testbed/coredns" && go build -trimpath -buildvcs=false -ldflags "-s -w" -o "$new/coredns" .)
    ln -s testbed "$new/kubectl"
    # Whole or not at all; then the older ones go, but for those a day young, which another clone may use.
    mv "$new" "$bin"
    find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "$hash*" -mtime +1 -exec rm -rf {} +
}

if [ ! -x "$bin/testbed" ]; then
    mkdir -p "$cache"
    # One at a time: two builds side by side would take as long as one after the other, and memory twice.
    exec 9>"$cache/lock"
    flock 9
    [ -x "$bin/testbed" ] || build
    exec 9>&-
fi

if [ "${1:-}" = build ]; then
    printf '%s\n' "$bin/testbed"
    exit 0
fi
if [ "$(id -u)" = 0 ]; then exec "$bin/testbed" "$@"; fi
# kubectl needs the kubeconfig alone; all else namespaces, and so root.
exec sudo LARDER_TESTBED_DIR="$LARDER_TESTBED_DIR" "$bin/testbed" "$@"
