#!/usr/bin/env bash
# Puts the jars of Apache Kafka where the tests look for them, by Maven, once per version.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pom=$here/tests/kafka/pom.xml
version=$(sed -n '/kafka_2.13/{n;s/.*<version>\(.*\)<\/version>.*/\1/p}' "$pom")
home=${XDG_CACHE_HOME:-$HOME/.cache}/dinnerbell/kafka-$version
libs=$home/libs

[ -d "$libs" ] && exit 0

command -v mvn >/dev/null || {
  echo "kafka-jars: Maven is needed to fetch Apache Kafka for the tests; 'make setup' installs it where it may" >&2
  exit 1
}
echo "kafka-jars: fetching Apache Kafka $version (54 MB) into $libs"
mkdir -p "$home"
fresh=$(mktemp -d "$home/fetching.XXXXXX")
trap 'rm -rf "$fresh"' EXIT
mvn --batch-mode --quiet --file "$pom" dependency:copy-dependencies \
  -DincludeScope=runtime -DoutputDirectory="$fresh/libs" </dev/null
# One rename: the directory is there whole or not at all. If another run was first, its jars are the same.
[ -d "$libs" ] || mv "$fresh/libs" "$libs"
