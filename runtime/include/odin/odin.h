/* The ODIN scorer as a C library, libodin: a bundle in, scores out.
 *
 *   odin_scorer* scorer = NULL;
 *   if (odin_scorer_open("densenet10", NULL, &scorer) != ODIN_OK) puts(odin_scorer_last_error());
 *   odin_images images = {.size = sizeof images, .type = ODIN_U8_NHWC, .data = pixels,
 *                         .count = 16, .height = 32, .width = 32, .channels = 3};
 *   odin_scores scores = {.size = sizeof scores, .score = score};
 *   odin_scorer_score(scorer, &images, &scores);
 *   odin_scorer_close(scorer);
 *
 * Link with odin::odin of find_package(odin), or with `pkg-config --libs odin`.
 *
 * Conventions
 *   - Functions return ODIN_OK or what is wrong, of which odin_scorer_last_error has the details.
 *     No C++ exception leaves the library.
 *   - Structs begin with their size, which the caller sets to sizeof; zero or NULL in the rest is
 *     the default. A library older than the header takes a struct whose new fields are zero, and
 *     refuses others; a newer one takes what the caller's header did not have for zero.
 *   - A scorer may be used by any number of threads at once. Closing it is for one thread, when no
 *     other uses it.
 *   - Pointers are to memory of the host, unless a struct says that they are to memory of the
 *     device. Nothing is kept of the caller's after a call but the callbacks and contexts given to
 *     odin_scorer_open and, until the work is done, what odin_scorer_enqueue was given.
 *
 * Engines. The library may have been built without either; an engine that is asked for is never
 * replaced by another.
 *   ODIN_ENGINE_OPENVINO  the CPU.
 *   ODIN_ENGINE_TENSORRT  an NVIDIA GPU: the bundle's plans and kernels of our own. The plans are
 *       built by 'odin-export BUNDLE --engine trt', for the GPU and the version of TensorRT that it
 *       finds. Both forms are run: the fused one (images to scores) and the split one (a gradient
 *       and a forward plan); of a bundle that holds both, the fused one is taken, or if it is
 *       tunable the split one, as in Python. libnvinfer is loaded when it is first needed.
 *   ODIN_ENGINE_AUTO      TensorRT, if the library was built with it and the bundle says of its
 *       plans that they can be run on the GPU, and their hashes are right; else OpenVINO, and the
 *       log tells why (ODIN_LOG_INFO). Plans that then cannot be opened are an error.
 *
 * TensorRT. Each part of a batch is computed in a lane: execution contexts, memory for the largest
 * part that the plans take (or options.batch_size), and a stream, which nobody else has. There are
 * at most options.streams lanes, made when they are wanted; threads for which there is none wait.
 * The device that is current in the caller's thread is the same after each call as before. Calls
 * allocate and wait, so no thread may be capturing a CUDA graph in the global mode meanwhile.
 *
 * The process keeps one OpenVINO core and TensorRT's library, from the first scorer to its end; the
 * library stays loaded (dlclose does not remove it).
 */
#ifndef ODIN_ODIN_H
#define ODIN_ODIN_H

#include <stddef.h>

#include "odin/kernels.h" /* odin_status, ODIN_API, ODIN_VERSION_... */

#ifdef __cplusplus
extern "C" {
#endif

/* Further values of odin_status; those below 16 are in kernels.h. */
enum {
  ODIN_NOT_FOUND = 16,
  ODIN_DAMAGED = 17,
  ODIN_TOO_NEW = 18,
  ODIN_UNSUPPORTED = 19,
  ODIN_NO_ENGINE = 20,
  ODIN_ENGINE_FAILED = 21,
  ODIN_NO_MEMORY = 22,
  ODIN_INTERNAL = 23
};

/* A bundle opened in an engine. */
typedef struct odin_scorer odin_scorer;

typedef int32_t odin_engine;
enum {
  ODIN_ENGINE_AUTO = 0,    /* the fastest that the library was built with and that runs here */
  ODIN_ENGINE_OPENVINO = 1, /* the CPU */
  ODIN_ENGINE_TENSORRT = 2  /* an NVIDIA GPU */
};

/* Where a batch's images or its results lie. */
typedef int32_t odin_memory;
enum {
  ODIN_HOST = 0,
  ODIN_DEVICE = 1 /* memory of the scorer's GPU (cudaMalloc, or managed): for TensorRT alone */
};

/* In what the network is computed. Scores are float32 always. */
typedef int32_t odin_precision;
enum {
  ODIN_PRECISION_BUNDLE = 0, /* as the bundle says */
  ODIN_PRECISION_FP32 = 1,
  ODIN_PRECISION_BF16 = 2, /* of a CPU that has bfloat16, or a bundle exported so */
  ODIN_PRECISION_FP16 = 3  /* of a bundle exported so */
};

typedef int32_t odin_log_level;
enum { ODIN_LOG_DEBUG = 0, ODIN_LOG_INFO = 1, ODIN_LOG_WARNING = 2 };

/* Told what happens: `text` is one line without its end, valid during the call. Called on the
 * thread that opens, scores or closes, so by several at once. It must return (no exception, no
 * longjmp), and must not use the scorer. */
typedef void (*odin_log_callback)(void* context, odin_log_level level, const char* text);

/* Memory for the scorer and for OpenVINO's copies of images. (The engines, and the library for what
 * it reads of the bundle and for short lists, use malloc; TensorRT's memory is CUDA's.) Several
 * threads call both functions at once. They must return, as the log's. */
typedef struct odin_allocator {
  void* context;
  /* At least `bytes`, at a multiple of `alignment`, a power of two; NULL where there is no more. */
  void* (*allocate)(void* context, size_t bytes, size_t alignment);
  /* Of what `allocate` returned for these bytes; never NULL. */
  void (*deallocate)(void* context, void* memory, size_t bytes);
} odin_allocator;

typedef struct odin_scorer_options {
  uint64_t size; /* sizeof(odin_scorer_options) */
  odin_engine engine;
  odin_precision precision;
  int32_t threads;    /* in all, 1 to 4096; 0: as many as there are cores, or a container may use;
                         OpenVINO's */
  int32_t streams;    /* parts computed at once; 0: one (OpenVINO, where each has its share of the
                         threads) or two (TensorRT, where one is copied while one is computed) */
  int32_t batch_size; /* most images of a part, 1 to 65536; 0: what the engine is fastest with, or
                         the most that the plans take */
  int32_t device;     /* number of the GPU; TensorRT's */
  const char* cache;  /* a folder that exists, for OpenVINO's compiled graphs, from which the
                         library removes nothing; NULL: they are not kept */
  odin_log_callback log; /* may be NULL */
  void* log_context;
  odin_allocator allocator; /* both functions, or neither */
} odin_scorer_options;

/* What is known of a scorer. Pointers are valid until it is closed. */
typedef struct odin_scorer_info {
  uint64_t size; /* sizeof(odin_scorer_info), set by the caller */
  const char* model;        /* "densenet10" */
  const char* architecture; /* as reports print it */
  const char* in_dataset;   /* that the network was trained on; "" if it is not known */
  const char* method;       /* "exact" or "first-order" */
  const char* input_type;   /* "float32": the library normalises raw images; "uint8": the graph
                               does, and takes nothing else */
  const char* engine;       /* "openvino", or "trt" for TensorRT, as in Python */
  const char* precision;    /* in which it computes: "fp32", "bf16", "fp16" */
  const double* mean;       /* (channels), for pixels in [0, 1]: (pixel - mean) / std */
  const double* std;
  int64_t classes;
  int32_t channels;
  int32_t least_height, most_height; /* of images, in pixels: those that the plans take, or the */
  int32_t least_width, most_width;   /* network */
  int32_t batch_size; /* most images of a part */
  double temperature;
  double magnitude;   /* in units of pixels in [0, 1] */
  int32_t tunable;    /* 1 if temperature and magnitude are inputs of the graph, else 0 */
  int32_t calibrated; /* 1 if there is a threshold for these scores, else 0 */
  double threshold;   /* images that score below it are out-of-distribution; NaN if there is none */
} odin_scorer_info;

typedef int32_t odin_image_type;
enum {
  ODIN_U8_NHWC = 0, /* raw pixels, uint8 (count, height, width, channels) */
  ODIN_F32_NCHW = 1 /* normalised, float32 (count, channels, height, width) */
};

/* A batch of any number of images, dense. A float32 image with a value that is NaN or infinite has
 * the score and the baseline NaN. */
typedef struct odin_images {
  uint64_t size; /* sizeof(odin_images) */
  const void* data;
  int64_t count, height, width, channels;
  odin_image_type type;
  odin_memory memory; /* of data */
} odin_images;

/* Where results go; each pointer may be NULL. Higher scores mean in-distribution. */
typedef struct odin_scores {
  uint64_t size;   /* sizeof(odin_scores) */
  float* score;    /* (count) ODIN's */
  float* baseline; /* (count) largest softmax probability */
  int64_t* label;  /* (count) predicted class */
  uint8_t* is_ood; /* (count) 1 if the score is below the threshold, or NaN, else 0; for calibrated
                      bundles only */
  float* logits;   /* (count, classes) */
  float* percentile;  /* (count) the conformal p-value: (1 + how many images of the calibration
                         score below it) / (1 + their number), interpolated; NaN for NaN; for
                         calibrated bundles only */
  odin_memory memory; /* of all of these. is_ood and percentile are for memory of the host alone */
  int32_t reserved;   /* 0 */
} odin_scores;

/* Version of the library: 10000 * major + 100 * minor + patch. */
ODIN_API int32_t odin_scorer_version(void);

/* 1 if the library was built with an engine, else 0. Whether it runs here, opening tells. */
ODIN_API int32_t odin_scorer_has_engine(odin_engine engine);

/* What a status of this header or of kernels.h means, one line, static. */
ODIN_API const char* odin_scorer_status_text(odin_status status);

/* What was wrong in this thread's last call that did not return ODIN_OK, with the remedy. Valid
 * until this thread's next failing call; "" before the first. */
ODIN_API const char* odin_scorer_last_error(void);

/* Open a bundle: a folder that odin-export wrote. Its description is checked, and size and SHA-256
 * of each of its files, before any is used.
 * options  NULL for the defaults
 * scorer   the handle, for odin_scorer_close; NULL where the call fails
 * Status:
 *   ODIN_NOT_FOUND      no bundle there, or one of its files is missing
 *   ODIN_DAMAGED        its description is wrong, or a file was changed
 *   ODIN_TOO_NEW        it was written by a newer version
 *   ODIN_UNSUPPORTED    the engine does not compute it in the precision, here or anywhere; or there
 *                       are no plans of it, or those are for another GPU or version of TensorRT
 *   ODIN_NO_ENGINE      the library was built without the engine; or there is no GPU for it here,
 *                       or no library of TensorRT
 *   ODIN_ENGINE_FAILED  the engine does not open the graph or the plan
 *   ODIN_CUDA_FAILED    CUDA fails
 *   ODIN_BAD_VALUE, ODIN_BAD_SIZE, ODIN_NULL_POINTER, ODIN_NO_MEMORY */
ODIN_API odin_status odin_scorer_open(const char* bundle, const odin_scorer_options* options,
                                      odin_scorer** scorer);

/* Free a scorer; NULL is none. Waits for what odin_scorer_enqueue has queued. */
ODIN_API void odin_scorer_close(odin_scorer* scorer);

/* Write to `info` what is known of a scorer. */
ODIN_API odin_status odin_scorer_get_info(const odin_scorer* scorer, odin_scorer_info* info);

/* Score images; returns when all is written. With OpenVINO the first call with images of another
 * size, or with another rest of count / batch_size, compiles the graph for it, which may take
 * seconds. Memory of the device is read and written on a stream of the scorer's: what writes the
 * images, and what still uses the memory of the results, must be done before the call. What others
 * have queued in the same lane by odin_scorer_enqueue comes first.
 * Status:
 *   ODIN_BAD_SIZE       the network, or the plans, do not take images of this size or of these
 *                       channels
 *   ODIN_BAD_TYPE       the type is unknown, or float32 where the bundle takes uint8 alone
 *   ODIN_UNSUPPORTED    is_ood or percentile is asked of a bundle that is not calibrated for these
 *                       scores, or on the device; or memory of the device is given to OpenVINO
 *   ODIN_BAD_VALUE      what is said to be on the device is not, or is on another
 *   ODIN_MISALIGNED, ODIN_NULL_POINTER
 * nothing is written then; and, where part of the results may have been written,
 *   ODIN_ENGINE_FAILED, ODIN_CUDA_FAILED, ODIN_NO_MEMORY */
ODIN_API odin_status odin_scorer_score(odin_scorer* scorer, const odin_images* images,
                                       const odin_scores* scores);

/* Queue scoring images of the device on a stream; returns before it is done. For TensorRT.
 *
 * The work is done on a stream of the scorer's, after what the caller's stream holds at the call
 * and before what comes to it later: for the caller it has its place in that stream. So
 *   - images and results must stay as they are, and allocated, until the stream has come so far
 *     (cudaStreamSynchronize, or an event recorded after the call); the structs need not;
 *   - the stream may be destroyed, and the scorer closed, before that: closing waits;
 *   - work of several streams is done at the same time, as far as there are lanes; beyond that one
 *     waits for the other, so no stream may wait for the host to score first;
 *   - threads may call at once;
 *   - the call itself waits only if other threads use all lanes.
 * Where images are raw (and the plan's input is float32) or each part's lie at a multiple of 256
 * bytes, they are read where they lie, unless a part has fewer than the plans take; else they are
 * copied once, on the device.
 * images, scores  both of memory ODIN_DEVICE
 * stream          a cudaStream_t of the scorer's device, not being captured; NULL is the legacy
 *                 default stream
 * Status: as odin_scorer_score, and ODIN_UNSUPPORTED where OpenVINO scores, memory is of the host
 * or the stream is being captured. What fails on the device after the call is told by the next call
 * of CUDA or of this library, as ODIN_CUDA_FAILED. */
ODIN_API odin_status odin_scorer_enqueue(odin_scorer* scorer, const odin_images* images,
                                         const odin_scores* scores, void* stream);

#ifdef __cplusplus
}
#endif

#endif
