#!/usr/bin/env bash
# Installs what the test bed needs and this machine lacks: Debian's containerd, runc, CNI plugins and tools, buildah for
# images, and Go. Says what it does.
set -euo pipefail

say() { printf 'testbed-setup: %s\n' "$*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
        say "'$*' needs root, and there is no sudo: run it as root, then try again"
        exit 1
    fi
}

PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need containerd containerd
need runc runc
need nft nftables
need ip iproute2
need conntrack conntrack
need buildah buildah
[ -x /usr/lib/cni/ptp ] || missing+=(containernetworking-plugins)

if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        say "these are missing and there is no apt-get here; install them and try again: ${missing[*]}"
        exit 1
    fi
    say "installing ${missing[*]}"
    as_root apt-get update -qq
    # The package starts a containerd of its own. Workers start theirs, and a machine that had none before should have
    # none running afterwards either.
    if [[ " ${missing[*]} " = *" containerd "* ]] && [ -d /run/systemd/system ]; then
        as_root systemctl mask --runtime containerd.service >/dev/null 2>&1 || true
        trap 'as_root systemctl unmask --runtime containerd.service >/dev/null 2>&1 || true; as_root systemctl disable containerd.service >/dev/null 2>&1 || true' EXIT
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

# The oldest Go that builds this. From 1.21 on, Go fetches a newer one by itself where a module asks for it.
wanted=$(awk '$1 == "go" {print $2}' "$(dirname "$0")/../testbed/go.mod")
new_enough() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }
have=$(command -v go >/dev/null && go env GOVERSION | sed 's/^go//' || true)
if [ -z "$have" ] || ! new_enough 1.21 "$have"; then
    from=() release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    candidate=$(apt-cache policy golang-go | awk '/Candidate:/ {sub(/^[0-9]+:/, "", $2); sub(/[~+-].*/, "", $2); print $2}')
    if ! new_enough 1.21 "${candidate:-0}"; then
        say "Debian $release has Go ${candidate:-none}, and this needs $wanted: adding its backports for Go alone"
        mirror=$(awk '/^URIs:/ && !/security/ {print $2; exit} /^deb / && !/security/ {for (i=2;i<=NF;i++) if ($i ~ /^https?:/) {print $i; exit}}' \
            /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true)
        printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s-backports main\n' "${mirror:?this machine names no Debian mirror}" "$release" |
            as_root tee /etc/apt/sources.list.d/larder-testbed-backports.list >/dev/null
        as_root apt-get update -qq
        from=(-t "$release-backports")
    fi
    say "installing Go"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ${from[@]+"${from[@]}"} golang-go >/dev/null
    have=$(go env GOVERSION | sed 's/^go//')
fi
new_enough "$wanted" "$have" || [ "$(go env GOTOOLCHAIN)" != local ] || {
    say "Go $have is older than $wanted and may not fetch a newer one (GOTOOLCHAIN=local)"
    exit 1
}
