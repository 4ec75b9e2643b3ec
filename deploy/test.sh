#!/bin/bash
# Every check there is, on a machine that has nothing yet (deploy/setup.sh is the first stage). Prints each stage's time.
# Root: the end-to-end tests open simulated hosts. No test is skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stages=()
stage() {
    local name=$1 from=$SECONDS
    shift
    printf '\n==== %s: %s\n' "$name" "$*"
    "$@"
    stages+=("$(printf '%-22s %5d s' "$name" $((SECONDS - from)))")
    printf '==== %s took %d s\n' "$name" $((SECONDS - from))
}

[ -r "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
export DECAMP_PROFILE=dev
stage set-up deploy/setup.sh
# One end-to-end test moves a Java heap.
command -v javac >/dev/null || stage java env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends openjdk-17-jdk-headless
stage format cargo fmt --check
stage lints cargo clippy --locked --all-targets -- -D warnings
stage documentation env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
stage tests cargo test --locked

printf '\nall passed:\n'
printf '  %s\n' "${stages[@]}"
printf '  %-22s %5d s\n' total "$SECONDS"
