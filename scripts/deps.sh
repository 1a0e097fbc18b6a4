#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Sees to it that the Debian packages are there which jemd is built, run and tested with.
# shellcheck disable=SC2086 # lists of packages are words on purpose
set -eu

# command:package - satisfied by the command wherever it comes from; a|b - by either package, the
# first is the one installed.
RUN="gcc:gcc libc6-dev cmake:cmake ninja:ninja-build pkg-config:pkg-config curl:curl
    libmicrohttpd-dev libjansson-dev libopenblas-pthread-dev|libopenblas-openmp-dev|libopenblas-serial-dev
    libpng-dev libjpeg62-turbo-dev libinih-dev libsqlite3-dev zlib1g-dev nettle-dev
    python3 python3-yaml"
# Python packages are for Debian's own /usr/bin/python3.
TEST="libcmocka-dev python3-numpy python3-jsonschema python3-pil
    clang-format:clang-format openssl:openssl git:git"

usage()
{
    cat <<END
usage: scripts/deps.sh run|test ...

Installs the Debian 12 packages that are missing: "run" is what a build and the daemon need, "test"
what the tests need beside it. Asks for nothing, and needs no network, when all is there.

exit status: 0 all is there; 2 wrong usage; 3 packages are missing and cannot be installed.
END
}

is_installed()
{
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

is_satisfied()
{
    case $1 in
    *:*)
        command -v "${1%%:*}" >/dev/null && return
        is_installed "${1#*:}"
        ;;
    *)
        for package in $(echo "$1" | tr '|' ' '); do
            is_installed "$package" && return
        done
        return 1
        ;;
    esac
}

print_missing()
{
    for need in "$@"; do
        is_satisfied "$need" && continue
        need=${need%%|*}
        echo "${need#*:}"
    done | sort -u
}

apt()
{
    set -- env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 "$@"
    [ "$(id -u)" -eq 0 ] || set -- sudo -n "$@"
    "$@" </dev/null
}

is_known()
{
    for package in "$@"; do
        apt-cache show "$package" >/dev/null 2>&1 || return 1
    done
}

install_packages()
{
    is_known "$@" && apt install --no-install-recommends "$@" && return
    apt update && apt install --no-install-recommends "$@"
}

give_up()
{
    why=$1
    shift
    echo "deps: $why; missing packages: $*" >&2
    echo "deps: as root: apt-get install --no-install-recommends $*" >&2
    exit 3
}

needs=
[ $# -gt 0 ] || { usage >&2; exit 2; }
for set in "$@"; do
    case $set in
    run) needs="$needs $RUN" ;;
    test) needs="$needs $TEST" ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
    esac
done

if ! command -v dpkg-query >/dev/null; then
    echo "deps: this is no Debian system, so nothing is checked; the Debian packages are:" $needs >&2
    exit 0
fi
missing=$(print_missing $needs)
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || give_up "there is no apt-get" $missing
if [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; then
    give_up "neither root nor sudo without a password" $missing
fi
echo "deps: installing" $missing
install_packages $missing || give_up "apt-get could not install them" $missing
