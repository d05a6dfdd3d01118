// Attention over the block table, reading keys and values where they are.
//
// A task is a few query vectors that see the same keys: the heads of one group, for one row or,
// in chunks of prompts, a few rows. It walks the positions in tiles of 16 with an online softmax
// (Milakov & Gimelshein, 2018). Positions are cut into partitions of 512 at fixed places, each with
// a softmax of its own, merged in order: a partition may be a task of its own, so a single long
// sequence uses all threads, and the result has the same bits however the work was shared out.
#pragma once
#include <limits>
#include <vector>

#include "cache.h"

constexpr int TILE = 16;             // positions
constexpr int MAX_QUERIES = 16;      // query vectors of a task
constexpr int MAX_HEAD_DIM = 256;
constexpr int64_t PARTITION = 512;   // positions, cut to whole blocks
constexpr float MINUS_INFINITY = -std::numeric_limits<float>::infinity();

template <class T, class C>
struct Attention {
  const T *query;  // [rows, H, D]
  T *out;          // [rows, H, D]
  int64_t num_heads;
  LayerCache<C> cache;
  const int32_t *block_tables;   // [B, table_width]
  const int32_t *query_starts;   // [B + 1]
  const int32_t *context_lens;   // [B]
  int64_t num_sequences, table_width;
  float scale, softcap;  // softcap 0: none
  int64_t window;        // 0: none

  int64_t group() const { return num_heads / cache.num_kv_heads; }
  int64_t partition_size() const {
    int64_t blocks = PARTITION / cache.block_size;
    return (blocks > 0 ? blocks : 1) * cache.block_size;
  }
};

struct Task {
  int64_t sequence, kv_head;
  int64_t first_row, num_rows;    // of the step
  int64_t first_head, num_heads;  // of the group
  int64_t first_position;         // of the first row
  int64_t begin, end;             // positions that any of the rows may see

  int num_queries() const { return static_cast<int>(num_rows * num_heads); }
};

// An online softmax in progress, for each query vector of a task.
struct Partial {
  float largest[MAX_QUERIES], total[MAX_QUERIES];
  float weighted[MAX_QUERIES * MAX_HEAD_DIM];

  void clear(int num_queries, int64_t head_dim) {
    for (int q = 0; q < num_queries; q++) largest[q] = MINUS_INFINITY, total[q] = 0;
    memset(weighted, 0, sizeof(float) * static_cast<size_t>(num_queries * head_dim));
  }

  void merge(const Partial &next, int num_queries, int64_t head_dim) {
    for (int q = 0; q < num_queries; q++) {
      if (next.largest[q] == MINUS_INFINITY) continue;
      float most = largest[q] > next.largest[q] ? largest[q] : next.largest[q];
      f32x8 mine = exp8(splat(largest[q] - most)), theirs = exp8(splat(next.largest[q] - most));
      largest[q] = most;
      total[q] = total[q] * mine[0] + next.total[q] * theirs[0];
      for (int64_t i = q * head_dim; i < (q + 1) * head_dim; i += LANES)
        store8(weighted + i, load8(weighted + i) * mine + load8(next.weighted + i) * theirs);
    }
  }
};

// The keys or values of `count` positions as floats: [TILE, D]. Floats are read in place.
INLINE const float *as_floats(const float *data, const float *, int, int64_t, float *) {
  return data;
}
INLINE const float *as_floats(const bf16 *data, const float *, int count, int64_t head_dim,
                              float *scratch) {
  for (int64_t i = 0; i < count * head_dim; i += LANES) store8(scratch + i, load8(data + i));
  return scratch;
}
INLINE const float *as_floats(const int8_t *data, const float *scales, int count,
                              int64_t head_dim, float *scratch) {
  for (int s = 0; s < count; s++)
    for (int64_t i = s * head_dim; i < (s + 1) * head_dim; i += LANES)
      store8(scratch + i, load8(data + i) * scales[s]);
  return scratch;
}

// scores[q][s] = query[q] . keys[s] for some query vectors and a whole tile.
template <int QUERIES>
INLINE void dot_products(const float *query, const float *keys, int64_t head_dim, float *scores) {
  for (int s = 0; s < TILE; s += 4) {
    f32x8 sums[QUERIES][4] = {};
    for (int64_t i = 0; i < head_dim; i += LANES) {
      f32x8 key[4];
      for (int j = 0; j < 4; j++) key[j] = load8(keys + (s + j) * head_dim + i);
      for (int q = 0; q < QUERIES; q++) {
        f32x8 x = load8(query + q * head_dim + i);
        for (int j = 0; j < 4; j++) sums[q][j] += x * key[j];
      }
    }
    for (int q = 0; q < QUERIES; q++) {
      f32x8 four = sums_of(sums[q][0], sums[q][1], sums[q][2], sums[q][3]);
      memcpy(scores + q * TILE + s, &four, 4 * sizeof(float));
    }
  }
}

// weighted[q] = weighted[q] * shrink[q] + sum over s of weights[q][s] * values[s].
template <int QUERIES, int VECTORS>
INLINE void add_values(const float *weights, const float *shrink, const float *values, int count,
                       int64_t head_dim, float *weighted) {
  f32x8 sums[QUERIES][VECTORS];
  for (int q = 0; q < QUERIES; q++)
    for (int v = 0; v < VECTORS; v++)
      sums[q][v] = load8(weighted + q * head_dim + v * LANES) * shrink[q];
  for (int s = 0; s < count; s++) {
    for (int v = 0; v < VECTORS; v++) {
      f32x8 value = load8(values + s * head_dim + v * LANES);
      for (int q = 0; q < QUERIES; q++) sums[q][v] += weights[q * TILE + s] * value;
    }
  }
  for (int q = 0; q < QUERIES; q++)
    for (int v = 0; v < VECTORS; v++) store8(weighted + q * head_dim + v * LANES, sums[q][v]);
}

template <int QUERIES>
INLINE void add_all_values(const float *weights, const float *shrink, const float *values,
                           int count, int64_t head_dim, float *weighted) {
  int64_t i = 0;
  for (; i + 4 * LANES <= head_dim; i += 4 * LANES)
    add_values<QUERIES, 4>(weights, shrink, values + i, count, head_dim, weighted + i);
  for (; i < head_dim; i += LANES)
    add_values<QUERIES, 1>(weights, shrink, values + i, count, head_dim, weighted + i);
}

// Turns a row of scores into weights and returns by how much the older ones shrink.
INLINE float soften(float *scores, int first_visible, int end_visible, float scale, float softcap,
                    float *largest, float *total) {
  f32x8 score[2];
  for (int half = 0; half < 2; half++) {
    f32x8 x = load8(scores + half * LANES) * scale;
    if (softcap != 0) x = softcap * tanh8(x / softcap);
    i32x8 lane = i32x8{0, 1, 2, 3, 4, 5, 6, 7} + half * LANES;
    score[half] = (lane >= first_visible) & (lane < end_visible) ? x : splat(MINUS_INFINITY);
  }
  float most = max_of(max8(score[0], score[1]));
  if (most < *largest) most = *largest;
  if (most == MINUS_INFINITY) {  // nothing to see, here or before
    memset(scores, 0, TILE * sizeof(float));
    return 1;
  }
  f32x8 sum = {};
  for (int half = 0; half < 2; half++) {
    f32x8 weight = exp8(score[half] - most);
    store8(scores + half * LANES, weight);
    sum += weight;
  }
  float shrink = most == *largest ? 1.0f : exp8(splat(*largest - most))[0];
  *largest = most;
  *total = *total * shrink + sum_of(sum);
  return shrink;
}

template <class T, class C>
struct TaskRunner {
  const Attention<T, C> &attention;
  const Task &task;
  float query[MAX_QUERIES * MAX_HEAD_DIM];
  float scratch[TILE * MAX_HEAD_DIM];
  float scores[MAX_QUERIES * TILE];
  float shrink[MAX_QUERIES];

  TaskRunner(const Attention<T, C> &attention, const Task &task)
      : attention(attention), task(task) {
    int64_t head_dim = attention.cache.head_dim;
    for (int q = 0; q < task.num_queries(); q++) {
      const T *from = attention.query + vector_of(q) * head_dim;
      for (int64_t i = 0; i < head_dim; i += LANES)
        store8(query + q * head_dim + i, load8(from + i));
    }
  }

  // The place of query vector q among [rows, H].
  int64_t vector_of(int q) const {
    int64_t row = task.first_row + q / task.num_heads;
    int64_t head = task.first_head + q % task.num_heads;
    return row * attention.num_heads + task.kv_head * attention.group() + head;
  }

  void run(int64_t begin, int64_t end, Partial &partial) {
    const auto &cache = attention.cache;
    const int32_t *table = attention.block_tables + task.sequence * attention.table_width;
    partial.clear(task.num_queries(), cache.head_dim);
    for (int64_t block = begin / cache.block_size; block * cache.block_size < end; block++) {
      for (int64_t offset = 0; offset < cache.block_size; offset += TILE) {
        int64_t start = block * cache.block_size + offset;
        int64_t left = cache.block_size - offset < TILE ? cache.block_size - offset : TILE;
        if (start + left <= begin || start >= end) continue;
        int count = static_cast<int>(end - start < left ? end - start : left);
        add_tile(table[block], offset, start, count, partial);
      }
    }
  }

  void add_tile(int64_t block, int64_t offset, int64_t start, int count, Partial &partial) {
    const auto &cache = attention.cache;
    int64_t head_dim = cache.head_dim;
    score_tile(cache.token(block, 0, task.kv_head, offset), count);
    for (int q = 0; q < task.num_queries(); q++) {
      int64_t seen = task.first_position + q / task.num_heads + 1 - start;
      int64_t first = attention.window == 0 ? 0 : seen - attention.window;
      int end = static_cast<int>(seen < 0 ? 0 : seen < count ? seen : count);
      int begin = static_cast<int>(first < 0 ? 0 : first < TILE ? first : TILE);
      shrink[q] = soften(scores + q * TILE, begin, end, attention.scale, attention.softcap,
                         partial.largest + q, partial.total + q);
    }
    int64_t token = cache.token(block, 1, task.kv_head, offset);
    const float *values = as_floats(cache.numbers(token), cache.scale(token), count, head_dim,
                                    scratch);
    int q = 0;
    for (; q + 2 <= task.num_queries(); q += 2)
      add_all_values<2>(scores + q * TILE, shrink + q, values, count, head_dim,
                        partial.weighted + q * head_dim);
    if (q < task.num_queries())
      add_all_values<1>(scores + q * TILE, shrink + q, values, count, head_dim,
                        partial.weighted + q * head_dim);
  }

  // The last tile of a block may be short: what follows it is not ours to read.
  void score_tile(int64_t token, int count) {
    const auto &cache = attention.cache;
    int64_t head_dim = cache.head_dim;
    const float *keys = as_floats(cache.numbers(token), cache.scale(token), count, head_dim,
                                  scratch);
    if (count < TILE) {
      if (keys != scratch) memcpy(scratch, keys, sizeof(float) * static_cast<size_t>(count * head_dim));
      memset(scratch + count * head_dim, 0, sizeof(float) * static_cast<size_t>((TILE - count) * head_dim));
      keys = scratch;
    }
    int q = 0;
    for (; q + 2 <= task.num_queries(); q += 2)
      dot_products<2>(query + q * head_dim, keys, head_dim, scores + q * TILE);
    if (q < task.num_queries())
      dot_products<1>(query + q * head_dim, keys, head_dim, scores + q * TILE);
  }

  void finish(const Partial &partial) {
    int64_t head_dim = attention.cache.head_dim;
    for (int q = 0; q < task.num_queries(); q++) {
      T *to = attention.out + vector_of(q) * head_dim;
      float share = 1.0f / partial.total[q];
      for (int64_t i = 0; i < head_dim; i += LANES)
        store8(to + i, load8(partial.weighted + q * head_dim + i) * share);
    }
  }
};

template <class T, class C>
static std::vector<Task> make_tasks(const Attention<T, C> &attention) {
  std::vector<Task> tasks;
  int64_t group = attention.group();
  int64_t heads = group < MAX_QUERIES ? group : MAX_QUERIES;
  int64_t rows = MAX_QUERIES / heads;
  for (int64_t b = 0; b < attention.num_sequences; b++) {
    int64_t first = attention.query_starts[b], last = attention.query_starts[b + 1];
    int64_t offset = attention.context_lens[b] - last;  // from a row to its position
    for (int64_t row = first; row < last; row += rows) {
      int64_t num_rows = last - row < rows ? last - row : rows;
      int64_t begin = attention.window == 0 ? 0 : row + offset - attention.window + 1;
      for (int64_t kv_head = 0; kv_head < attention.cache.num_kv_heads; kv_head++)
        for (int64_t head = 0; head < group; head += heads)
          tasks.push_back({b, kv_head, row, num_rows, head,
                           group - head < heads ? group - head : heads, row + offset,
                           begin < 0 ? 0 : begin, row + offset + num_rows});
    }
  }
  return tasks;
}

// One thread does a whole task, partition after partition.
template <class T, class C>
static void run_whole(const Attention<T, C> &attention, const Task &task) {
  TaskRunner<T, C> runner(attention, task);
  int64_t size = attention.partition_size(), head_dim = attention.cache.head_dim;
  Partial sum, next;
  sum.clear(task.num_queries(), head_dim);
  for (int64_t start = task.begin / size * size; start < task.end; start += size) {
    runner.run(start > task.begin ? start : task.begin,
               start + size < task.end ? start + size : task.end, next);
    sum.merge(next, task.num_queries(), head_dim);
  }
  runner.finish(sum);
}

struct Piece {
  int64_t task, begin, end;
};

// With fewer tasks than threads, each partition is shared out by itself.
template <class T, class C>
static void run_in_pieces(const Attention<T, C> &attention, const std::vector<Task> &tasks,
                          int threads) {
  int64_t size = attention.partition_size(), head_dim = attention.cache.head_dim;
  std::vector<Piece> pieces;
  for (size_t t = 0; t < tasks.size(); t++)
    for (int64_t start = tasks[t].begin / size * size; start < tasks[t].end; start += size)
      pieces.push_back({static_cast<int64_t>(t), start > tasks[t].begin ? start : tasks[t].begin,
                        start + size < tasks[t].end ? start + size : tasks[t].end});
  std::vector<Partial> partials(pieces.size());
  parallel_for(static_cast<int64_t>(pieces.size()), threads, [&](int64_t i) {
    TaskRunner<T, C> runner(attention, tasks[pieces[i].task]);
    runner.run(pieces[i].begin, pieces[i].end, partials[i]);
  });
  size_t piece = 0;
  for (size_t t = 0; t < tasks.size(); t++) {
    Partial sum;
    sum.clear(tasks[t].num_queries(), head_dim);
    for (; piece < pieces.size() && pieces[piece].task == static_cast<int64_t>(t); piece++)
      sum.merge(partials[piece], tasks[t].num_queries(), head_dim);
    TaskRunner<T, C>(attention, tasks[t]).finish(sum);
  }
}

template <class T, class C>
static void attend(const Attention<T, C> &attention, int threads) {
  std::vector<Task> tasks = make_tasks(attention);
  if (static_cast<int>(tasks.size()) < threads)
    run_in_pieces(attention, tasks, threads);
  else
    parallel_for(static_cast<int64_t>(tasks.size()), threads,
                 [&](int64_t t) { run_whole(attention, tasks[static_cast<size_t>(t)]); });
}
