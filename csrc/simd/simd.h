// The vector vocabulary of the kernels, for the instruction set this file is compiled for.
//
// Every float kernel is written once, on `f32x16`: sixteen float lanes, whatever registers hold them. The build
// compiles the kernels once per variant with one of PUNA_VARIANT_{SCALAR,AVX2,AVX512,AMX,NEON} defined, each in a
// namespace of its own, so that the linker can never mix code of two instruction sets. For the same reason nothing
// here may include a C++ library header: an inline function of std:: compiled for AVX-512 could be the copy kept.
//
// Equal bits. Each operation is correctly rounded (or exact) and does the same on every variant:
//   fma(a, b, c)      one rounding, everywhere; plain mul and add are never contracted (-ffp-contract=off)
//   max(a, b)         a > b ? a : b, so the second operand when one is NaN; min likewise with <. Whether a subnormal
//                     operand is flushed on the way differs: they take results of arithmetic, which are none
//   reduce_*          a fixed tree: lanes l and l+8, then l+4, l+2, l+1
//   exp               one polynomial, below
// Workers run with subnormals flushed; the vocabulary itself neither needs nor sets that mode.
//
// Integer products use the native vectors: `fvec`, `ivec` and `bvec` are one register of floats, int32 and bytes,
// `kNativeRows` 32-bit lanes wide, and sixteen lanes are `kParts` of them. See csrc/ops/matmul_int.h.
#pragma once

#include <stdint.h>
#include <string.h>

#ifndef PUNA_INLINE
#define PUNA_INLINE static inline __attribute__((always_inline))
#endif

#if defined(PUNA_VARIANT_AMX)
#ifdef PUNA_EMULATED_TILES
#define PUNA_NS amx_emulated
#else
#define PUNA_NS amx
#endif
#include "amx.h"
#elif defined(PUNA_VARIANT_AVX512)
#define PUNA_NS avx512
#include "avx512.h"
#elif defined(PUNA_VARIANT_AVX2)
#define PUNA_NS avx2
#include "avx2.h"
#elif defined(PUNA_VARIANT_NEON)
#define PUNA_NS neon
#include "neon.h"
#elif defined(PUNA_VARIANT_SCALAR)
#define PUNA_NS scalar
#include "scalar.h"
#else
#error "define one of PUNA_VARIANT_SCALAR, PUNA_VARIANT_AVX2, PUNA_VARIANT_AVX512, PUNA_VARIANT_AMX, PUNA_VARIANT_NEON"
#endif

#include "math.h"
