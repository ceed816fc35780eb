#!/bin/sh
# Puts the JSON-Schema test suite into the environment of the oracles, as two packages ship it: the sources of jsonschema
# (the version that is installed there), and the package json-schema-test-suite of npm.
set -eu
environment=$1
version=$("$environment/bin/python" -c "from importlib.metadata import version; print(version('jsonschema'))")
sources=$(mktemp -d)
trap 'rm -rf "$sources"' EXIT
"$environment/bin/python" -m pip download --quiet --no-deps --no-binary :all: --dest "$sources" "jsonschema==$version"
tar -xzf "$sources/jsonschema-$version.tar.gz" -C "$sources"
rm -rf "$environment/json-schema-suite"
mv "$sources/jsonschema-$version/json" "$environment/json-schema-suite"
npm install --silent --no-save --prefix "$environment" json-schema-test-suite@0.0.10
