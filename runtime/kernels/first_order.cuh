// odin_first_order_{f32,f16,bf16}: the weighted L1 norm of each image's gradient, and from it the
// first-order ODIN score for many magnitudes.
//
//   total[n]    = sum over c, p of |gradient[n, c, p]| * channel_scale[c]
//   score[m, n] = probability[n] * exp(steps[m] * total[n])
//
// A step of size e along the sign of the gradient g of log max softmax raises that logarithm by
// e |g|_1 to first order (Liang, Li, Srikant, ICLR 2018, equation 2 expanded in e); the host sets
// steps[m] = magnitude_m / (temperature * seed_scale).
//
// One block an image. The sum's order depends on the image's size alone: each thread adds the
// groups of 16 bytes that are its own, whatever their address, then a fixed tree adds the threads.
#pragma once

#include "elements.cuh"

namespace odin {

constexpr int kFirstOrderBlock = 256;
constexpr int kFirstOrderWarps = kFirstOrderBlock / 32;

template <typename T>
struct FirstOrderArguments {
  const T* gradient;           // (count, channels, plane)
  const float* channel_scale;  // (channels)
  const float* probability;    // (count), or null: no scores
  const float* steps;          // (magnitudes)
  float* total;                // (count), or null
  float* score;                // (magnitudes, count), or null
  int64_t count;
  int64_t plane;
  int32_t channels;
  int32_t magnitudes;
};

ODIN_BOTH inline float first_order_score(float probability, float step, float total) {
  return probability * expf(step * total);
}

// What one of the block's threads adds up of one image. One sum for each element of a group: short
// chains of additions are faster and lose less.
template <typename T>
ODIN_BOTH inline float thread_total(const FirstOrderArguments<T>& a, int64_t image, int thread) {
  constexpr int N = kGroup<T>;
  const int64_t size = a.channels * a.plane;
  const T* row = a.gradient + image * size;
  float sums[N] = {};
  for (int64_t first = static_cast<int64_t>(thread) * N; first < size;
       first += static_cast<int64_t>(kFirstOrderBlock) * N) {
    float values[N];
    load_group(row, first, size, 0.0f, values);
    Place place = place_of(first, a.plane, a.channels);
    ODIN_UNROLL for (int j = 0; j < N; ++j) {
      sums[j] = fmaf(fabsf(values[j]), read(a.channel_scale + place.channel), sums[j]);
      place = next(place, a.plane, a.channels);
    }
  }
  ODIN_UNROLL for (int width = N / 2; width > 0; width /= 2) {
    ODIN_UNROLL for (int j = 0; j < width; ++j) sums[j] += sums[j + width];
  }
  return sums[0];
}

ODIN_BOTH inline float sum_of_warps(const float* warps) {
  float sum = 0.0f;
  ODIN_UNROLL for (int i = 0; i < kFirstOrderWarps; ++i) sum += warps[i];
  return sum;
}

#ifdef __CUDACC__
template <typename T>
__device__ inline void first_order_kernel(const FirstOrderArguments<T>& a) {
  __shared__ float warps[kFirstOrderWarps];
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t image = blockIdx.x; image < a.count; image += gridDim.x) {
    float sum = thread_total(a, image, thread);
    ODIN_UNROLL for (int distance = 16; distance > 0; distance /= 2) {
      sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    }
    if (thread % 32 == 0) warps[thread / 32] = sum;
    __syncthreads();
    const float total = sum_of_warps(warps);
    if (thread == 0 && a.total != nullptr) a.total[image] = total;
    if (a.score != nullptr && a.probability != nullptr) {
      const float probability = read(a.probability + image);
      for (int64_t m = thread; m < a.magnitudes; m += kFirstOrderBlock) {
        a.score[m * a.count + image] = first_order_score(probability, read(a.steps + m), total);
      }
    }
    __syncthreads();  // the next image's sums overwrite these
  }
}
#endif

// The host twin: the same threads one after the other, the same tree.
template <typename T>
inline void run_on_host(const FirstOrderArguments<T>& a) {
  for (int64_t image = 0; image < a.count; ++image) {
    float warps[kFirstOrderWarps];
    for (int warp = 0; warp < kFirstOrderWarps; ++warp) {
      float lanes[32];
      for (int lane = 0; lane < 32; ++lane) lanes[lane] = thread_total(a, image, warp * 32 + lane);
      for (int distance = 16; distance > 0; distance /= 2) {
        for (int lane = 0; lane < distance; ++lane) lanes[lane] += lanes[lane + distance];
      }
      warps[warp] = lanes[0];
    }
    const float total = sum_of_warps(warps);
    if (a.total != nullptr) a.total[image] = total;
    if (a.score == nullptr || a.probability == nullptr) continue;
    for (int32_t m = 0; m < a.magnitudes; ++m) {
      a.score[m * a.count + image] = first_order_score(a.probability[image], a.steps[m], total);
    }
  }
}

}  // namespace odin
