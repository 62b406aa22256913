#!/usr/bin/env bash
# Installs what building and running Larder needs and this machine lacks. Says what it does.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
        say "'$*' needs root, and there is no sudo: run it as root, then try again"
        exit 1
    fi
}

# command -> Debian package
missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need cc gcc
need make make
need mold mold
need git git
need curl curl
need jq jq
need python3 python3
need unzip unzip
need redis-server redis-server
need redis-cli redis-tools
python3 -c 'import pip' 2>/dev/null || missing+=(python3-pip)
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)

if [ ${#missing[@]} -gt 0 ]; then
    if ! command -v apt-get >/dev/null; then
        say "these are missing and there is no apt-get here; install them and try again: ${missing[*]}"
        exit 1
    fi
    say "installing ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
    # Debian starts a server of its own with the package; Larder starts its own.
    if [[ " ${missing[*]} " = *" redis-server "* ]] && [ -d /run/systemd/system ]; then
        say "disabling the system's own redis-server service, which came with the package"
        as_root systemctl disable --now redis-server.service >/dev/null 2>&1 || true
    fi
fi

if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
    PATH="$HOME/.cargo/bin:$PATH"
fi
# The oldest Rust that builds this, and whether the one on this machine is older.
wanted=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
rust_is_old() {
    local have
    have=$(rustc --version 2>/dev/null | cut -d' ' -f2)
    [ "$(printf '%s\n' "$wanted" "$have" | sort -V | head -n 1)" != "$wanted" ]
}
if command -v rustup >/dev/null && rust_is_old; then
    say "updating Rust: this needs $wanted or later"
    rustup toolchain install stable --profile minimal --component rustfmt,clippy >&2
elif ! command -v cargo >/dev/null || rust_is_old; then
    say "installing Rust by rustup"
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal --component rustfmt,clippy >&2
fi
