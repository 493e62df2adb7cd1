/* The kernels of the ODIN scorer as a C library: stream-ordered launchers and host twins.
 *
 * Each launcher enqueues one kernel on the caller's stream and returns; its pointers are device
 * pointers. Nothing is allocated or waited for and no state is kept between calls, so every call
 * can be captured in a CUDA graph. The host twin (..._host) computes the same from host pointers,
 * at once, on one thread, and needs no CUDA. Outputs must not overlap inputs.
 *
 * Conventions
 *   - Tensors are dense and row-major. `void*` stands for the type given by `odin_type`; all such
 *     tensors of a call have that type. Arithmetic is float32, results are rounded to nearest even.
 *   - Any size from 0 on; any address that is a multiple of the element's size. Addresses and sizes
 *     that allow it are read and written 16 bytes at a time.
 *   - NaN in an input gives NaN in what depends on it.
 *   - Results are the same from run to run: no atomics, and the order of every sum depends on the
 *     sizes alone.
 *   - "may be NULL": then not read, or not written. Tensors without elements may always be NULL.
 *   - Functions return ODIN_OK or what is wrong; nothing has been written or enqueued then.
 *
 * Launch shapes. Blocks are ODIN_*_BLOCK threads: the kernels accept no other size. Any grid of at
 * least one block is right; the launchers take one block for each
 *   odin_normalize     256 groups of 16 bytes of one channel's images
 *   odin_perturb       256 groups of 16 bytes of the images
 *   odin_score         4 rows of up to ODIN_SCORE_WARP_CLASSES classes, or 1 longer row
 *   odin_first_order   image
 * but at most ODIN_MOST_BLOCKS, after which the blocks take turns.
 */
#ifndef ODIN_KERNELS_H
#define ODIN_KERNELS_H

#include <stdint.h>

#if defined(ODIN_BUILDING) && defined(__GNUC__)
#define ODIN_API __attribute__((visibility("default")))
#elif defined(ODIN_BUILDING) && defined(_WIN32)
#define ODIN_API __declspec(dllexport)
#else
#define ODIN_API
#endif

#define ODIN_VERSION_MAJOR 0
#define ODIN_VERSION_MINOR 1
#define ODIN_VERSION_PATCH 0

#define ODIN_NORMALIZE_BLOCK 256
#define ODIN_PERTURB_BLOCK 256
#define ODIN_SCORE_BLOCK 128
#define ODIN_FIRST_ORDER_BLOCK 256
#define ODIN_SCORE_WARP_CLASSES 1024
#define ODIN_MOST_BLOCKS 4096

#ifdef __cplusplus
extern "C" {
#endif

/* Plain integers, so that a wrong value from another language is an error and not undefined. */
typedef int32_t odin_type;
enum { ODIN_F32 = 0, ODIN_F16 = 1, ODIN_BF16 = 2 };

typedef int32_t odin_status;
enum {
  ODIN_OK = 0,
  ODIN_NULL_POINTER = 1,
  ODIN_MISALIGNED = 2,
  ODIN_BAD_SIZE = 3,
  ODIN_BAD_TYPE = 4,
  ODIN_BAD_VALUE = 5,
  ODIN_NO_CUDA = 6,
  ODIN_CUDA_FAILED = 7
};

/* Version of the library: 10000 * major + 100 * minor + patch. */
ODIN_API int32_t odin_version(void);

/* 1 if the library holds the CUDA kernels, 0 if it was built without nvcc: then the launchers
 * return ODIN_NO_CUDA. */
ODIN_API int32_t odin_has_cuda(void);

/* What a status means, one line, static. Of an unknown status it says so. */
ODIN_API const char* odin_status_text(odin_status status);

/* What was wrong in this thread's last call that did not return ODIN_OK: the function, the argument
 * and, for ODIN_CUDA_FAILED, CUDA's own error, which may be that of earlier work on the device.
 * Valid until this thread's next failing call; "" before the first. */
ODIN_API const char* odin_last_error(void);

/* Normalise images, channels last to channels first:
 *   images[n, c, p] = pixels[n, p, c] * scale[c] - offset[c]
 * pixels  (count, plane, channels), plane = height * width
 * images  (count, channels, plane) of the given type
 * scale, offset  (channels): 1 / (255 std) and mean / std
 * stream  a cudaStream_t of the current device; NULL is the legacy default stream. */
ODIN_API odin_status odin_normalize(odin_type type, const uint8_t* pixels, void* images,
                                    const float* scale, const float* offset, int64_t count,
                                    int64_t plane, int32_t channels, void* stream);
ODIN_API odin_status odin_normalize_host(odin_type type, const uint8_t* pixels, void* images,
                                         const float* scale, const float* offset, int64_t count,
                                         int64_t plane, int32_t channels);

/* ODIN's perturbation (Liang, Li, Srikant, ICLR 2018, equation 2) for several magnitudes:
 *   perturbed[m, n, c, p] = images[n, c, p] - steps[m] * channel_scale[c] * sign(gradient[n, c, p])
 * where both zeros have the sign +1, clamped to [low[c], high[c]] unless both are NULL.
 * images, gradient  (count, channels, plane);  perturbed  (magnitudes, count, channels, plane)
 * steps  (magnitudes);  channel_scale  (channels): 1 / std;  low, high  (channels) */
ODIN_API odin_status odin_perturb(odin_type type, const void* images, const void* gradient,
                                  void* perturbed, const float* steps, const float* channel_scale,
                                  const float* low, const float* high, int64_t count, int64_t plane,
                                  int32_t channels, int32_t magnitudes, void* stream);
ODIN_API odin_status odin_perturb_host(odin_type type, const void* images, const void* gradient,
                                       void* perturbed, const float* steps,
                                       const float* channel_scale, const float* low,
                                       const float* high, int64_t count, int64_t plane,
                                       int32_t channels, int32_t magnitudes);

/* What the logits tell, each output may be NULL:
 *   score     (rows)           max softmax(logits / temperature)
 *   baseline  (rows)           max softmax(logits)
 *   label     (rows)           index of the first largest logit, or of the first NaN
 *   energy    (rows)           log sum exp(logits); higher = in-distribution
 *   seed      (rows, classes)  seed_scale * (softmax(logits / temperature) - onehot(label))
 * logits  (rows, classes), at least one class;  temperature  a normal number above 0.
 * -inf has probability 0; a row of -inf alone or with +inf scores NaN. */
ODIN_API odin_status odin_score(odin_type type, const void* logits, float* score, float* baseline,
                                int64_t* label, float* energy, void* seed, float temperature,
                                float seed_scale, int64_t rows, int64_t classes, void* stream);
ODIN_API odin_status odin_score_host(odin_type type, const void* logits, float* score,
                                     float* baseline, int64_t* label, float* energy, void* seed,
                                     float temperature, float seed_scale, int64_t rows,
                                     int64_t classes);

/* The first-order score for several magnitudes:
 *   total[n]    = sum over c, p of |gradient[n, c, p]| * channel_scale[c]
 *   score[m, n] = probability[n] * exp(steps[m] * total[n])
 * gradient  (count, channels, plane);  channel_scale  (channels): 1 / std
 * probability  (count), steps  (magnitudes): may be NULL if score is
 * total  (count), may be NULL;  score  (magnitudes, count), may be NULL */
ODIN_API odin_status odin_first_order(odin_type type, const void* gradient,
                                      const float* channel_scale, const float* probability,
                                      const float* steps, float* total, float* score, int64_t count,
                                      int64_t plane, int32_t channels, int32_t magnitudes,
                                      void* stream);
ODIN_API odin_status odin_first_order_host(odin_type type, const void* gradient,
                                           const float* channel_scale, const float* probability,
                                           const float* steps, float* total, float* score,
                                           int64_t count, int64_t plane, int32_t channels,
                                           int32_t magnitudes);

#ifdef __cplusplus
}
#endif

#endif
