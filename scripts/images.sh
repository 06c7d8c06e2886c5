#!/usr/bin/env bash
# The product's images as OCI archives, without a container engine: static programs, and what Debian has for the agent.
# usage: images.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

out=${1:-${CARGO_TARGET_DIR:-target}/images}
scripts/packages.sh cc musl-gcc apt-get dpkg-deb
target=$(uname -m)-unknown-linux-musl
rustup target list --installed | grep -qx "$target" || step "static target of Rust" rustup target add "$target"

packages=()
for package in culvert-operator culvert-relay culvert-agent; do
  if cargo pkgid --locked "$package" >/dev/null 2>&1; then
    packages+=(-p "$package")
  else
    echo "left out: there is no $package here"
  fi
done
step "static programs" cargo build --profile image --locked --target "$target" "${packages[@]}"
# The package lists tell which version of what goes in.
compgen -G "/var/lib/apt/lists/*_Packages*" >/dev/null || step "package lists" apt-get update
"$(lab_program)" images --programs "${CARGO_TARGET_DIR:-target}/$target/image" --out "$out"
