#!/usr/bin/env bash
# The client for TypeScript, with its own tests, against servers of their own.
#
#   PACENOTE=target/debug/pacenote tests/e2e/client-typescript.sh [ARGUMENT...]
#
# Arguments go to `node --test`. Needs Node.js 20 or newer, and npm, which gets what package-lock.json names; from
# NODE_MODULES, where that is the folder of an earlier `npm ci`.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "$0")/lib.sh"

need node npm
version=$(node --version)
major=${version#v}
((${major%%.*} >= 20)) || missing "node is $version; 20 or newer is needed"

# A copy, so that what is installed, generated and built stays out of the tree.
mkdir -p "$work/clients/typescript"
cp -r "$root/proto" "$work/proto"
[[ -z ${NODE_MODULES:-} ]] || NODE_MODULES=$(realpath "$NODE_MODULES")
cd "$root/clients/typescript"
cp -r ./*.json ./*.yaml .npmrc .prettierignore README.md proto src examples test "$work/clients/typescript"
cd "$work/clients/typescript"
rm -rf src/gen
if [[ -n ${NODE_MODULES:-} ]]; then
    ln -s "$NODE_MODULES" node_modules
else
    npm ci --ignore-scripts --prefer-offline --no-audit --no-fund --loglevel=error ||
        missing "npm could not install what package-lock.json names"
fi
export BUF_CACHE_DIR=$work/buf
npm run --silent generate
npm run --silent build
npm run --silent format
PACENOTE=$PACENOTE node --test --test-concurrency=2 --test-reporter=spec "$@" dist/test/*.test.js
