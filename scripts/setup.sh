#!/usr/bin/env bash
# Makes the machine ready for `make demo` and `make test`: checks Rust, installs system packages where it may, and
# names them where it may not. Quick, and silent, when all is there. `setup.sh demo` leaves out what only tests need.
set -euo pipefail

wanted_rust=1.94
what_for=${1:-test}

die() {
  printf 'setup: %s\n' "$@" >&2
  exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$1" ]; }

check_rust() {
  local version
  has cargo && has rustc ||
    die "Rust $wanted_rust or newer is needed and there is none on this machine." \
      "Install it with rustup (https://rustup.rs), then try again."
  version=$(rustc --version | cut -d ' ' -f 2)
  at_least "$wanted_rust" "${version%%-*}" ||
    die "Rust $wanted_rust or newer is needed; this machine has $version." "'rustup update stable' brings it up to date."
}

has_postgres() { has postgres && has initdb || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; }

# OpenSSL and zlib, with their headers.
has_library() { has pkg-config && pkg-config --exists "$1"; }

# Kafka 4 runs on Java 17 and newer.
has_java() {
  local version
  has java || return 1
  version=$(java -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
  [ "${version:-0}" -ge 17 ]
}

# One package name per line, in Debian's words: what is missing here.
missing() {
  has cc && has c++ || echo build-essential
  has make || echo make
  has pkg-config || echo pkg-config
  has_library openssl || echo libssl-dev
  has_library zlib || echo zlib1g-dev
  has_postgres || echo postgresql
  has kcat || echo kcat
  has psql || echo postgresql-client
  [ "$what_for" = test ] || return 0
  has openssl || echo openssl
  has_java || echo java
  has mvn || echo maven
  has faketime || echo faketime
}

# Debian's name for a Java that is new enough: older releases' default is not.
java_package() {
  local package
  for package in openjdk-21-jre-headless openjdk-17-jre-headless; do
    if [ -n "$(apt-cache --quiet=0 show "$package" 2>/dev/null)" ]; then
      echo "$package"
      return
    fi
  done
  echo default-jre-headless
}

# The demo only mentions kcat and psql, so it goes on without them.
explain() {
  local name needed=()
  for name in "$@"; do
    [[ $what_for = demo && $name =~ ^(kcat|postgresql-client)$ ]] || needed+=("$name")
  done
  if [ "${#needed[@]}" -eq 0 ]; then
    echo "setup: going on without $*, which would show the topics and the tables while the demo runs" >&2
    exit 0
  fi
  die "these are missing, and only root may install them: $*" \
    "Debian, Ubuntu: sudo apt-get install build-essential pkg-config libssl-dev zlib1g-dev postgresql kcat openssl openjdk-17-jre-headless maven faketime" \
    "Fedora: sudo dnf install gcc gcc-c++ make pkgconf openssl-devel zlib-devel postgresql-server postgresql kcat openssl java-21-openjdk-headless maven libfaketime" \
    "macOS: xcode-select --install && brew install pkg-config openssl zlib postgresql kcat openjdk maven libfaketime" \
    "Without any of them: docker-compose up runs the job, Kafka and Postgres in containers."
}

install() {
  local sudo=() packages=() package
  has apt-get || explain "$@"
  if [ "$(id -u)" -ne 0 ]; then
    has sudo && sudo -n true 2>/dev/null || explain "$@"
    sudo=(sudo -n)
  fi
  echo "setup: installing $*"
  "${sudo[@]}" apt-get update -qq </dev/null
  for package in "$@"; do
    [ "$package" = java ] && package=$(java_package)
    packages+=("$package")
  done
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null
}

check_rust
mapfile -t packages < <(missing)
if [ "${#packages[@]}" -gt 0 ]; then
  install "${packages[@]}"
  mapfile -t packages < <(missing)
  [ "${#packages[@]}" -eq 0 ] || die "still missing after the installation: ${packages[*]}"
fi
