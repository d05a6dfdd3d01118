#!/bin/sh
# Fills in what nginx cannot read from the environment, and becomes nginx.
set -eu

resolvers=$(awk '$1 == "nameserver" { print ($2 ~ /:/) ? "[" $2 "]" : $2 }' /etc/resolv.conf | tr '\n' ' ')
sed -e "s|@BACKEND@|${FOLIO_BACKEND%/}|" \
    -e "s|@RESOLVERS@|${resolvers:-127.0.0.11}|" \
    /etc/folio/nginx.conf >/tmp/nginx.conf
exec nginx -c /tmp/nginx.conf -g 'daemon off;'
