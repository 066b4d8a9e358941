#!/bin/sh
# Hands each secret that is mounted as a file to the process, as a variable of the file's name, and
# becomes Python: it is process 1, gets SIGTERM itself, and has the same name after a restart.
set -eu
for file in /run/secrets/*; do
    [ -f "$file" ] || continue
    export "${file##*/}=$(cat "$file")"
done
if [ $# -eq 0 ]; then
    [ "$SERVICE" = cli ] && set -- -m triptych || set -- -m "triptych.$SERVICE"
fi
exec python "$@"
