#!/bin/sh
# Installs llama.cpp's Python bindings into an environment, built for the processor at hand.
#
#   tools/llama_cpp.sh VENV
#
# The build takes minutes, so its wheel is kept in the user's cache, by version, Python and processor flags. On processors
# with AMX the code that GCC 12 makes of ggml's AMX kernels is wrong; there clang 19 is used.
set -eu
venv=$1
version=0.3.36
flags=$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo | tr ' ' '\n' | sort | sha256sum | cut -c1-12)
python=$("$venv/bin/python" -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')
cache=${XDG_CACHE_HOME:-$HOME/.cache}/puna/wheels/llama-cpp-python-$version-$python-$(uname -m)-$flags

if ! ls "$cache"/*.whl >/dev/null 2>&1; then
    options="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"
    if grep -qm1 amx_int8 /proc/cpuinfo; then
        if ! command -v clang-19 >/dev/null; then
            echo "llama.cpp needs clang-19 and libomp-19-dev on this processor (it has AMX)" >&2
            exit 1
        fi
        options="$options -DCMAKE_C_COMPILER=clang-19 -DCMAKE_CXX_COMPILER=clang++-19"
    fi
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    echo "building llama-cpp-python $version (some minutes) ..." >&2
    CMAKE_ARGS="$options" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
        "$venv/bin/python" -m pip wheel --quiet --no-deps --no-binary llama-cpp-python --no-cache-dir \
        --wheel-dir "$scratch" "llama-cpp-python==$version"
    mkdir -p "$cache"
    mv "$scratch"/llama_cpp_python-*.whl "$cache/"
fi
"$venv/bin/python" -m pip install --quiet --no-deps --force-reinstall "$cache"/llama_cpp_python-*.whl
"$venv/bin/python" -c 'import llama_cpp; llama_cpp.llama_backend_init()'
