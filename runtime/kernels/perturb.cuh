// odin_perturb_{f32,f16,bf16}: ODIN's step along the sign of the gradient, for many magnitudes.
//
//   perturbed[m, n, c, p] = images[n, c, p] - steps[m] * channel_scale[c] * sign(gradient[n, c, p])
//
// Liang, Li, Srikant: Enhancing the reliability of out-of-distribution image detection in neural
// networks (ICLR 2018), equation 2, with the gradient of -log max softmax. As in the authors' code,
// channel_scale = 1 / std (the step is in units of the pixels), and a gradient of zero, also -0,
// counts as positive. Given low and high (the normalised values of black and white), results are
// clamped to [low[c], high[c]].
//
// Computed in float32 with one rounding, then rounded to T. NaN in an image or a gradient gives
// NaN, also through the clamp. Image and gradient are loaded once for all magnitudes.
#pragma once

#include "elements.cuh"

namespace odin {

constexpr int kPerturbBlock = 256;

template <typename T>
struct PerturbArguments {
  const T* images;             // (count, channels, plane)
  const T* gradient;           // (count, channels, plane)
  T* perturbed;                // (magnitudes, count, channels, plane)
  const float* steps;          // (magnitudes)
  const float* channel_scale;  // (channels)
  const float* low;            // (channels), or null: no clamp
  const float* high;           // (channels), or null: no clamp
  int64_t count;
  int64_t plane;
  int32_t channels;
  int32_t magnitudes;
};

// +1 for both zeros; NaN stays NaN.
ODIN_BOTH inline float sign_of(float gradient) {
  if (is_nan(gradient)) return gradient;
  return gradient < 0.0f ? -1.0f : 1.0f;
}

// Comparisons, not fminf and fmaxf: these would drop a NaN.
ODIN_BOTH inline float clamped(float value, float low, float high) {
  if (value < low) return low;
  return value > high ? high : value;
}

// N elements from the flat index `first` on.
template <int N, typename T>
ODIN_BOTH inline void perturb_elements(const PerturbArguments<T>& a, int64_t total, int64_t first) {
  const bool clamps = a.low != nullptr && a.high != nullptr;
  float image[N], move[N], low[N], high[N];
  load<N>(a.images + first, image);
  load<N>(a.gradient + first, move);
  Place place = place_of(first, a.plane, a.channels);
  ODIN_UNROLL for (int j = 0; j < N; ++j) {
    move[j] = sign_of(move[j]) * read(a.channel_scale + place.channel);
    low[j] = clamps ? read(a.low + place.channel) : 0.0f;
    high[j] = clamps ? read(a.high + place.channel) : 0.0f;
    place = next(place, a.plane, a.channels);
  }
  // Not unrolled: the stores take the time, and copies of the loop would take registers.
  ODIN_UNROLL_BY(1) for (int32_t m = 0; m < a.magnitudes; ++m) {
    const float step = read(a.steps + m);
    float values[N];
    ODIN_UNROLL for (int j = 0; j < N; ++j) {
      const float value = fmaf(-step, move[j], image[j]);
      values[j] = clamps ? clamped(value, low[j], high[j]) : value;
    }
    store<N>(a.perturbed + m * total + first, values);
  }
}

// Whole groups where all three tensors reach a 16-byte address at the same element, in every
// magnitude; the elements before the first and after the last group one by one.
template <typename T>
ODIN_BOTH inline void perturb(const PerturbArguments<T>& a, Share share) {
  constexpr int N = kGroup<T>;
  const int64_t total = a.count * a.channels * a.plane;
  const uintptr_t start = reinterpret_cast<uintptr_t>(a.images) % 16;
  const bool together = reinterpret_cast<uintptr_t>(a.gradient) % 16 == start &&
                        reinterpret_cast<uintptr_t>(a.perturbed) % 16 == start &&
                        (a.magnitudes == 1 || total % N == 0);
  const int64_t to_boundary = static_cast<int64_t>((16 - start) % 16 / sizeof(T));
  const int64_t head = together && to_boundary < total ? to_boundary : total;
  const int64_t groups = (total - head) / N;
  for (int64_t i = share.first; i < groups; i += share.step) {
    perturb_elements<N>(a, total, head + i * N);
  }
  for (int64_t i = share.first; i < total - groups * N; i += share.step) {
    perturb_elements<1>(a, total, i < head ? i : i + groups * N);
  }
}

#ifdef __CUDACC__
template <typename T>
__device__ inline void perturb_kernel(const PerturbArguments<T>& a) {
  perturb(a, share_of_thread());
}
#endif

// The host twin.
template <typename T>
inline void run_on_host(const PerturbArguments<T>& a) {
  perturb(a, kWhole);
}

}  // namespace odin
