#!/usr/bin/env bash
# Make an authority, and certificates of a cluster's nodes and of its clients by role. Needs openssl.
# usage: scripts/make_certs.sh CLUSTER DIR [--days N]      (CLUSTER: its cluster.json; N: default 365)
#   DIR/ca.pem, ca.key             the authority, made if there is none, for ten years; keep its key to yourself
#   DIR/node-N.pem, .key           for each node's host and id
#   DIR/client-ROLE.pem, .key      for clients that are reader, writer or admin; client.pem, .key is admin's
# cluster.json: "tls": {"certificate": "DIR/{name}.pem", "key": "DIR/{name}.key", "authority": "DIR/ca.pem"}
# Run it again for new certificates of the same authority; then scripts/launch.sh reload.
# Exit codes: 0 done, 1 failed, 2 usage, 74 DIR cannot be written.
set -euo pipefail
umask 077
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage() { sed -n '2,9s/^# //p' "${BASH_SOURCE[0]}"; }
wrong() { echo "make_certs.sh: $1" >&2; exit 2; }

days=365 words=()
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --days) days=${2:-}; shift ;;
    -*) wrong "unknown option $1 (see --help)" ;;
    *) words+=("$1") ;;
    esac
    shift || wrong "--days needs a value"
done
[ ${#words[@]} = 2 ] || wrong "CLUSTER and DIR are needed (see --help)"
[[ $days =~ ^[1-9][0-9]{0,4}$ ]] || wrong "--days: $days is not a number of days"
command -v openssl >/dev/null || wrong "there is no openssl (Debian: apt-get install openssl)"
file=${words[0]} directory=${words[1]}

# The file's name, then for each certificate its name, what it says, and the host, by the same code as the nodes'.
told=$(PYTHONPATH=$project python3 -c '
import ipaddress, sys
from paxoskv.config import ClusterError, load
try:
    cluster = load(sys.argv[1])
except ClusterError as error:
    sys.exit(f"make_certs.sh: {error}")
for node in cluster.nodes:
    try:
        host = f"IP:{ipaddress.ip_address(node.host)}"
    except ValueError:
        host = f"DNS:{node.host}"
    print(f"node-{node.id} {cluster.name} URI:urn:paxoskv:{cluster.name}:node:{node.id},{host}")
for role in ("reader", "writer", "admin"):
    print(f"client-{role} {cluster.name} URI:urn:paxoskv:{cluster.name}:client:{role}")' "$file") || exit 2

made=$(mktemp -d)
trap 'rm -rf "$made"' EXIT
ssl() { openssl "$@" 2>"$made/errors" || { echo "make_certs.sh: openssl: $(tail -n 1 "$made/errors")" >&2; exit 1; }; }
key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes)
mkdir -p "$directory" || exit 74
if [ ! -e "$directory/ca.key" ]; then
    [ ! -e "$directory/ca.pem" ] || wrong "$directory/ca.pem is there, but its key is not: bring it, or name another directory"
    ssl req -x509 "${key[@]}" -days 3650 -subj "/CN=authority" -addext basicConstraints=critical,CA:TRUE \
        -addext keyUsage=critical,keyCertSign,cRLSign -keyout "$made/ca.key" -out "$made/ca.pem"
else
    cp "$directory/ca.key" "$directory/ca.pem" "$made"
fi
while read -r name cluster says; do
    ssl req "${key[@]}" -subj "/O=$cluster/CN=$name" -keyout "$made/$name.key" -out "$made/$name.csr"
    printf '%s\n' basicConstraints=CA:FALSE keyUsage=critical,digitalSignature \
        extendedKeyUsage=serverAuth,clientAuth "subjectAltName=$says" >"$made/extensions"
    ssl x509 -req -in "$made/$name.csr" -CA "$made/ca.pem" -CAkey "$made/ca.key" -days "$days" \
        -set_serial "0x$(openssl rand -hex 16)" -extfile "$made/extensions" -out "$made/$name.pem"
done <<<"$told"
for kind in pem key; do ln -s "client-admin.$kind" "$made/client.$kind"; done
cp -Pf --remove-destination "$made"/*.key "$made"/*.pem "$directory" || exit 74
echo "$directory: $(wc -l <<<"$told") certificates for $days days"
