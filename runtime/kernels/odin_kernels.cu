// The kernels by name, each for float32, float16 and bfloat16: what the fat binary exports.
//
//   nvcc -std=c++17 -fatbin -gencode ... odin_kernels.cu -o odin_kernels.fatbin
//
// Launch with the block size that the kernel's header names and any grid of at least one block;
// runtime/include/odin/kernels.h documents the grids that the launchers use. No kernel allocates,
// synchronises or keeps state, so all can be captured in CUDA graphs. Outputs must not overlap
// inputs.
#include "first_order.cuh"
#include "normalize.cuh"
#include "perturb.cuh"
#include "score.cuh"

#define ODIN_KERNELS(SUFFIX, T)                                                                    \
  extern "C" __global__ void __launch_bounds__(odin::kNormalizeBlock) odin_normalize_##SUFFIX(     \
      const uint8_t* pixels, T* images, const float* scale, const float* offset, int64_t count,    \
      int64_t plane, int32_t channels) {                                                           \
    odin::normalize_kernel<T>({pixels, images, scale, offset, count, plane, channels});            \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(odin::kPerturbBlock) odin_perturb_##SUFFIX(         \
      const T* images, const T* gradient, T* perturbed, const float* steps,                        \
      const float* channel_scale, const float* low, const float* high, int64_t count,              \
      int64_t plane, int32_t channels, int32_t magnitudes) {                                       \
    odin::perturb_kernel<T>({images, gradient, perturbed, steps, channel_scale, low, high, count,  \
                             plane, channels, magnitudes});                                        \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(odin::kScoreBlock, odin::kScoreBlocks)              \
      odin_score_##SUFFIX(const T* logits, float* score, float* baseline, int64_t* label,          \
                          float* energy, T* seed, float temperature, float seed_scale,             \
                          int64_t rows, int64_t classes) {                                         \
    odin::score_kernel<T>({logits, score, baseline, label, energy, seed, temperature, seed_scale,  \
                           rows, classes});                                                        \
  }                                                                                                \
  extern "C" __global__ void __launch_bounds__(odin::kFirstOrderBlock) odin_first_order_##SUFFIX(  \
      const T* gradient, const float* channel_scale, const float* probability,                     \
      const float* steps, float* total, float* score, int64_t count, int64_t plane,                \
      int32_t channels, int32_t magnitudes) {                                                      \
    odin::first_order_kernel<T>({gradient, channel_scale, probability, steps, total, score, count, \
                                 plane, channels, magnitudes});                                    \
  }

ODIN_KERNELS(f32, float)
ODIN_KERNELS(f16, odin::Half)
ODIN_KERNELS(bf16, odin::Bfloat16)
