# shellcheck shell=bash
# What the scripts that install something share; they source it. It gives them a folder for scratch, and takes
# the trap on EXIT for its removal.

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }

scratch=$(mktemp -d)
undo=()
finish() {
    [ ${#undo[@]} -eq 0 ] || "${undo[@]}"
    rm -rf "$scratch"
}
trap finish EXIT

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
        say "'$*' needs root, and there is no sudo: run it as root, then try again"
        exit 1
    fi
}

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

# Debian starts a server of its own with some packages (redis-server on port 6379, containerd); Larder and
# the test bed start theirs. So services are held back while packages are installed, by the file that Debian
# has for that.
hold_services() {
    local policy=/usr/sbin/policy-rc.d
    [ ! -e "$policy" ] || return 0
    printf '#!/bin/sh\nexit 101\n' >"$scratch/policy"
    undo=(as_root rm -f "$policy")
    as_root install -m 755 "$scratch/policy" "$policy"
}

# The service is not started with the machine either.
leave_off() { # SERVICE
    say "the system's own $1 service, which came with the package, is left switched off"
    if [ -e "/etc/init.d/$1" ]; then
        quietly as_root update-rc.d "$1" disable || true
    elif command -v systemctl >/dev/null; then
        quietly as_root systemctl disable "$1.service" || true
    fi
}

install_packages() { # [-t RELEASE] PACKAGE...
    local from=() packages command service services=()
    if [ "$1" = -t ]; then
        from=(-t "$2")
        shift 2
    fi
    packages=$*
    command="apt-get install --no-install-recommends ${from[*]+${from[*]} }$packages"
    if ! command -v apt-get >/dev/null; then
        say "these are missing, and there is no apt-get here: $packages; install them and try again"
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        if ! command -v sudo >/dev/null; then
            say "these packages are missing, and installing them needs root or sudo: $packages"
            say "as root run '$command', then try again"
            exit 1
        fi
        say "installing $packages (by sudo, which may ask for your password)"
        sudo -v || {
            say "sudo was refused: have '$command' run as root, then try again"
            exit 1
        }
    else
        say "installing $packages"
    fi
    for service in redis-server containerd; do
        case " $packages " in *" $service "*) services+=("$service") ;; esac
    done
    [ ${#services[@]} -eq 0 ] || hold_services
    # A machine that has just been started may be busy with its own updates.
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300)
    quietly as_root "${apt[@]}" update || say "the package lists could not all be updated; trying with those that are there"
    quietly as_root "${apt[@]}" install -y --no-install-recommends ${from[@]+"${from[@]}"} "$@" || {
        say "installing $packages failed: see apt-get's words above"
        exit 1
    }
    for service in ${services[@]+"${services[@]}"}; do leave_off "$service"; done
}

# The mirror that this machine uses for Debian's main archive, as a line of a sources list names it; nothing where
# there is none. Apt is asked for it, because there are several formats and places for such lists.
debian_mirror() {
    local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    # shellcheck disable=SC2016 # these names are for apt
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 2>/dev/null |
        awk '$2 !~ /-security$/ && $1 ~ /\/debian(\.list)?\/?$/ && !found {print $1; found = 1}') || true
    [ -n "$mirror" ] || return 0
    [ ! -e "$keyring" ] || mirror="[signed-by=$keyring] $mirror"
    printf '%s\n' "$mirror"
}
