#!/usr/bin/env bash
# Takes the guards of the delivery protocol away, one by one, and shows that the tests notice.
#
#   scripts/mutants.sh [name...]      all of tests/mutations/*.patch, or those of these names
#   scripts/mutants.sh --check        says only whether each patch still finds its guard
#
# Each patch says which tests have to go red without its guard ("Red: ..."). A mutant that does not build, a test that is
# red already without the mutation, and one that stays green with it are failures of this script. Works on a copy of HEAD,
# in the build cache of this checkout: run no other tests meanwhile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
cache=${XDG_CACHE_HOME:-$HOME/.cache}/dinnerbell
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target} CARGO_TERM_COLOR=never

# Each on its own: together they would have to fit each other.
applies() { git apply -C1 --recount "$@"; }
if [ "${1:-}" = --check ]; then
  for patch in tests/mutations/*.patch; do
    applies --check "$patch" || { echo "$patch does not apply: the guard has moved" >&2; exit 1; }
  done
  exit
fi

patches=()
for name in "${@:-*}"; do
  for patch in tests/mutations/$name.patch; do
    [ -f "$patch" ] || { echo "no $patch" >&2; exit 2; }
    patches+=("$root/$patch")
  done
done

copy=$(mktemp -d)/dinnerbell
trap 'git -C "$root" worktree remove --force "$copy"; rmdir "$(dirname "$copy")"' EXIT
git worktree add --quiet --detach "$copy" HEAD
cd "$copy"
log=$(dirname "$copy").log

run() { cargo test --features failpoints --lib --test it --no-fail-fast -- --exact "$@" >"$log" 2>&1 </dev/null; }
reds() { sed -n 's/^Red: //p' "$1"; }
failed=0
fail() { echo "    FAILURE: $*"; failed=1; }

echo "== all named tests, without a mutation"
mapfile -t all < <(for patch in "${patches[@]}"; do reds "$patch"; done | sort -u)
run "${all[@]}" || { tail -50 "$log"; echo "red without a mutation"; exit 1; }
for test in "${all[@]}"; do
  grep -q "^test $test ... ok" "$log" || { echo "there is no test $test"; exit 1; }
done

for patch in "${patches[@]}"; do
  echo "== $(basename "$patch" .patch): $(sed -n 's/^Mutation: //p' "$patch")"
  if ! applies "$patch"; then fail "the patch does not apply: the guard has moved"; continue; fi
  if cargo test --features failpoints --lib --test it --no-run >"$log" 2>&1 </dev/null; then
    mapfile -t tests < <(reds "$patch")
    run "${tests[@]}" || true
    for test in "${tests[@]}"; do
      if grep -q "^test $test ... FAILED" "$log"; then echo "    red: $test"; else fail "$test stays green"; fi
    done
  else
    tail -20 "$log"
    fail "does not build"
  fi
  git checkout --quiet .
done
rm -f "$log"
echo "== ${#patches[@]} mutations"
exit $failed
