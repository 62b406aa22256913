#!/usr/bin/env bash
# Prints a folder with helm and kubeconform. Those of the machine are taken where there are both; else they are built
# once, by Go, into ~/.cache/larder/tools/VERSIONS (LARDER_TOOLS_CACHE names another place). Takes minutes the first time.
set -euo pipefail

helm=v3.22.0
kubeconform=v0.8.0
cache=${LARDER_TOOLS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/larder/tools}
PATH=$PATH:/usr/local/go/bin

say() { printf 'helm: %s\n' "$*" >&2; }
# What the tests use of it came with this one.
new_enough() {
    local have
    have=$("$1" version --template '{{.Version}}' 2>/dev/null | sed 's/^v//;s/[^0-9.].*//') || return 1
    [ "$(printf '3.18.0\n%s\n' "$have" | sort -V | head -n 1)" = 3.18.0 ]
}

own=$(command -v helm || true)
other=$(command -v kubeconform || true)
bin=$cache/helm-$helm-kubeconform-$kubeconform
if [ -n "$own" ] && [ -n "$other" ] && new_enough "$own"; then
    # One folder with just these two: what else lies beside them is nobody's business.
    bin=$cache/found
    mkdir -p "$bin"
    ln -sf "$own" "$other" "$bin/"
elif [ ! -x "$bin/helm" ] || [ ! -x "$bin/kubeconform" ]; then
    command -v go >/dev/null || { say "there is neither helm nor Go here: scripts/testbed-setup.sh installs Go"; exit 1; }
    mkdir -p "$cache"
    exec 9>"$cache/lock"
    flock 9
    if [ ! -x "$bin/helm" ] || [ ! -x "$bin/kubeconform" ]; then
        say "building helm $helm and kubeconform $kubeconform; this takes minutes, once"
        rm -rf "$bin.new"
        mkdir -p "$bin.new"
        CGO_ENABLED=0 GOBIN=$bin.new go install -trimpath -ldflags '-s -w' "helm.sh/helm/v3/cmd/helm@$helm"
        CGO_ENABLED=0 GOBIN=$bin.new go install -trimpath -ldflags '-s -w' \
            "github.com/yannh/kubeconform/cmd/kubeconform@$kubeconform"
        rm -rf "$bin"
        mv "$bin.new" "$bin"
    fi
    exec 9>&-
fi
printf '%s\n' "$bin"
