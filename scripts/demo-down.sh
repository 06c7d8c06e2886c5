#!/usr/bin/env bash
# Removes the demo that was left up, of hosts or of clusters.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

for profile in release debug; do
  lab=${CARGO_TARGET_DIR:-target}/$profile/culvert-lab
  [ ! -x "$lab" ] || exec "$lab" down
done
if demo_is_up; then
  echo "a demo is up, but ${CARGO_TARGET_DIR:-target} has no program to remove it: set CARGO_TARGET_DIR as it was then, or run make build" >&2
  exit 1
fi
echo "nothing is up"
