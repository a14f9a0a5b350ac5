#!/usr/bin/env bash
# Runs every test, on a fresh machine too: installs what the tests need and is not there.
#
# The tests start what they need themselves (Redis, replicas, a browser), on ports of their own; no
# service of the machine is used or touched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

missing() { ! command -v "$1" >/dev/null 2>&1; }

# The commands that the scenarios call, and the Debian packages that have them.
packages=()
missing redis-server && packages+=(redis-server)
missing chromedriver && packages+=(chromium-driver)
missing chromium && missing chromium-browser && missing google-chrome && packages+=(chromium)
missing node && packages+=(nodejs)
missing npm && packages+=(npm)
missing haproxy && packages+=(haproxy)
missing docker-compose && packages+=(docker-compose)
missing ps && packages+=(procps)
missing curl && packages+=(curl)
missing openssl && packages+=(openssl)
missing cc && packages+=(build-essential)

if ((${#packages[@]})); then
  if missing apt-get; then
    echo "Missing on this machine, by their Debian names: ${packages[*]}" >&2
    echo "The tests need redis-server (7.0 or newer), Chromium or Chrome with chromedriver, node (18 or" >&2
    echo "newer) with npm, haproxy, docker-compose, ps, curl, openssl and a C compiler. Install them" >&2
    echo "and run this again." >&2
    exit 1
  fi
  as_root=()
  ((EUID == 0)) || as_root=(sudo)
  "${as_root[@]}" apt-get update
  # Ubuntu has the browser under other names.
  if ! apt-cache show chromium-driver >/dev/null 2>&1; then
    packages=("${packages[@]/#chromium-driver/chromium-chromedriver}")
    packages=("${packages[@]/%chromium/chromium-browser}")
  fi
  (
    # Only the programs are wanted: no package may start a service of its own.
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
      trap '"${as_root[@]}" rm -f "$policy"' EXIT
      printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
      "${as_root[@]}" chmod +x "$policy"
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install --yes --no-install-recommends "${packages[@]}"
  )
fi

if missing cargo; then
  echo "Missing: Rust. See https://rustup.rs" >&2
  exit 1
fi

if missing cargo-deny; then
  # Without optimisation and debug information: about two minutes on two cores, once per machine.
  CARGO_PROFILE_DEV_DEBUG=0 cargo install --locked --debug cargo-deny --version 0.20.2
fi

npm ci --prefix tests/node --no-audit --no-fund

cargo fmt --check
cargo deny --locked check bans licenses sources
cargo clippy --workspace --all-targets -- -D warnings
# All of them, so that one run shows everything that is wrong.
cargo test --workspace --no-fail-fast
# 77: it needs Python 2.7, which not every machine has.
tests/autobahn/run.sh || (($? == 77))
RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps
