// odin_score_{f32,f16,bf16}: everything that is read off the logits, in one pass.
//
//   label[r]    = index of the first largest logit
//   score[r]    = max_i softmax(logits[r] / temperature)_i          ODIN (ICLR 2018, equation 1)
//   baseline[r] = max_i softmax(logits[r])_i       Hendrycks and Gimpel (ICLR 2017)
//   energy[r]   = log sum_i exp(logits[r, i])      minus the energy of Liu et al. (NeurIPS 2020,
//                                                  equation 4), so higher = in-distribution
//   seed[r]     = seed_scale * (softmax(logits[r] / temperature) - onehot(label[r]))
//
// seed is the gradient of -temperature * seed_scale * log(score) with respect to the logits, from
// which the backward graph starts. Any output may be null.
//
// Up to 1024 classes a warp holds its row in registers. A longer row takes a block: both sums of
// exponentials are taken relative to the largest logit so far and rescaled when a larger one comes
// (Milakov and Gimelshein: Online normalizer calculation for softmax, 2018), so that only the seed
// needs a second read.
//
// A row with NaN: NaN, and as label the first NaN. +inf as the largest logit: NaN, as for
// exp(x - max) / sum. -inf has probability 0; a row of nothing else: NaN. The order of additions
// depends on the number of classes alone.
#pragma once

#include "elements.cuh"

namespace odin {

constexpr int kScoreBlock = 128;
constexpr int kScoreBlocks = 5;  // on a multiprocessor: at most 96 registers a thread, none spilled
constexpr int kScoreWarps = kScoreBlock / 32;
constexpr int kScoreWarpClasses = 1024;  // rows of up to so many classes take one warp each

template <typename T>
struct ScoreArguments {
  const T* logits;  // (rows, classes)
  float* score;     // (rows), or null
  float* baseline;  // (rows), or null
  int64_t* label;   // (rows), or null
  float* energy;    // (rows), or null
  T* seed;          // (rows, classes), or null
  float temperature;
  float seed_scale;
  int64_t rows;
  int64_t classes;
};

constexpr float kInfinity = static_cast<float>(INFINITY);

// What is known of some of a row's logits: the largest, where it first stands, and the sums of
// exp((x - maximum) / temperature) and exp(x - maximum). A NaN counts as larger than any number.
struct Softmax {
  float maximum;
  float sum_tempered;
  float sum_plain;
  int64_t index;
};

ODIN_BOTH inline Softmax nothing_from(int64_t index) {
  return Softmax{-kInfinity, 0.0f, 0.0f, index};
}

// exp((x - maximum) / temperature). Of -inf always 0: -inf - -inf would be NaN where the part of
// the row seen so far has nothing finite.
ODIN_BOTH inline float weight(float x, float maximum, float inverse_temperature) {
  return x == -kInfinity ? 0.0f : expf((x - maximum) * inverse_temperature);
}

// x > maximum, with NaN as the largest value.
ODIN_BOTH inline bool exceeds(float x, float maximum) {
  return !(x <= maximum) && !is_nan(maximum);
}

// Whether a's maximum is the row's rather than b's: the larger, and of equal ones the first.
ODIN_BOTH inline bool leads(const Softmax& a, const Softmax& b) {
  if (exceeds(a.maximum, b.maximum)) return true;
  return !exceeds(b.maximum, a.maximum) && a.index < b.index;
}

// The sums of two parts of a row, symmetric to the last bit: all lanes of a butterfly agree.
// Values, not references to the leader: these would put the states into memory.
ODIN_BOTH inline Softmax merged(const Softmax& a, const Softmax& b, float inverse_temperature) {
  const bool first = leads(a, b);
  const float maximum = first ? a.maximum : b.maximum;
  const float other = first ? b.maximum : a.maximum;
  const float tempered = weight(other, maximum, inverse_temperature);
  const float plain = weight(other, maximum, 1.0f);
  return Softmax{maximum,
                 fmaf(first ? b.sum_tempered : a.sum_tempered, tempered,
                      first ? a.sum_tempered : b.sum_tempered),
                 fmaf(first ? b.sum_plain : a.sum_plain, plain,
                      first ? a.sum_plain : b.sum_plain),
                 first ? a.index : b.index};
}

// Add N logits, the first of which is the row's number `first`.
template <int N>
ODIN_BOTH inline void add(Softmax& state, const float (&values)[N], int64_t first,
                          float inverse_temperature) {
  bool rises = false;
  ODIN_UNROLL for (int j = 0; j < N; ++j) rises |= exceeds(values[j], state.maximum);
  if (rises) {
    const float before = state.maximum;
    ODIN_UNROLL for (int j = 0; j < N; ++j) {
      if (exceeds(values[j], state.maximum)) {
        state.maximum = values[j];
        state.index = first + j;
      }
    }
    state.sum_tempered *= weight(before, state.maximum, inverse_temperature);
    state.sum_plain *= weight(before, state.maximum, 1.0f);
  }
  ODIN_UNROLL for (int j = 0; j < N; ++j) {
    state.sum_tempered += weight(values[j], state.maximum, inverse_temperature);
    state.sum_plain += weight(values[j], state.maximum, 1.0f);
  }
}

// One of `threads` threads' part of a row: every threads-th group of 16 bytes.
template <typename T>
ODIN_BOTH inline Softmax scan_row(const T* row, int64_t classes, float inverse_temperature,
                                  int thread, int threads) {
  constexpr int N = kGroup<T>;
  const int64_t start = static_cast<int64_t>(thread) * N;
  Softmax state = nothing_from(start);
  for (int64_t first = start; first < classes; first += static_cast<int64_t>(threads) * N) {
    float values[N];
    load_group(row, first, classes, -kInfinity, values);
    add(state, values, first, inverse_temperature);
  }
  return state;
}

// A row of -inf alone has sums of 0, which would look like certainty.
ODIN_BOTH inline Softmax finished(Softmax state) {
  if (state.maximum == -kInfinity) state.sum_tempered = state.sum_plain = kInfinity - kInfinity;
  return state;
}

template <typename T>
ODIN_BOTH inline void write_row(const ScoreArguments<T>& a, int64_t row, const Softmax& state) {
  if (a.score != nullptr) a.score[row] = 1.0f / state.sum_tempered;
  if (a.baseline != nullptr) a.baseline[row] = 1.0f / state.sum_plain;
  if (a.label != nullptr) a.label[row] = state.index;
  if (a.energy != nullptr) a.energy[row] = state.maximum + logf(state.sum_plain);
}

// Turn a group's exp((x - maximum) / temperature) into the seed.
template <typename T>
ODIN_BOTH inline void write_seed(const ScoreArguments<T>& a, int64_t row, const Softmax& state,
                                 int64_t first, float (&weights)[kGroup<T>]) {
  const float inverse_sum = 1.0f / state.sum_tempered;
  ODIN_UNROLL for (int j = 0; j < kGroup<T>; ++j) {
    const float target = first + j == state.index ? 1.0f : 0.0f;
    weights[j] = a.seed_scale * fmaf(weights[j], inverse_sum, -target);
  }
  store_group(a.seed + row * a.classes, first, a.classes, weights);
}

// One of `threads` threads' part of a long row's seed.
template <typename T>
ODIN_BOTH inline void seed_row(const ScoreArguments<T>& a, int64_t row, const Softmax& state,
                               int thread, int threads) {
  constexpr int N = kGroup<T>;
  const float inverse_temperature = 1.0f / a.temperature;
  for (int64_t first = static_cast<int64_t>(thread) * N; first < a.classes;
       first += static_cast<int64_t>(threads) * N) {
    float values[N];
    load_group(a.logits + row * a.classes, first, a.classes, -kInfinity, values);
    ODIN_UNROLL for (int j = 0; j < N; ++j) {
      values[j] = weight(values[j], state.maximum, inverse_temperature);
    }
    write_seed(a, row, state, first, values);
  }
}

#ifdef __CUDACC__

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline Softmax from_lane(const Softmax& state, int distance) {
  return Softmax{__shfl_xor_sync(kAllLanes, state.maximum, distance),
                 __shfl_xor_sync(kAllLanes, state.sum_tempered, distance),
                 __shfl_xor_sync(kAllLanes, state.sum_plain, distance),
                 __shfl_xor_sync(kAllLanes, state.index, distance)};
}

// All lanes take part and all get the row's state.
__device__ inline Softmax merge_warp(Softmax state, float inverse_temperature) {
  ODIN_UNROLL for (int distance = 16; distance > 0; distance /= 2) {
    state = merged(state, from_lane(state, distance), inverse_temperature);
  }
  return state;
}

// The same before anything is added up: the row's maximum and label alone.
__device__ inline Softmax lead_warp(Softmax state) {
  ODIN_UNROLL for (int distance = 16; distance > 0; distance /= 2) {
    const Softmax other{__shfl_xor_sync(kAllLanes, state.maximum, distance), 0.0f, 0.0f,
                        __shfl_xor_sync(kAllLanes, state.index, distance)};
    if (leads(other, state)) state = other;
  }
  return state;
}

__device__ inline float sum_warp(float sum) {
  ODIN_UNROLL for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(kAllLanes, sum, distance);
  }
  return sum;
}

// A row of at most kScoreWarpClasses: the lanes keep their logits in registers, later the
// exponentials, so that the seed costs no second read. All lanes run the same pieces: what lies
// past the end of the row is -inf and adds nothing.
template <typename T>
__device__ inline void score_by_warp(const ScoreArguments<T>& a, int64_t row, int lane) {
  constexpr int N = kGroup<T>;
  constexpr int kPieces = kScoreWarpClasses / (32 * N);
  const T* logits = a.logits + row * a.classes;
  const float inverse_temperature = 1.0f / a.temperature;
  float values[kPieces][N];
  Softmax state = nothing_from(lane * N);
  ODIN_UNROLL for (int piece = 0; piece < kPieces; ++piece) {
    if (piece * 32 * N >= a.classes) continue;
    const int first = (piece * 32 + lane) * N;
    load_group(logits, first, a.classes, -kInfinity, values[piece]);
    ODIN_UNROLL for (int j = 0; j < N; ++j) {
      if (exceeds(values[piece][j], state.maximum)) {
        state.maximum = values[piece][j];
        state.index = first + j;
      }
    }
  }
  state = lead_warp(state);
  ODIN_UNROLL for (int piece = 0; piece < kPieces; ++piece) {
    if (piece * 32 * N >= a.classes) continue;
    ODIN_UNROLL for (int j = 0; j < N; ++j) {
      const float value = values[piece][j];
      state.sum_plain += weight(value, state.maximum, 1.0f);
      values[piece][j] = weight(value, state.maximum, inverse_temperature);
      state.sum_tempered += values[piece][j];
    }
  }
  state.sum_tempered = sum_warp(state.sum_tempered);
  state.sum_plain = sum_warp(state.sum_plain);
  state = finished(state);
  if (lane == 0) write_row(a, row, state);
  if (a.seed == nullptr) return;
  ODIN_UNROLL for (int piece = 0; piece < kPieces; ++piece) {
    if (piece * 32 * N >= a.classes) continue;
    write_seed(a, row, state, (piece * 32 + lane) * N, values[piece]);
  }
}

// A longer row: each thread scans its groups, each warp merges its lanes, each thread the warps.
template <typename T>
__device__ inline void score_by_block(const ScoreArguments<T>& a, int64_t row) {
  __shared__ Softmax warps[kScoreWarps];
  const int thread = static_cast<int>(threadIdx.x);
  const float inverse_temperature = 1.0f / a.temperature;
  Softmax state = scan_row(a.logits + row * a.classes, a.classes, inverse_temperature, thread,
                           kScoreBlock);
  state = merge_warp(state, inverse_temperature);
  if (thread % 32 == 0) warps[thread / 32] = state;
  __syncthreads();
  state = warps[0];
  ODIN_UNROLL for (int i = 1; i < kScoreWarps; ++i) {
    state = merged(state, warps[i], inverse_temperature);
  }
  __syncthreads();  // the next row's states overwrite these
  state = finished(state);
  if (thread == 0) write_row(a, row, state);
  if (a.seed != nullptr) seed_row(a, row, state, thread, kScoreBlock);
}

template <typename T>
__device__ inline void score_kernel(const ScoreArguments<T>& a) {
  if (a.classes <= kScoreWarpClasses) {
    const int64_t warp = blockIdx.x * static_cast<int64_t>(kScoreWarps) + threadIdx.x / 32;
    const int64_t warps = gridDim.x * static_cast<int64_t>(kScoreWarps);
    for (int64_t row = warp; row < a.rows; row += warps) {
      score_by_warp(a, row, static_cast<int>(threadIdx.x % 32));
    }
  } else {
    for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) score_by_block(a, row);
  }
}

#endif

// The host twin: a warp's or a block's threads one after the other.
template <typename T>
inline void run_on_host(const ScoreArguments<T>& a) {
  const float inverse_temperature = 1.0f / a.temperature;
  const int threads = a.classes <= kScoreWarpClasses ? 32 : kScoreBlock;
  for (int64_t row = 0; row < a.rows; ++row) {
    Softmax states[kScoreBlock];
    for (int thread = 0; thread < threads; ++thread) {
      states[thread] =
          scan_row(a.logits + row * a.classes, a.classes, inverse_temperature, thread, threads);
    }
    for (int warp = 0; warp < threads; warp += 32) {
      for (int distance = 16; distance > 0; distance /= 2) {
        for (int i = warp; i < warp + distance; ++i) {
          states[i] = merged(states[i], states[i + distance], inverse_temperature);
        }
      }
      if (warp > 0) states[0] = merged(states[0], states[warp], inverse_temperature);
    }
    const Softmax state = finished(states[0]);
    write_row(a, row, state);
    if (a.seed != nullptr) seed_row(a, row, state, 0, 1);
  }
}

}  // namespace odin
