#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the daemon and serves the demo model.
set -eu

JOB='{"type":"sample","model":"sprites","conditions":[{"count":16,"attributes":{"skin":"orc","hair_colour":"blue","beard":false}}],"outputs":["grid"]}'

usage()
{
    cat <<END
usage: scripts/run.sh [--section.key=value ...]

Installs what is missing, builds the daemon (build/release) and serves the models of models/ on
http://127.0.0.1:8080 until Ctrl-C. JEMD_PORT=8081 takes another port. Arguments are settings of the
daemon (docs/settings.md), for instance --http.port=8081 --log.level=debug. What it keeps is in
build/run.
END
}

# The last --http.NAME=value among the arguments, else the default.
http_setting()
{
    setting=$2
    name=$1
    shift 2
    for argument in "$@"; do
        case $argument in
        "--http.$name="*) setting=${argument#*=} ;;
        esac
    done
    echo "$setting"
}

# Whether something accepts connections there: 7 is curl's "could not connect".
is_taken()
{
    status=0
    curl -s -o /dev/null --noproxy '*' --max-time 2 "$1/" || status=$?
    [ "$status" -ne 7 ]
}

print_greeting()
{
    page=
    if curl -fs -o /dev/null --noproxy '*' --max-time 5 "$1/"; then
        page="  open      $1/"
    fi
    # One write, so that no log line comes between.
    greeting=$(cat <<END

jemd is up: $1    (Ctrl-C ends it)
$page
  predict   curl --data-binary @tests/samples/orc-blue-hair.png -H 'Content-Type: image/png' $1/v1/predict
  sample    curl -H 'Content-Type: application/json' -d '$JOB' $1/v1/jobs
  result    curl $1/v1/jobs    and then  curl -O $1/v1/jobs/ID/artifacts/grid.png
END
)
    printf '%s\n\n' "$greeting"
}

# Greets once the daemon answers; ends at once when the daemon does.
greet_when_ready()
{
    tries=0
    while [ "$tries" -lt 600 ] && kill -0 $$ 2>/dev/null; do
        if curl -fs -o /dev/null --noproxy '*' --max-time 2 "$1/readyz"; then
            print_greeting "$1"
            return
        fi
        tries=$((tries + 1))
        sleep 0.2
    done
}

case ${1:-} in
-h | --help) usage; exit 0 ;;
esac
cd "$(dirname "$0")/.."
scripts/deps.sh run

port=$(http_setting port "${JEMD_PORT:-${JEMD_HTTP_PORT:-8080}}" "$@")
address=$(http_setting address "${JEMD_HTTP_ADDRESS:-127.0.0.1}" "$@")
case $address in
0.0.0.0) address=127.0.0.1 ;;
::) address='[::1]' ;;
*:*) address="[$address]" ;;
esac
url=http://$address:$port
if is_taken "$url"; then
    echo "run: port $port is taken; another one: JEMD_PORT=$((port + 1)) scripts/run.sh" >&2
    exit 1
fi

cmake --preset release -DJEMD_TESTS=OFF
cmake --build --preset release --target jemd --parallel "$(nproc)"
mkdir -p build/run/cache build/run/jobs

# In a shell of its own, so that it is no child of the daemon, which takes this one's place.
(greet_when_ready "$url" &)
exec build/release/server/jemd serve --models.directory=models --models.cache=build/run/cache \
    --store.directory=build/run/jobs --http.port="$port" "$@"
