// The kernels and their launches in one translation unit: nvcc makes of it the object with the
// launchers and, on the way, the fat binary.
#include <cuda_runtime_api.h>

#include <algorithm>

#include "enqueue.hpp"
#include "odin_kernels.cu"

namespace odin {

static_assert(ODIN_NORMALIZE_BLOCK == kNormalizeBlock, "header and kernel disagree");
static_assert(ODIN_PERTURB_BLOCK == kPerturbBlock, "header and kernel disagree");
static_assert(ODIN_SCORE_BLOCK == kScoreBlock, "header and kernel disagree");
static_assert(ODIN_FIRST_ORDER_BLOCK == kFirstOrderBlock, "header and kernel disagree");
static_assert(ODIN_SCORE_WARP_CLASSES == kScoreWarpClasses, "header and kernel disagree");

const bool kHasCuda = true;

namespace {

template <typename T>
struct Kernels;

#define ODIN_KERNELS_OF(SUFFIX, T)                                  \
  template <>                                                       \
  struct Kernels<T> {                                               \
    static constexpr auto* normalize = odin_normalize_##SUFFIX;     \
    static constexpr auto* perturb = odin_perturb_##SUFFIX;         \
    static constexpr auto* score = odin_score_##SUFFIX;             \
    static constexpr auto* first_order = odin_first_order_##SUFFIX; \
  };

ODIN_KERNELS_OF(f32, float)
ODIN_KERNELS_OF(f16, Half)
ODIN_KERNELS_OF(bf16, Bfloat16)

struct Shape {
  int64_t work;       // what is to be done
  int64_t per_block;  // and how much of it a block does in one turn
  int block;
};

template <typename... Parameters>
odin_status launch(const char* function, void (*kernel)(Parameters...), Shape shape, void* stream,
                   Parameters... parameters) {
  const int64_t blocks = shape.work / shape.per_block + (shape.work % shape.per_block != 0);
  const dim3 grid(static_cast<unsigned>(
      std::clamp(blocks, int64_t{1}, static_cast<int64_t>(ODIN_MOST_BLOCKS))));
  void* addresses[] = {static_cast<void*>(&parameters)...};
  const cudaError_t error =
      cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid,
                       dim3(static_cast<unsigned>(shape.block)), addresses, 0,
                       static_cast<cudaStream_t>(stream));
  if (error == cudaSuccess) return ODIN_OK;
  cudaGetLastError();  // reported here, so not again by the caller's next check
  return fail(ODIN_CUDA_FAILED, function, "the launch, or work before it, failed: %s: %s",
              cudaGetErrorName(error), cudaGetErrorString(error));
}

template <typename T>
odin_status enqueue_kernel(const char* function, const NormalizeArguments<T>& a, void* stream) {
  const Shape shape{a.count * a.plane, int64_t{kNormalizeBlock} * kGroup<T>, kNormalizeBlock};
  return launch(function, Kernels<T>::normalize, shape, stream, a.pixels, a.images, a.scale,
                a.offset, a.count, a.plane, a.channels);
}

template <typename T>
odin_status enqueue_kernel(const char* function, const PerturbArguments<T>& a, void* stream) {
  const Shape shape{a.count * a.channels * a.plane, int64_t{kPerturbBlock} * kGroup<T>,
                    kPerturbBlock};
  return launch(function, Kernels<T>::perturb, shape, stream, a.images, a.gradient, a.perturbed,
                a.steps, a.channel_scale, a.low, a.high, a.count, a.plane, a.channels,
                a.magnitudes);
}

template <typename T>
odin_status enqueue_kernel(const char* function, const ScoreArguments<T>& a, void* stream) {
  const int64_t rows_per_block = a.classes <= kScoreWarpClasses ? kScoreWarps : 1;
  return launch(function, Kernels<T>::score, Shape{a.rows, rows_per_block, kScoreBlock}, stream,
                a.logits, a.score, a.baseline, a.label, a.energy, a.seed, a.temperature,
                a.seed_scale, a.rows, a.classes);
}

template <typename T>
odin_status enqueue_kernel(const char* function, const FirstOrderArguments<T>& a, void* stream) {
  return launch(function, Kernels<T>::first_order, Shape{a.count, 1, kFirstOrderBlock}, stream,
                a.gradient, a.channel_scale, a.probability, a.steps, a.total, a.score, a.count,
                a.plane, a.channels, a.magnitudes);
}

}  // namespace

template <typename Arguments>
odin_status enqueue(const char* function, const Arguments& arguments, void* stream) {
  return enqueue_kernel(function, arguments, stream);
}

ODIN_ENQUEUE_ALL(float)
ODIN_ENQUEUE_ALL(Half)
ODIN_ENQUEUE_ALL(Bfloat16)

}  // namespace odin
