#!/bin/bash
# Prepares a fresh Debian 12 machine (as root): packages, a check of the Rust toolchain, the build, the lab's root file system.
# Can be run again at any time; what is there is not done twice. The other scripts here begin with it.
#   DECAMP_PROFILE=dev|release   what to build (default dev: the profile the tests use, so nothing is built twice)
#   DECAMP_LAB_DIR=DIR           where the lab keeps its root file systems (default /var/lib/decamp/lab)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

rust_min=1.95
profile=${DECAMP_PROFILE:-dev}

say() { printf '== %s\n' "$*"; }
fail() { printf 'deploy/setup.sh: %s\n' "$*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "run it as root: hosts of the lab are made of namespaces, mounts and cgroups"
[ "$(uname -m)" = x86_64 ] || fail "decamp serves x86-64, this machine is $(uname -m)"

say "packages"
# program:package; asking dpkg would not notice a program that was put there by hand
wanted="debootstrap:debootstrap ip:iproute2 setsid:util-linux cc:gcc ld:binutils make:make ar:binutils git:git"
missing=
for pair in $wanted; do
    command -v "${pair%%:*}" >/dev/null || missing+=" ${pair#*:}"
done
[ -e /usr/include/stdio.h ] || missing+=" libc6-dev"
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=" ca-certificates"
[ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=" debian-archive-keyring"
if [ -n "$missing" ]; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    # shellcheck disable=SC2086 # a list of words
    apt-get install -q -y --no-install-recommends $missing
else
    echo "nothing to install"
fi
# The lab takes Debian's mirror from apt's lists.
[ -n "$(apt-get indextargets --format '$(FILENAME)' 'Created-By: Packages' | xargs -r ls -d 2>/dev/null | head -1)" ] || apt-get update -q

say "Rust toolchain"
[ -r "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
command -v cargo >/dev/null ||
    fail "cargo is not installed: install Rust $rust_min or newer for this user (rustup, as the Rust project's own page says), then run this again"
rust=$(rustc --version | cut -d' ' -f2)
[ "$(printf '%s\n' "$rust_min" "${rust%%-*}" | sort -V | head -1)" = "$rust_min" ] ||
    fail "Rust $rust is too old: $rust_min or newer is needed (rustup update stable), then run this again"
echo "Rust $rust"

say "build ($profile)"
cargo build --locked --profile "$profile"
target=${CARGO_TARGET_DIR:-target}
case $profile in dev) binary=$target/debug/decamp ;; *) binary=$target/$profile/decamp ;; esac

say "root file system of the lab"
"$binary" lab build
echo "ready: $binary"
