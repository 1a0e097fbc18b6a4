#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds everything and runs the tests.
set -eu

usage()
{
    cat <<END
usage: scripts/test.sh [preset] [ctest arguments ...]

Installs what is missing, builds into build/PRESET and runs the tests there. Presets: release (the
default), ci (release, warnings are errors), dev, asan, tsan. For instance

    scripts/test.sh asan -L unit            scripts/test.sh -R http --repeat until-fail:5
END
}

preset=release
case ${1:-} in
-h | --help) usage; exit 0 ;;
-* | '') ;;
*)
    preset=$1
    shift
    ;;
esac
cd "$(dirname "$0")/.."
scripts/deps.sh run test

export ASAN_OPTIONS="${ASAN_OPTIONS:-detect_stack_use_after_return=1:strict_string_checks=1}"
export UBSAN_OPTIONS="${UBSAN_OPTIONS:-halt_on_error=1:print_stacktrace=1}"
suppressions=
[ ! -f tests/tsan.supp ] || suppressions=:suppressions=$PWD/tests/tsan.supp
export TSAN_OPTIONS="${TSAN_OPTIONS:-halt_on_error=1:second_deadlock_stack=1$suppressions}"

cmake --preset "$preset" -DJEMD_TESTS=ON
cmake --build --preset "$preset" --parallel "$(nproc)"
exec ctest --preset "$preset" --output-on-failure --parallel "$(nproc)" "$@"
