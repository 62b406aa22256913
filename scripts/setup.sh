#!/usr/bin/env bash
# Installs what building and running Larder needs and this machine lacks. Says what it does.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
scratch=$(mktemp -d)
undo=()
finish() {
    [ ${#undo[@]} -eq 0 ] || "${undo[@]}"
    rm -rf "$scratch"
}
trap finish EXIT

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# Runs a command without its chatter, which is shown when it fails.
quietly() {
    "$@" >"$scratch/output" 2>&1 || {
        cat "$scratch/output" >&2
        return 1
    }
}

# program -> Debian package; not what the shell has built in
missing=()
need() { type -P "$1" >/dev/null || missing+=("$2"); }
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

# Debian starts a server of its own, on port 6379, with the package; Larder starts its own. So
# services are held back while packages are installed, by the file that Debian has for that.
hold_services() {
    local policy=/usr/sbin/policy-rc.d
    [ ! -e "$policy" ] || return 0
    printf '#!/bin/sh\nexit 101\n' >"$scratch/policy"
    undo=(as_root rm -f "$policy")
    as_root install -m 755 "$scratch/policy" "$policy"
}

install_packages() {
    local packages=$*
    if ! command -v apt-get >/dev/null; then
        say "these are missing, and there is no apt-get here: $packages; install them and try again"
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            say "these packages are missing, and installing them needs root or sudo: $packages"
            say "as root run 'apt-get install --no-install-recommends $packages', then try again"
            exit 1
        fi
        say "installing $packages (by sudo, which may ask for your password)"
        sudo -v || {
            say "sudo was refused: have 'apt-get install --no-install-recommends $packages' run as root, then try again"
            exit 1
        }
    else
        say "installing $packages"
    fi
    case " $packages " in *" redis-server "*) hold_services ;; esac
    # A machine that has just been started may be busy with its own updates.
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
    quietly as_root "${apt[@]}" update || say "the package lists could not all be updated; trying with those that are there"
    quietly as_root "${apt[@]}" install -y --no-install-recommends "$@" || {
        say "installing $packages failed: see apt-get's words above"
        exit 1
    }
    case " $packages " in *" redis-server "*)
        say "the system's own redis-server service, which came with the package, is left switched off"
        quietly as_root update-rc.d redis-server disable || true
        ;;
    esac
}
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
