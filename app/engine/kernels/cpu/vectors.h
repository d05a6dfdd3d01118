// Eight floats at a time, written once for every instruction set: the compiler's own vector types
// become AVX2, AVX-512 or NEON instructions as the flags say. Works with g++ and clang++.
#pragma once
#include <cstdint>
#include <cstring>
#ifdef __AVX2__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

constexpr int LANES = 8;

typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef int8_t i8x8 __attribute__((vector_size(8)));
typedef uint8_t u8x8 __attribute__((vector_size(8)));

struct bf16 {
  uint16_t bits;
};

// A cast of bits, as for memory that is not aligned to whole vectors.
template <class To, class From>
INLINE To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

template <class Vector>
INLINE Vector read(const void *from) {
  Vector vector;
  memcpy(&vector, from, sizeof(vector));
  return vector;
}

INLINE f32x8 splat(float x) { return f32x8{x, x, x, x, x, x, x, x}; }

INLINE f32x8 load8(const float *p) { return read<f32x8>(p); }
#ifdef __AVX2__  // g++ 12 takes four instructions to widen eight numbers, the machine one
INLINE f32x8 load8(const bf16 *p) {
  __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  return bits_of<f32x8>(_mm256_slli_epi32(wide, 16));
}
INLINE f32x8 load8(const int8_t *p) {
  __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
  return bits_of<f32x8>(_mm256_cvtepi32_ps(wide));
}
INLINE i32x8 load8(const uint8_t *p) {
  return bits_of<i32x8>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
}
#else
INLINE f32x8 load8(const bf16 *p) {
  return bits_of<f32x8>(__builtin_convertvector(read<u16x8>(p), u32x8) << 16);
}
INLINE f32x8 load8(const int8_t *p) {
  return __builtin_convertvector(__builtin_convertvector(read<i8x8>(p), i32x8), f32x8);
}
INLINE i32x8 load8(const uint8_t *p) {
  return __builtin_convertvector(read<u8x8>(p), i32x8);
}
#endif

INLINE void store8(float *p, f32x8 x) { memcpy(p, &x, sizeof(x)); }
INLINE void store8(bf16 *p, f32x8 x) {  // to the nearest, ties to even, as torch rounds
  u32x8 bits = bits_of<u32x8>(x);
  u32x8 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = x == x ? rounded : u32x8{} + 0x7fc0;
  u16x8 narrow = __builtin_convertvector(rounded, u16x8);
  memcpy(p, &narrow, sizeof(narrow));
}

// What a value is after a trip through memory of type T.
INLINE f32x8 rounded_to(const float *, f32x8 x) { return x; }
INLINE f32x8 rounded_to(const bf16 *, f32x8 x) {
  bf16 memory[LANES];
  store8(memory, x);
  return load8(memory);
}

INLINE f32x8 max8(f32x8 a, f32x8 b) { return a > b ? a : b; }
INLINE f32x8 min8(f32x8 a, f32x8 b) { return a < b ? a : b; }

// Lanes picked from a (0 to 7) and b (8 to 15).
#ifdef __clang__
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, i32x8{__VA_ARGS__})
#endif

INLINE f32x8 add_neighbours(f32x8 a, f32x8 b) {
  return PICK(a, b, 0, 2, 8, 10, 4, 6, 12, 14) + PICK(a, b, 1, 3, 9, 11, 5, 7, 13, 15);
}

// The sums of four vectors' lanes, in the first four lanes.
INLINE f32x8 sums_of(f32x8 a, f32x8 b, f32x8 c, f32x8 d) {
  f32x8 halves = add_neighbours(add_neighbours(a, b), add_neighbours(c, d));
  return halves + PICK(halves, halves, 4, 5, 6, 7, 0, 1, 2, 3);
}

INLINE float sum_of(f32x8 a) {
  a += PICK(a, a, 4, 5, 6, 7, 0, 1, 2, 3);
  a += PICK(a, a, 2, 3, 0, 1, 6, 7, 4, 5);
  return a[0] + a[1];
}

INLINE float max_of(f32x8 a) {
  a = max8(a, PICK(a, a, 4, 5, 6, 7, 0, 1, 2, 3));
  a = max8(a, PICK(a, a, 2, 3, 0, 1, 6, 7, 4, 5));
  return a[0] > a[1] ? a[0] : a[1];
}

// e^x to about two units in the last place, exactly 1 at 0 and exactly 0 below -87.3.
// 2^n * e^r with |r| <= ln 2 / 2; the polynomial is Cephes' (S. Moshier) for single precision.
INLINE f32x8 exp8(f32x8 x) {
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it leaves a rounded integer in the bits
  f32x8 clamped = max8(min8(x, splat(88.3f)), splat(-87.3f));
  f32x8 shifted = clamped * 1.44269504f + shift;
  f32x8 n = shifted - shift;
  f32x8 r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  f32x8 p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  f32x8 power = bits_of<f32x8>((bits_of<i32x8>(shifted) - bits_of<int32_t>(shift) + 127) << 23);
  return x < -87.3f ? f32x8{} : p * power;
}

INLINE f32x8 tanh8(f32x8 x) { return 1.0f - 2.0f / (exp8(x + x) + 1.0f); }
