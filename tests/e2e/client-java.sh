#!/usr/bin/env bash
# The client for Java, with its own tests, against servers of their own.
#
#   PACENOTE=target/debug/pacenote tests/e2e/client-java.sh [ARGUMENT OF MAVEN...]
#
# Needs a JDK, 17 or newer, and Maven 3.8.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

need javac mvn
# A copy, so that what is generated stays out of the tree.
mkdir "$work/java"
cp -r "$root/clients/java/"{pom.xml,src,examples} "$work/java"
PACENOTE=$PACENOTE mvn --batch-mode --no-transfer-progress --file "$work/java/pom.xml" \
    -Dpacenote.proto="$root/proto" test "$@"
