// Where things are in the block pool [N, num_layers, 2, K, S, D], seen from one layer of it.
#pragma once
#include "rows.h"

template <class T>
struct LayerCache {
  T *data;        // the first number of the layer's keys in block 0: float, bf16 or int8
  float *scales;  // with int8, the same place of [N, num_layers, 2, K, S]; else null
  int64_t block_stride;  // between two blocks, in tokens (of D numbers, or of one scale)
  int64_t num_kv_heads, block_size, head_dim;

  // The index of a token; part 0 holds keys, 1 values.
  int64_t token(int64_t block, int64_t part, int64_t kv_head, int64_t offset) const {
    return block * block_stride + (part * num_kv_heads + kv_head) * block_size + offset;
  }
  T *numbers(int64_t token) const { return data + token * head_dim; }
  float *scale(int64_t token) const { return scales == nullptr ? nullptr : scales + token; }
};

template <class T>
INLINE void store_token(const T *row, T *to, float *, int64_t head_dim) {
  memcpy(to, row, static_cast<size_t>(head_dim) * sizeof(T));
}

// Symmetric int8, one scale for a token's head: value = int8 * scale.
template <class T>
INLINE void store_token(const T *row, int8_t *to, float *scale, int64_t head_dim) {
  f32x8 most = {};
  for_each_vector(head_dim, [&](int64_t i, auto load, auto) {
    f32x8 value = load(row + i);
    most = max8(most, max8(value, -value));
  });
  float largest = max_of(most);
  *scale = largest > 0 ? largest / 127.0f : 1.0f;
  for_each_vector(head_dim, [&](int64_t i, auto load, auto) {
    f32x8 ratio = load(row + i) / *scale;
    int64_t count = head_dim - i < LANES ? head_dim - i : LANES;
    for (int64_t lane = 0; lane < count; lane++)
      to[i + lane] = static_cast<int8_t>(std::nearbyint(ratio[lane]));
  });
}

// key, value: [rows, K, D], each row contiguous; slot = block * S + offset.
template <class T, class C>
static void store_kv(const T *key, const T *value, int64_t key_stride, int64_t value_stride,
                     const int64_t *slots, int64_t num_rows, const LayerCache<C> &cache,
                     int threads) {
  parallel_ranges(num_rows, 32, threads, [&](int64_t row) {
    int64_t block = slots[row] / cache.block_size, offset = slots[row] % cache.block_size;
    for (int part = 0; part < 2; part++) {
      const T *from = part == 0 ? key + row * key_stride : value + row * value_stride;
      for (int64_t head = 0; head < cache.num_kv_heads; head++) {
        int64_t token = cache.token(block, part, head, offset);
        store_token(from + head * cache.head_dim, cache.numbers(token), cache.scale(token),
                    cache.head_dim);
      }
    }
  });
}
