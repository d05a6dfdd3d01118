// The library's C interface: plain pointers, sizes and strides in elements. The Python launchers
// in this folder check shapes, types and strides before they call.
#include <type_traits>

#include "attention.h"
#include "linear.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

enum DType : int { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

template <class T>
struct Type {
  using type = T;
};

// Call body(Type<float>) or body(Type<bf16>).
template <class Body>
static void with_float_type(int dtype, Body body) {
  if (dtype == FLOAT32) return body(Type<float>{});
  body(Type<bf16>{});
}

EXPORT void use_threads_of(GompParallel parallel) { gomp_parallel = parallel; }

EXPORT void rms_norm(int dtype, int weight_dtype, const void *x, const void *residual,
                     const void *weight, void *total, void *out, int64_t num_rows, int64_t width,
                     int64_t x_stride, float eps, int threads) {
  with_float_type(dtype, [&](auto t) {
    with_float_type(weight_dtype, [&](auto w) {
      using T = typename decltype(t)::type;
      using W = typename decltype(w)::type;
      rms_norm(static_cast<const T *>(x), static_cast<const T *>(residual),
               static_cast<const W *>(weight), static_cast<T *>(total), static_cast<T *>(out),
               num_rows, width, x_stride, eps, threads);
    });
  });
}

EXPORT void activate_and_multiply(int dtype, int activation, const void *gate_up, void *out,
                                  int64_t num_rows, int64_t width, int threads) {
  with_float_type(dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    activate_and_multiply(static_cast<Activation>(activation), static_cast<const T *>(gate_up),
                          static_cast<T *>(out), num_rows, width, threads);
  });
}

EXPORT void rotate(int dtype, int norm_dtype, const void *query, const void *key,
                   const void *query_norm, const void *key_norm, const void *cos, const void *sin,
                   void *query_out, void *key_out, int64_t num_rows, int64_t num_heads,
                   int64_t num_kv_heads, int64_t head_dim, int64_t half, int64_t query_stride,
                   int64_t key_stride, float eps, int threads) {
  with_float_type(dtype, [&](auto t) {
    with_float_type(norm_dtype, [&](auto w) {
      using T = typename decltype(t)::type;
      using W = typename decltype(w)::type;
      Heads<T, W> queries = {static_cast<const T *>(query), static_cast<T *>(query_out),
                             static_cast<const W *>(query_norm), num_heads, query_stride};
      Heads<T, W> keys = {static_cast<const T *>(key), static_cast<T *>(key_out),
                          static_cast<const W *>(key_norm), num_kv_heads, key_stride};
      rotate(queries, keys, static_cast<const T *>(cos), static_cast<const T *>(sin), num_rows,
             head_dim, half, eps, threads);
    });
  });
}

// Call body(LayerCache) for the type that the pool holds: the rows' own, or int8 with scales.
template <class T, class Body>
static void with_cache(void *data, float *scales, int64_t block_stride, int64_t num_kv_heads,
                       int64_t block_size, int64_t head_dim, Body body) {
  if (scales == nullptr)
    return body(LayerCache<T>{static_cast<T *>(data), nullptr, block_stride, num_kv_heads,
                              block_size, head_dim});
  body(LayerCache<int8_t>{static_cast<int8_t *>(data), scales, block_stride, num_kv_heads,
                          block_size, head_dim});
}

EXPORT void store_kv(int dtype, const void *key, const void *value, int64_t key_stride,
                     int64_t value_stride, const int64_t *slots, int64_t num_rows, void *data,
                     float *scales, int64_t block_stride, int64_t num_kv_heads, int64_t block_size,
                     int64_t head_dim, int threads) {
  with_float_type(dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_cache<T>(data, scales, block_stride, num_kv_heads, block_size, head_dim, [&](auto cache) {
      store_kv(static_cast<const T *>(key), static_cast<const T *>(value), key_stride,
               value_stride, slots, num_rows, cache, threads);
    });
  });
}

EXPORT void paged_attention(int dtype, const void *query, void *out, int64_t num_heads, void *data,
                            float *scales, int64_t block_stride, int64_t num_kv_heads,
                            int64_t block_size, int64_t head_dim, const int32_t *block_tables,
                            const int32_t *query_starts, const int32_t *context_lens,
                            int64_t num_sequences, int64_t table_width, float scale, float softcap,
                            int64_t window, int threads) {
  with_float_type(dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    with_cache<T>(data, scales, block_stride, num_kv_heads, block_size, head_dim, [&](auto cache) {
      using C = std::remove_pointer_t<decltype(cache.data)>;
      attend(Attention<T, C>{static_cast<const T *>(query), static_cast<T *>(out), num_heads,
                             cache, block_tables, query_starts, context_lens, num_sequences,
                             table_width, scale, softcap, window},
             threads);
    });
  });
}

template <class Body>
static void with_weight_type(int dtype, Body body) {
  if (dtype == INT8) return body(Type<int8_t>{});
  if (dtype == INT4) return body(Type<int4x2>{});
  with_float_type(dtype, body);
}

template <class T>
static const float *as_float_rows(const T *x, int64_t *stride, int64_t num_rows, int64_t width,
                                  std::vector<float> &memory) {
  if constexpr (std::is_same_v<T, float>) {
    return x;
  } else {
    memory.resize(static_cast<size_t>(num_rows * width));
    for (int64_t row = 0; row < num_rows; row++)
      for_each_vector(width, [&](int64_t i, auto load, auto store) {
        store(memory.data() + row * width + i, load(x + row * *stride + i));
      });
    *stride = width;
    return memory.data();
  }
}

EXPORT void linear(int dtype, int weight_dtype, const void *x, int64_t x_stride, int64_t num_rows,
                   const void *panels, const float *scales, const float *zeros, const float *bias,
                   void *y, int64_t num_outputs, int64_t num_inputs, int64_t block_size,
                   int threads) {
  with_float_type(dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    std::vector<float> memory;
    int64_t stride = x_stride;
    const float *rows =
        as_float_rows(static_cast<const T *>(x), &stride, num_rows, num_inputs, memory);
    with_weight_type(weight_dtype, [&](auto w) {
      using W = typename decltype(w)::type;
      Weight<W> weight = {static_cast<const W *>(panels), scales, zeros,
                          num_outputs, num_inputs, block_size};
      linear(rows, stride, num_rows, weight, bias, static_cast<T *>(y), threads);
    });
  });
}
