#!/usr/bin/env bash
# Installs the Debian packages that the given commands come from, and says which and why. Nothing is done when all are there.
# usage: packages.sh COMMAND...
set -euo pipefail

package_of() {
  case $1 in
    cc) echo build-essential "compiles the C parts of the cipher library" ;;
    nft) echo nftables "NAT routers of the lab, and the agent's own rules" ;;
    iptables) echo iptables "hosts whose firewall is iptables" ;;
    conntrack) echo conntrack "lets a router of the lab forget its flows" ;;
    ip) echo iproute2 "network namespaces, links, routes" ;;
    sysctl) echo procps "tells the settings of the kernel" ;;
    setpriv | nsenter) echo util-linux "starts programs inside the lab, and ends them with it" ;;
    containerd) echo containerd "runs the containers of real clusters" ;;
    runc) echo runc "starts containers" ;;
    cni-plugins) echo containernetworking-plugins "gives pods their network" ;;
    apt-get | dpkg-deb) echo apt "takes programs for the agent's image out of packages" ;;
    musl-gcc) echo musl-tools "compiles the C parts of static programs" ;;
    ping) echo iputils-ping "to look around in the pods" ;;
    nginx | haproxy) echo "$1" "stands before a relay as an ingress controller does" ;;
    *) echo "packages.sh: no package known for $1" >&2; exit 2 ;;
  esac
}

missing=()
for command in "$@"; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$command" >/dev/null || [ -x "/usr/lib/cni/bridge" -a "$command" = cni-plugins ] || missing+=("$command")
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "these commands are missing, and this is not Debian or Ubuntu; install them and try again: ${missing[*]}" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  echo "these commands are missing: ${missing[*]}; run as root, or install their packages and try again" >&2
  exit 1
fi
packages=()
for command in "${missing[@]}"; do
  read -r package why < <(package_of "$command")
  echo "installing $package: $why"
  packages+=("$package")
done

# The lab starts what it needs itself, in namespaces. So no service of a new package is started now, unless a policy of this
# machine already says what is (see invoke-rc.d(8)), and none with the machine.
policy=/usr/sbin/policy-rc.d
log=$(mktemp)
if [ -e "$policy" ]; then
  trap 'rm -f "$log"' EXIT
else
  trap 'rm -f "$log" "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
fi
if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
  cat "$log" >&2
  exit 1
fi

for package in "${packages[@]}"; do
  case $package in
    nginx | haproxy | containerd)
      if command -v systemctl >/dev/null; then
        systemctl --quiet disable "$package.service" || true
      elif [ -e "/etc/init.d/$package" ]; then
        update-rc.d "$package" disable || true
      fi
      ;;
  esac
done >/dev/null 2>&1
