#!/bin/bash
# The demonstration: two simulated hosts on this machine, Redis and a process tree moved there and back while a client counts.
# Sets up whatever is missing first (deploy/setup.sh). Arguments go to `decamp demo`; the exit code is its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Measured, so optimised.
export DECAMP_PROFILE=${DECAMP_PROFILE:-release}
deploy/setup.sh
case $DECAMP_PROFILE in dev) folder=debug ;; *) folder=$DECAMP_PROFILE ;; esac
exec "${CARGO_TARGET_DIR:-target}/$folder/decamp" demo "$@"
