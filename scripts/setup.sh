#!/usr/bin/env bash
# Installs what building and running Larder needs and this machine lacks. Says what it does.
set -euo pipefail
cd "$(dirname "$0")/.."

# shellcheck source-path=SCRIPTDIR source=lib.sh
. scripts/lib.sh

need cc gcc
need make make
need mold mold
need git git
need curl curl
need jq jq
need python3 python3
need unzip unzip
need kill procps
need redis-server redis-server
need redis-cli redis-tools
python3 -c 'import pip' 2>/dev/null || missing+=(python3-pip)
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
[ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"

# As in the Makefile: some services and containers run without HOME.
export HOME="${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}"
PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"

# The oldest version that builds this is also the one installed where there is none: newer ones bring
# more lints, on which `make test` would fail.
oldest=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
channel=$oldest.0
rust_is_old() { # or there is none
    local have
    have=$(RUSTUP_AUTO_INSTALL=0 rustc --version 2>/dev/null | cut -d' ' -f2) || true
    [ "$(printf '%s\n' "$oldest" "$have" | sort -V | head -n 1)" != "$oldest" ]
}

# The installer's script, from its short address or from the place where rustup itself comes from,
# which RUSTUP_UPDATE_ROOT moves to a mirror.
fetch_rustup() {
    local from root=${RUSTUP_UPDATE_ROOT:-https://static.rust-lang.org/rustup}
    local places=(https://sh.rustup.rs "$root/rustup-init.sh")
    [ -z "${RUSTUP_UPDATE_ROOT:-}" ] || places=("$root/rustup-init.sh")
    for from in "${places[@]}"; do
        if curl -sSfL --retry 2 --connect-timeout 20 -o "$scratch/rustup-init.sh" "$from" 2>>"$scratch/curl"; then
            return 0
        fi
    done
    cat "$scratch/curl" >&2
    return 1
}

if type -P rustup >/dev/null; then
    if rust_is_old; then
        say "installing Rust $channel by rustup, for this folder"
        rustup toolchain install "$channel" --profile minimal --component rustfmt,clippy >&2 &&
            rustup override set "$channel" >&2 || true
    fi
elif rust_is_old; then
    say "installing Rust $channel by rustup into ${RUSTUP_HOME:-$HOME/.rustup} and ${CARGO_HOME:-$HOME/.cargo}"
    fetch_rustup && RUSTUP_INIT_SKIP_PATH_CHECK=yes sh "$scratch/rustup-init.sh" -q -y \
        --profile minimal --default-toolchain "$channel" --component rustfmt,clippy >&2 || true
    hash -r
fi
if rust_is_old; then
    say "there is still no Rust $oldest or later here: install it from https://rustup.rs, then try again"
    exit 1
fi
