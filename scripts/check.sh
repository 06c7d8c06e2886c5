#!/usr/bin/env bash
# Format, lints, docs, the chart and dependencies.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

require_rust
scripts/packages.sh cc
step "format" cargo fmt --all --check
step "lints" cargo clippy --workspace --all-targets --locked -- -D warnings
step "each library alone" cargo check --locked -p derp --no-default-features
step "docs" env RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --document-private-items --locked
helm=${CULVERT_HELM:-$(kit_program helm)}
if [ -n "$helm" ]; then
  step "chart" scripts/chart.sh "$helm"
else
  echo "chart: not checked (no helm at hand: set CULVERT_HELM, or run scripts/clusters.sh)"
fi
deny=$(tool_cargo_deny)
step "dependencies: bans, licenses, sources" "$deny" --locked check --hide-inclusion-graph bans licenses sources
if compgen -G "${CARGO_HOME:-$HOME/.cargo}/advisory-db*/*" >/dev/null; then
  step "advisories" "$deny" --locked --offline check --hide-inclusion-graph advisories
else
  echo "advisories: not checked (no database at hand)"
fi
