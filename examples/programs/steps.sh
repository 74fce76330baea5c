#!/bin/sh
# Three steps for whoever is named as the first argument.
set -eu
tell() {
    printf '%s\n' "$1" >>"$PACENOTE_EVENTS"
}

for step in 1 2 3; do
    tell "{\"progress\":{\"fraction\":0.$((step * 3)),\"message\":\"step $step of 3\"}}"
    sleep 0.3
done
tell '{"log":{"level":"warn","message":"the third step was the last"}}'
echo "done for $1"
