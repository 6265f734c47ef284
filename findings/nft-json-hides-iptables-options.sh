#!/usr/bin/env bash
# nft 1.0.6 with iptables-nft 1.8.9: `nft -j list ruleset` hides what an iptables rule asks for; `nft list ruleset` shows it.
# Expected: the JSON form of a ruleset says what the text form says, as it does for rules that nft wrote.
# Instead: of an extension (-m conntrack --ctstate …, -m multiport --dports …) JSON has the name alone, {"xt": {"type":
# "match", "name": "conntrack"}}, while the text form has it in full, `ct state related,established`. So in JSON the rule for
# established connections, which nearly every host has, looks like a rule that accepts everything. Nor can the document
# be loaded again: nft refuses what it has written itself.
# Why it matters: a program that asks whether a host's firewall lets a port in, or saves and restores rules, reads JSON. Rules
# of ufw, Docker and iptables scripts are of this kind. It must not take a rule with an extension for one without.
# Needs apt-get on Debian 12 or another system with these versions, unshare, and root: the rules are made in a network
# namespace of its own, which ends with the script. Run time: seconds.
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
apt-get download -qq nftables=1.0.6-2+deb12u2 libnftables1=1.0.6-2+deb12u2 libnftnl11=1.2.4-2 iptables=1.8.9-2 \
    libxtables12=1.8.9-2 libjansson4=2.14-2 libmnl0=1.0.4-3 libedit2=3.1-20221030-2 >/dev/null
for package in *.deb; do dpkg-deb -x "$package" root; done
libraries=$(dirname "$(find root -name 'libnftables.so.1')")
export LD_LIBRARY_PATH="$tmp/$libraries" XTABLES_LIBDIR="$tmp/$libraries/xtables"
export PATH="$tmp/root/usr/sbin:$PATH"
cat >inside.sh <<'E'
set -eu
xtables-nft-multi iptables -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
xtables-nft-multi iptables -A INPUT -p udp -m multiport --dports 22,2377 -j ACCEPT
nft list ruleset >text 2>/dev/null
nft -j list ruleset >json 2>/dev/null
nft flush ruleset
if nft -j -f json >again 2>&1; then echo loaded >>again; fi
E
unshare --net sh inside.sh
nft --version
grep accept text
grep -o '{"xt"[^}]*}}' json
head -n 1 again
changed() { echo "CHANGED: $1" >&2; exit 1; }
grep -q 'ct state related,established' text || changed "the text form hides the states"
grep -q 'udp dport { 22, 2377 }' text || changed "the text form hides the ports"
! grep -qi 'established' json || changed "JSON has the states"
! grep -q '2377' json || changed "JSON has the ports"
grep -q '"name": "conntrack"' json || changed "JSON does not name the extension"
grep -q 'unsupported xtables compat expression' again || changed "nft loads its own JSON"
