// Kernels that handle each row by itself: norms, activations, rotary embedding, storing keys and
// values. Rows are contiguous; where a row begins is said by a stride in elements.
#pragma once
#include <cmath>
#include <initializer_list>

#include "threads.h"
#include "vectors.h"

// A tail that is shorter than a vector goes through a padded copy.
template <class T>
INLINE f32x8 load_some(const T *p, int64_t count) {
  T padded[LANES] = {};
  memcpy(padded, p, static_cast<size_t>(count) * sizeof(T));
  return load8(padded);
}

template <class T>
INLINE void store_some(T *p, f32x8 x, int64_t count) {
  T padded[LANES];
  store8(padded, x);
  memcpy(p, padded, static_cast<size_t>(count) * sizeof(T));
}

// Call body(load, store, i) for each vector of a row; `load` and `store` know the tail.
template <class Body>
INLINE void for_each_vector(int64_t width, Body body) {
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES)
    body(i, [](auto *p) { return load8(p); }, [](auto *p, f32x8 x) { store8(p, x); });
  if (int64_t left = width - i)
    body(i, [left](auto *p) { return load_some(p, left); },
         [left](auto *p, f32x8 x) { store_some(p, x, left); });
}

// x / rms(x) * weight; the product is made in the weight's type, as the torch twin does.
template <class T, class W>
INLINE void norm_row(const T *x, const W *weight, T *out, int64_t width, float eps) {
  f32x8 squares = {};
  for_each_vector(width, [&](int64_t i, auto load, auto) {
    f32x8 value = load(x + i);
    squares += value * value;
  });
  f32x8 scale = splat(1.0f / std::sqrt(sum_of(squares) / static_cast<float>(width) + eps));
  for_each_vector(width, [&](int64_t i, auto load, auto store) {
    store(out + i, rounded_to(weight, load(x + i) * scale) * load(weight + i));
  });
}

template <class T>
INLINE void add_rows(const T *x, const T *residual, T *total, int64_t width) {
  for_each_vector(width, [&](int64_t i, auto load, auto store) {
    store(total + i, load(x + i) + load(residual + i));
  });
}

// residual and total may be null: nothing is added then.
template <class T, class W>
static void rms_norm(const T *x, const T *residual, const W *weight, T *total, T *out,
                     int64_t num_rows, int64_t width, int64_t x_stride, float eps, int threads) {
  parallel_ranges(num_rows, 16, threads, [&](int64_t row) {
    const T *input = x + row * x_stride;
    if (residual != nullptr) {
      add_rows(input, residual + row * width, total + row * width, width);
      input = total + row * width;
    }
    norm_row(input, weight, out + row * width, width, eps);
  });
}

enum class Activation : int { silu = 0, gelu_tanh = 1 };

INLINE f32x8 activated(Activation kind, f32x8 x) {
  if (kind == Activation::silu) return x / (1.0f + exp8(-x));
  return 0.5f * x * (1.0f + tanh8(0.7978845608f * (x + 0.044715f * x * x * x)));
}

// gate_up: [rows, 2 * width], gate first; the activated gate is rounded before it is multiplied.
template <class T>
static void activate_and_multiply(Activation kind, const T *gate_up, T *out, int64_t num_rows,
                                  int64_t width, int threads) {
  parallel_ranges(num_rows, 4, threads, [&](int64_t row) {
    const T *gate = gate_up + row * 2 * width, *up = gate + width;
    for_each_vector(width, [&](int64_t i, auto load, auto store) {
      f32x8 active = rounded_to(gate, activated(kind, load(gate + i)));
      store(out + row * width + i, active * load(up + i));
    });
  });
}

// Turns the pairs (i, i + half) by the row's angles; the rest of the head stays as it is.
template <class T>
INLINE void turn_head(T *head, const T *cos, const T *sin, int64_t half) {
  for_each_vector(half, [&](int64_t i, auto load, auto store) {
    f32x8 first = load(head + i), second = load(head + half + i);
    f32x8 c = load(cos + i), s = load(sin + i);
    store(head + i, first * c - second * s);
    store(head + half + i, second * c + first * s);
  });
}

template <class T, class W>
struct Heads {
  const T *input;
  T *output;  // [rows, num_heads, head_dim]
  const W *norm_weight;  // null: no norm
  int64_t num_heads;
  int64_t row_stride;  // of the input
};

template <class T, class W>
static void rotate(Heads<T, W> query, Heads<T, W> key, const T *cos, const T *sin, int64_t num_rows,
                   int64_t head_dim, int64_t half, float eps, int threads) {
  parallel_ranges(num_rows, 8, threads, [&](int64_t row) {
    for (const Heads<T, W> &heads : {query, key}) {
      for (int64_t h = 0; h < heads.num_heads; h++) {
        const T *input = heads.input + row * heads.row_stride + h * head_dim;
        T *output = heads.output + (row * heads.num_heads + h) * head_dim;
        if (heads.norm_weight != nullptr)
          norm_row(input, heads.norm_weight, output, head_dim, eps);
        else
          memcpy(output, input, static_cast<size_t>(head_dim) * sizeof(T));
        turn_head(output, cos + row * half, sin + row * half, half);
      }
    }
  });
}
