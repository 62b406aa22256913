#!/usr/bin/env bash
# Makes the file system of the image of one engine in DIR: the server's binary, `larder`, and the
# shared libraries that the two need, taken from this machine. LARDER_TEST_ENGINES names a folder
# with engines that the system does not have (scripts/engines.sh). With `-` for the engine there is
# `larder` alone: the image of the control plane.
set -euo pipefail

engine=${1:?usage: rootfs.sh ENGINE|- LARDER_BINARY DIR}
larder=${2:?usage: rootfs.sh ENGINE|- LARDER_BINARY DIR}
dir=${3:?usage: rootfs.sh ENGINE|- LARDER_BINARY DIR}

say() { printf 'rootfs: %s\n' "$*" >&2; }

family=${engine%%-*}
series=${engine#*-}
server=${LARDER_TEST_ENGINES:+$LARDER_TEST_ENGINES/$engine/$family-server}
if [ "$engine" != - ] && [ ! -x "${server:-}" ]; then
    server=$(command -v "$family-server" || true)
    if [ -z "$server" ] || ! "$server" --version | grep -q "v=$series\."; then
        say "there is no server of $engine: not in LARDER_TEST_ENGINES, and not on PATH"
        exit 1
    fi
fi

rm -rf "$dir"
mkdir -p "$dir/opt/larder/bin" "$dir/etc/larder" "$dir/data" "$dir/tmp"
chmod 1777 "$dir/tmp"
[ "$engine" = - ] || install -m 0755 "$(readlink -f "$server")" "$dir/opt/larder/bin/server"
install -m 0755 "$larder" "$dir/opt/larder/bin/larder"
# Debug symbols are half a gigabyte in a debug build.
strip --strip-debug "$dir/opt/larder/bin/larder"

# What they are linked with, at the places where the loader looks.
for binary in "$dir"/opt/larder/bin/*; do
    ldd "$binary" | awk '/=> \// {print $3} /^[[:space:]]*\/.*ld-linux/ {print $1}'
done | sort -u | while read -r library; do
    install -D -m 0755 "$(readlink -f "$library")" "$dir$library"
done

# Names resolve by DNS, and by what the kubelet writes into /etc/hosts.
for library in libnss_dns.so.2 libnss_files.so.2; do
    # Read to its end: ldconfig would die of a reader that leaves early.
    found=$(ldconfig -p | awk -v name="$library" '$1 == name && !found {found = $NF} END {print found}')
    [ -z "$found" ] || install -D -m 0755 "$(readlink -f "$found")" "$dir$found"
done
# The command line may speak to another Larder, behind TLS.
authorities=/etc/ssl/certs/ca-certificates.crt
if [ "$engine" = - ] && [ -r "$authorities" ]; then install -D -m 0644 "$authorities" "$dir$authorities"; fi
printf 'hosts: files dns\n' > "$dir/etc/nsswitch.conf"
printf 'larder:x:65532:65532::/data:/nonexistent\n' > "$dir/etc/passwd"
printf 'larder:x:65532:\n' > "$dir/etc/group"
