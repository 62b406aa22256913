#!/usr/bin/env bash
# Installs what the test bed needs and this machine lacks: Debian's containerd, runc, CNI plugins and tools, buildah for
# images, and Go. Says what it does.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"

PATH=$PATH:/usr/sbin:/sbin:/usr/local/go/bin
need containerd containerd
need runc runc
need nft nftables
need ip iproute2
need conntrack conntrack
need buildah buildah
[ -x /usr/lib/cni/ptp ] || missing+=(containernetworking-plugins)

[ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"

# The oldest Go that builds this. From 1.21 on, Go fetches a newer one by itself where a module asks for it.
wanted=$(awk '$1 == "go" {print $2}' "$here/../testbed/go.mod")
new_enough() { [ "$(printf '%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }
have=$(command -v go >/dev/null && go env GOVERSION | sed 's/^go//' || true)
if [ -z "$have" ] || ! new_enough 1.21 "$have"; then
    from=() release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    candidate=$(apt-cache policy golang-go | awk '/Candidate:/ {sub(/^[0-9]+:/, "", $2); sub(/[~+-].*/, "", $2); print $2}')
    if ! new_enough 1.21 "${candidate:-0}"; then
        say "Debian $release has Go ${candidate:-none}, and this needs $wanted: adding its backports for Go alone"
        mirror=$(debian_mirror)
        if [ -z "$mirror" ]; then
            say "Go $wanted comes from Debian's backports, and apt on this machine knows no Debian mirror"
            exit 1
        fi
        printf 'deb %s %s-backports main\n' "$mirror" "$release" >"$scratch/backports.list"
        as_root install -m 644 "$scratch/backports.list" /etc/apt/sources.list.d/larder-testbed-backports.list
        from=(-t "$release-backports")
    fi
    install_packages ${from[@]+"${from[@]}"} golang-go
    have=$(go env GOVERSION | sed 's/^go//')
fi
new_enough "$wanted" "$have" || [ "$(go env GOTOOLCHAIN)" != local ] || {
    say "Go $have is older than $wanted and may not fetch a newer one (GOTOOLCHAIN=local)"
    exit 1
}
