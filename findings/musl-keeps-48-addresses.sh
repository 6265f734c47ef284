#!/usr/bin/env bash
# musl 1.2.5 (the libc of Alpine images): getaddrinfo() returns 48 addresses at most and does not say that there are more.
# Expected: all of them, as glibc returns. The answer is complete: musl asks again by TCP when the UDP answer is cut.
# Instead: it keeps the first 48 of the answer and returns 0. Both families share the 48, and IPv6 goes first: of 40 IPv6
# and 40 IPv4 addresses it keeps 40 and 8. A name with 48 IPv6 addresses has no IPv4 address left for an IPv4-only client.
# Why it matters: a name that lists one address for each task (tasks.NAME, or endpoint mode dnsrr) shows 48 tasks of 60.
# A server that answers in a fixed order hides the same tasks from every Alpine client, so it must rotate its answers.
# musl is taken from the Python package ziglang, which brings a C compiler and musl's source.
# Needs python3 with venv on a glibc system, unshare, and root or user namespaces: the name server has a namespace of its
# own, which ends with the script. Run time: about a minute, nearly all of it installing and compiling.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check ziglang==0.13.0
grep -q '"1\.2\.5"' env/lib/python*/site-packages/ziglang/lib/libc/musl/src/internal/version.h
cat >ask.c <<'E'
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
  struct addrinfo hint = {.ai_socktype = SOCK_STREAM}, *list;
  int err = getaddrinfo(argv[1], 0, &hint, &list);
  if (err) return puts(gai_strerror(err)), 1;
  for (; list; list = list->ai_next) {
    char host[64];
    getnameinfo(list->ai_addr, list->ai_addrlen, host, sizeof host, 0, 0, NI_NUMERICHOST);
    puts(host);
  }
}
E
export ZIG_GLOBAL_CACHE_DIR="$tmp/cache" ZIG_LOCAL_CACHE_DIR="$tmp/cache"
env/bin/python -m ziglang cc -target "$(uname -m)-linux-musl" -o ask ask.c
cat >finding.py <<'E'
import fcntl, ipaddress, socket, socketserver, struct, subprocess, threading

# A new network namespace: its loopback is down.
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP

A, AAAA = 1, 28
names = {
    b"four": {A: [f"192.0.2.{n}" for n in range(1, 61)]},
    b"both": {A: [f"192.0.2.{n}" for n in range(1, 41)], AAAA: [f"2001:db8::{n:x}" for n in range(1, 41)]},
    b"none": {A: ["192.0.2.1"], AAAA: [f"2001:db8::{n:x}" for n in range(1, 49)]},
}


def answer(query, limit):
    end = query.index(b"\0", 12) + 5
    name, kind = query[13:13 + query[12]], query[end - 3]
    found = names.get(name, {}).get(kind, [])
    records = b""
    for address in found:
        data = ipaddress.ip_address(address).packed
        records += struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(data)) + data
    flags, count = 0x8580, len(found)
    if end + len(records) > limit:
        flags, count, records = flags | 0x200, 0, b""  # cut: the client asks again by TCP
    return query[:2] + struct.pack(">HHHHH", flags, 1, count, 0, 0) + query[12:end] + records


class Udp(socketserver.BaseRequestHandler):
    def handle(self):
        query, sock = self.request
        sock.sendto(answer(query, 512), self.client_address)


class Tcp(socketserver.StreamRequestHandler):
    def handle(self):
        while size := self.rfile.read(2):
            reply = answer(self.rfile.read(int.from_bytes(size, "big")), 65535)
            self.wfile.write(len(reply).to_bytes(2, "big") + reply)


socketserver.ThreadingTCPServer.daemon_threads = True
for kind, handler in (socketserver.ThreadingUDPServer, Udp), (socketserver.ThreadingTCPServer, Tcp):
    threading.Thread(target=kind(("127.0.0.1", 53), handler).serve_forever, daemon=True).start()


def same(what, seen, known):
    if seen != known:
        raise SystemExit(f"CHANGED: {what}: {seen!r}, it was {known!r}")


def musl(name):
    run = subprocess.run(["./ask", name], capture_output=True, text=True, timeout=60)
    same(f"exit code of musl's look-up of {name}", (run.returncode, run.stderr), (0, ""))
    return set(run.stdout.split())


def glibc(name):
    return {a[4][0] for a in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}


four = names[b"four"][A]
same("glibc, 60 addresses", len(glibc("four.test.")), 60)
same("musl, 60 addresses", sorted(musl("four.test.")), sorted(four[:48]))
both = musl("both.test.")
same("glibc, 40 and 40", len(glibc("both.test.")), 80)
shown = {"IPv4": sum("." in a for a in both), "IPv6": sum(":" in a for a in both)}
same("musl, 40 and 40", shown, {"IPv4": 8, "IPv6": 40})
none = [a for a in musl("none.test.") if "." in a]
same("musl, IPv4 beside 48 IPv6", none, [])
print(f"musl 1.2.5: 48 of 60 addresses, the first ones of the answer; of 40 IPv4 and 40 IPv6: {shown}; of 1 IPv4 and 48 IPv6: no IPv4; "
      "glibc: 60 and 80")
E
echo 'nameserver 127.0.0.1' >resolv.conf
echo 'hosts: dns' >nsswitch.conf
user=()
[ "$(id -u)" = 0 ] || user=(--user --map-root-user)
unshare "${user[@]}" --net --mount bash -c '
  mount --bind resolv.conf /etc/resolv.conf
  mount --bind nsswitch.conf /etc/nsswitch.conf
  exec env/bin/python finding.py'
