#!/bin/sh
# Installs llama.cpp's Python bindings into an environment.
#
#   tools/llama_cpp.sh VENV [native|avx512|avx2]
#
# native: all that this processor has. On processors with AMX the code that GCC 12 makes of ggml's AMX kernels is wrong;
# there clang 19 is used. avx512: AVX-512 with VNNI and BF16, but no AMX. avx2: AVX2, FMA and F16C, as on older machines.
# A build takes minutes, so wheels are kept in the user's cache, by version, Python, flavour and (native) processor flags.
set -eu
venv=$1
flavour=${2:-native}
version=0.3.36
python=$("$venv/bin/python" -c 'import sys; print(f"cp{sys.version_info[0]}{sys.version_info[1]}")')
x86="-DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON -DGGML_F16C=ON"
case $flavour in
native)
    key=$(grep -m1 -E '^(flags|Features)' /proc/cpuinfo | tr ' ' '\n' | sort | sha256sum | cut -c1-12)
    options="-DGGML_NATIVE=ON"
    if grep -qm1 amx_int8 /proc/cpuinfo; then
        if ! command -v clang-19 >/dev/null; then
            echo "llama.cpp needs clang-19 and libomp-19-dev on this processor (it has AMX)" >&2
            exit 1
        fi
        options="$options -DCMAKE_C_COMPILER=clang-19 -DCMAKE_CXX_COMPILER=clang++-19"
    fi
    ;;
avx512)
    key=avx512
    options="$x86 -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"
    ;;
avx2)
    key=avx2
    options="$x86 -DGGML_AVX512=OFF"
    ;;
*)
    echo "tools/llama_cpp.sh VENV [native|avx512|avx2]: there is no flavour $flavour" >&2
    exit 2
    ;;
esac
cache=${XDG_CACHE_HOME:-$HOME/.cache}/puna/wheels/llama-cpp-python-$version-$python-$(uname -m)-$key

if ! ls "$cache"/*.whl >/dev/null 2>&1; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    echo "building llama-cpp-python $version, $flavour (some minutes) ..." >&2
    CMAKE_ARGS="$options -DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) \
        "$venv/bin/python" -m pip wheel --quiet --no-deps --no-binary llama-cpp-python --no-cache-dir \
        --wheel-dir "$scratch" "llama-cpp-python==$version"
    mkdir -p "$cache"
    mv "$scratch"/llama_cpp_python-*.whl "$cache/"
fi
"$venv/bin/python" -m pip install --quiet --no-deps --force-reinstall "$cache"/llama_cpp_python-*.whl
"$venv/bin/python" -c 'import llama_cpp; llama_cpp.llama_backend_init()'
