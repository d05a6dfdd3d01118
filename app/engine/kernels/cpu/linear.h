// y = x W^T + b with x in float32 (or bf16, widened) and W in a smaller type, widened as it is read.
//
// W [out, in] is kept in panels [out / 16][in][16]: sixteen outputs side by side, so that nothing
// has to be summed across a vector. Few rows read the weights once, straight from memory, which is
// what decoding waits for; many rows widen a piece of panels into the cache and use it for all.
//
// Each output is the sum over blocks of the inputs of (the block's sum, in order) * scale, however
// many rows there are: a row's result has the same bits alone and in any batch.
#pragma once
#include <vector>

#include "rows.h"

constexpr int PANEL = 16;       // outputs side by side
constexpr int MICRO_ROWS = 6;   // rows times a panel: 12 of the 16 registers of AVX2 are sums
constexpr int FEW_PANELS = 4;   // what a thread takes at a time
constexpr int ROW_BLOCK = 96;   // rows that a widened piece of panels is used for
constexpr int64_t PLAIN_BLOCK = 256;  // inputs of a block where there are no scales

struct int4x2 {  // output i in the low half of byte i, output i + 8 in the high half
  uint8_t bits;
};

// The weights of a panel's outputs for one input.
struct PanelRow {
  f32x8 low, high;
};

template <class W>
INLINE PanelRow panel_row(const W *p) {
  return {load8(p), load8(p + LANES)};
}
INLINE PanelRow panel_row(const int4x2 *p) {
  i32x8 both = load8(&p->bits);
  return {__builtin_convertvector(both & 15, f32x8), __builtin_convertvector(both >> 4, f32x8)};
}

template <class W>
struct PanelSize {
  static constexpr int64_t value = PANEL;  // elements for one input
};
template <>
struct PanelSize<int4x2> {
  static constexpr int64_t value = PANEL / 2;
};

template <class W>
struct Weight {
  const W *panels;      // [num_panels][num_inputs][PANEL]
  const float *scales;  // [num_panels][num_blocks][PANEL], or null
  const float *zeros;   // the same, or null: weight = (number - zero) * scale
  int64_t num_outputs, num_inputs, block_size;

  int64_t num_panels() const { return (num_outputs + PANEL - 1) / PANEL; }
  int64_t num_blocks() const { return (num_inputs + block_size - 1) / block_size; }
  const W *at(int64_t panel, int64_t input) const {
    return panels + (panel * num_inputs + input) * PanelSize<W>::value;
  }
  PanelRow of_block(const float *values, int64_t panel, int64_t block) const {
    const float *p = values + (panel * num_blocks() + block) * PANEL;
    return {load8(p), load8(p + LANES)};
  }
};

// sums[row][panel] = x[row] . panel over `count` inputs; `row(p, k)` gives a panel's weights.
template <int ROWS, int PANELS, class Row>
INLINE void multiply(const float *x, int64_t x_stride, int64_t count, Row weights_of,
                     f32x8 (&sums)[ROWS][PANELS][2]) {
  for (int r = 0; r < ROWS; r++)
    for (int p = 0; p < PANELS; p++) sums[r][p][0] = sums[r][p][1] = f32x8{};
  for (int64_t k = 0; k < count; k++) {
    for (int p = 0; p < PANELS; p++) {
      PanelRow w = weights_of(p, k);
      for (int r = 0; r < ROWS; r++) {
        sums[r][p][0] += w.low * x[r * x_stride + k];
        sums[r][p][1] += w.high * x[r * x_stride + k];
      }
    }
  }
}

template <int ROWS, int PANELS>
INLINE void add_to(float *out, int64_t out_stride, const f32x8 (&sums)[ROWS][PANELS][2],
                   const PanelRow *scales) {
  for (int r = 0; r < ROWS; r++) {
    for (int p = 0; p < PANELS; p++) {
      float *to = out + r * out_stride + p * PANEL;
      PanelRow scale = scales[p];
      store8(to, load8(to) + sums[r][p][0] * scale.low);
      store8(to + LANES, load8(to + LANES) + sums[r][p][1] * scale.high);
    }
  }
}

// A few rows times some panels, the weights widened in registers.
template <int ROWS, int PANELS, class W>
static void few_rows(const float *x, int64_t x_stride, const Weight<W> &weight, int64_t panel,
                     float *out, int64_t out_stride) {
  f32x8 sums[ROWS][PANELS][2];
  PanelRow scales[PANELS], zeros[PANELS];
  for (int p = 0; p < PANELS; p++) scales[p] = PanelRow{splat(1), splat(1)};
  for (int64_t block = 0; block < weight.num_blocks(); block++) {
    int64_t first = block * weight.block_size;
    int64_t count = weight.num_inputs - first;
    if (count > weight.block_size) count = weight.block_size;
    const W *piece[PANELS];
    for (int p = 0; p < PANELS; p++) {
      piece[p] = weight.at(panel + p, first);
      if (weight.scales != nullptr) scales[p] = weight.of_block(weight.scales, panel + p, block);
      if (weight.zeros != nullptr) zeros[p] = weight.of_block(weight.zeros, panel + p, block);
    }
    if (weight.zeros == nullptr) {
      multiply<ROWS, PANELS>(x + first, x_stride, count, [&](int p, int64_t k) {
        return panel_row(piece[p] + k * PanelSize<W>::value);
      }, sums);
    } else {
      multiply<ROWS, PANELS>(x + first, x_stride, count, [&](int p, int64_t k) {
        PanelRow row = panel_row(piece[p] + k * PanelSize<W>::value);
        return PanelRow{row.low - zeros[p].low, row.high - zeros[p].high};
      }, sums);
    }
    add_to<ROWS, PANELS>(out, out_stride, sums, scales);
  }
}

// As many panels at once as the registers hold sums for.
template <int ROWS, class W>
static void few_rows_times(const float *x, int64_t x_stride, const Weight<W> &weight,
                           int64_t panel, int64_t num_panels, float *out, int64_t out_stride) {
  constexpr int PANELS = ROWS == 1 ? 4 : ROWS <= 3 ? 2 : 1;
  int64_t p = 0;
  for (; p + PANELS <= num_panels; p += PANELS)
    few_rows<ROWS, PANELS>(x, x_stride, weight, panel + p, out + p * PANEL, out_stride);
  for (; p < num_panels; p++)
    few_rows<ROWS, 1>(x, x_stride, weight, panel + p, out + p * PANEL, out_stride);
}

// A block of inputs of some panels as floats: [num_panels][count][PANEL].
template <class W>
INLINE const float *widened(const Weight<W> &weight, int64_t panel, int64_t num_panels,
                            int64_t block, int64_t first, int64_t count, float *scratch) {
  for (int64_t p = 0; p < num_panels; p++) {
    PanelRow zeros = {};
    if (weight.zeros != nullptr) zeros = weight.of_block(weight.zeros, panel + p, block);
    const W *from = weight.at(panel + p, first);
    float *to = scratch + p * count * PANEL;
    for (int64_t k = 0; k < count; k++) {
      PanelRow row = panel_row(from + k * PanelSize<W>::value);
      store8(to + k * PANEL, row.low - zeros.low);
      store8(to + k * PANEL + LANES, row.high - zeros.high);
    }
  }
  return scratch;
}

template <int ROWS>
INLINE void micro_tile(const float *x, int64_t x_stride, const float *panel, int64_t count,
                       PanelRow scale, float *out, int64_t out_stride) {
  f32x8 sums[ROWS][1][2];
  multiply<ROWS, 1>(x, x_stride, count, [&](int, int64_t k) { return panel_row(panel + k * PANEL); },
                    sums);
  add_to<ROWS, 1>(out, out_stride, sums, &scale);
}

// Call body(std::integral_constant) for a number of rows from 1 to MICRO_ROWS.
template <class Body>
INLINE void with_rows(int64_t rows, Body body) {
  switch (rows) {
    case 1: return body(std::integral_constant<int, 1>{});
    case 2: return body(std::integral_constant<int, 2>{});
    case 3: return body(std::integral_constant<int, 3>{});
    case 4: return body(std::integral_constant<int, 4>{});
    case 5: return body(std::integral_constant<int, 5>{});
    default: return body(std::integral_constant<int, 6>{});
  }
}

template <class W>
static void many_rows_times(const float *x, int64_t x_stride, int64_t num_rows,
                            const Weight<W> &weight, int64_t panel, int64_t num_panels, float *out,
                            int64_t out_stride) {
  thread_local std::vector<float> scratch;
  scratch.resize(static_cast<size_t>(FEW_PANELS * weight.block_size * PANEL));
  for (int64_t block = 0; block < weight.num_blocks(); block++) {
    int64_t first = block * weight.block_size;
    int64_t count = weight.num_inputs - first;
    if (count > weight.block_size) count = weight.block_size;
    const float *pieces = widened(weight, panel, num_panels, block, first, count, scratch.data());
    for (int64_t row = 0; row < num_rows; row += MICRO_ROWS) {
      int64_t rows = num_rows - row < MICRO_ROWS ? num_rows - row : MICRO_ROWS;
      for (int64_t p = 0; p < num_panels; p++) {
        PanelRow scale = {splat(1), splat(1)};
        if (weight.scales != nullptr) scale = weight.of_block(weight.scales, panel + p, block);
        with_rows(rows, [&](auto R) {
          micro_tile<R>(x + row * x_stride + first, x_stride, pieces + p * count * PANEL, count,
                        scale, out + row * out_stride + p * PANEL, out_stride);
        });
      }
    }
  }
}

// Rounds a block of sums [num_rows, out_stride] into its place in y, with the bias.
template <class T>
INLINE void write_out(const float *sums, int64_t out_stride, const float *bias, T *y,
                      int64_t num_rows, int64_t num_outputs, int64_t first, int64_t count) {
  for (int64_t row = 0; row < num_rows; row++) {
    for_each_vector(count, [&](int64_t i, auto load, auto store) {
      f32x8 sum = load8(sums + row * out_stride + i);
      if (bias != nullptr) sum += load(bias + first + i);
      store(y + row * num_outputs + first + i, sum);
    });
  }
}

// x: [rows, in] float32, rows x_stride apart; y: [rows, out].
template <class T, class W>
static void linear(const float *x, int64_t x_stride, int64_t num_rows, const Weight<W> &weight,
                   const float *bias, T *y, int threads) {
  int64_t row_blocks = (num_rows + ROW_BLOCK - 1) / ROW_BLOCK;
  int64_t panel_groups = (weight.num_panels() + FEW_PANELS - 1) / FEW_PANELS;
  parallel_for(row_blocks * panel_groups, threads, [&](int64_t item) {
    int64_t row = item % row_blocks * ROW_BLOCK, panel = item / row_blocks * FEW_PANELS;
    int64_t rows = num_rows - row < ROW_BLOCK ? num_rows - row : ROW_BLOCK;
    int64_t panels = weight.num_panels() - panel;
    if (panels > FEW_PANELS) panels = FEW_PANELS;
    constexpr int64_t stride = FEW_PANELS * PANEL;
    alignas(64) float sums[ROW_BLOCK * stride];
    memset(sums, 0, sizeof(float) * static_cast<size_t>(rows * stride));
    const float *from = x + row * x_stride;
    if (rows <= MICRO_ROWS) {
      with_rows(rows, [&](auto R) {
        few_rows_times<R>(from, x_stride, weight, panel, panels, sums, stride);
      });
    } else {
      many_rows_times(from, x_stride, rows, weight, panel, panels, sums, stride);
    }
    int64_t first = panel * PANEL, left = weight.num_outputs - first;
    write_out(sums, stride, bias, y + row * weight.num_outputs, rows, weight.num_outputs, first,
              left < stride ? left : stride);
  });
}
