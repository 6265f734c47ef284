#!/usr/bin/env bash
# nsenter 2.38.1 (util-linux): when the child that it waits for is stopped, nsenter stops itself, and a SIGCONT to the child leaves
# it stopped.
# Expected: it waits for its child, as `unshare --fork` of the same package does, which sleeps meanwhile.
# Instead: `nsenter --pid=…` is in state T with its child. The child alone is continued and ends; nsenter stays in T, the child
# stays a zombie, and whoever waits for nsenter waits on. Its own SIGCONT sets it going again, and it ends with the child's code.
# Why it matters: tests and tools that stop a daemon inside a container or a network namespace (to see what the others do about a
# silent peer) start it by nsenter and signal the process that they see inside. Continue, or end, both processes.
# Needs apt-get on Debian 12 or another system with this version, and root. Run time: seconds.
set -euo pipefail
tmp=$(mktemp -d)
started=""
cleanup() {
    for pid in $started; do kill -KILL "$pid" 2>/dev/null || true; done
    rm -rf "$tmp"
}
trap cleanup EXIT
cd "$tmp"
apt-get download -qq util-linux=2.38.1-5+deb12u3 >/dev/null
dpkg-deb -x util-linux_*.deb root
PATH="$tmp/root/usr/bin:$PATH"
changed() { echo "CHANGED: $1" >&2; exit 1; }
state() { sed 's/.*) //; s/ .*//' "/proc/$1/stat" 2>/dev/null || echo gone; }
# Waits until a process is in a state.
until_state() {
    for _ in $(seq 100); do
        [ "$(state "$1")" != "$2" ] || return 0
        sleep 0.05
    done
    return 1
}
# Starts a program that waits for a child, and prints the state of both while the child is stopped.
start() {
    "$@" sleep 300 &
    parent=$!
    child=""
    until [ -n "$child" ]; do child=$(cat "/proc/$parent/task/$parent/children" | tr -d ' '); done
    started="$started $parent $child"
    until [ "$(cat "/proc/$child/comm")" = sleep ]; do sleep 0.05; done
    kill -STOP "$child"
    until_state "$child" T || changed "the child does not stop"
}
nsenter --version
start nsenter --pid=/proc/self/ns/pid
until_state "$parent" T || changed "nsenter does not stop with its child: $(state "$parent")"
kill -CONT "$child"
until_state "$child" S || changed "the child does not go on"
kill -TERM "$child"
until_state "$child" Z || changed "nsenter has waited for its child: $(state "$child")"
echo "nsenter: $(state "$parent"), its child has ended: $(state "$child")"
[ "$(state "$parent")" = T ] || changed "nsenter goes on without a signal of its own"
kill -CONT "$parent"
wait "$parent" || true
echo "after a SIGCONT of its own: $(state "$parent")"

start unshare --fork
echo "unshare --fork: $(state "$parent") while its child is stopped"
[ "$(state "$parent")" = S ] || changed "unshare stops too"
kill -CONT "$child"
kill -TERM "$child"
wait "$parent" || true
