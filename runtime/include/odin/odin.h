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
 *   - Pointers are to memory of the host. Nothing is kept of the caller's after a call but the
 *     callbacks and contexts given to odin_scorer_open.
 *
 * Engines. OpenVINO scores on the CPU; the library may have been built without it. No library of
 * this version scores on a GPU: each is built without TensorRT, and ODIN_ENGINE_TENSORRT is
 * ODIN_NO_ENGINE, never another engine in its place. Images and scores on a device, and streams of
 * the caller, are not in this version either: kernels.h has the kernels alone.
 *
 * The process keeps one OpenVINO core, from the first scorer to its end; the library stays loaded
 * (dlclose does not remove it).
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
  ODIN_ENGINE_TENSORRT = 2  /* an NVIDIA GPU: ODIN_NO_ENGINE in this version */
};

/* In what the network is computed. Scores are float32 always. */
typedef int32_t odin_precision;
enum {
  ODIN_PRECISION_BUNDLE = 0, /* as the bundle says */
  ODIN_PRECISION_FP32 = 1,
  ODIN_PRECISION_BF16 = 2, /* of a CPU that has bfloat16 */
  ODIN_PRECISION_FP16 = 3  /* of a bundle exported so */
};

typedef int32_t odin_log_level;
enum { ODIN_LOG_DEBUG = 0, ODIN_LOG_INFO = 1, ODIN_LOG_WARNING = 2 };

/* Told what happens: `text` is one line without its end, valid during the call. Called on the
 * thread that opens or scores, so by several at once. It must return (no exception, no longjmp),
 * and must not use the scorer. */
typedef void (*odin_log_callback)(void* context, odin_log_level level, const char* text);

/* Memory for the scorer and for its copies of images. (The engine, and the library for what it
 * reads of the bundle and for short lists, use malloc.) Several threads call both functions at
 * once. They must return, as the log's. */
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
  int32_t threads;    /* in all, 1 to 4096; 0: as many as there are cores, or a container may use */
  int32_t streams;    /* parts computed at once, each with its share of the threads; 0: one */
  int32_t batch_size; /* most images of a part, 1 to 65536; 0: what the engine is fastest with */
  int32_t reserved;   /* 0 */
  const char* cache;  /* a folder that exists, for compiled graphs, from which the library removes
                         nothing; NULL: they are not kept */
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
  const char* engine;       /* "openvino" */
  const char* precision;    /* in which it computes: "fp32", "bf16", "fp16" */
  const double* mean;       /* (channels), for pixels in [0, 1]: (pixel - mean) / std */
  const double* std;
  int64_t classes;
  int32_t channels;
  int32_t least_height, most_height; /* of images, in pixels */
  int32_t least_width, most_width;
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
  int32_t reserved; /* 0 */
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
 *   ODIN_UNSUPPORTED    the engine does not compute it in the precision, here or anywhere
 *   ODIN_NO_ENGINE      the library was built without the engine
 *   ODIN_ENGINE_FAILED  the engine does not open the graph
 *   ODIN_BAD_VALUE, ODIN_BAD_SIZE, ODIN_NULL_POINTER, ODIN_NO_MEMORY */
ODIN_API odin_status odin_scorer_open(const char* bundle, const odin_scorer_options* options,
                                      odin_scorer** scorer);

/* Free a scorer; NULL is none. */
ODIN_API void odin_scorer_close(odin_scorer* scorer);

/* Write to `info` what is known of a scorer. */
ODIN_API odin_status odin_scorer_get_info(const odin_scorer* scorer, odin_scorer_info* info);

/* Score images; returns when all is written. The first call with images of another size, or with
 * another rest of count / batch_size, compiles the graph for it, which may take seconds.
 * Status:
 *   ODIN_BAD_SIZE       the network does not take images of this size or of these channels
 *   ODIN_BAD_TYPE       the type is unknown, or float32 where the bundle takes uint8 alone
 *   ODIN_UNSUPPORTED    is_ood is asked of a bundle that is not calibrated for these scores
 *   ODIN_MISALIGNED, ODIN_NULL_POINTER, ODIN_BAD_VALUE
 * nothing is written then; and, where part of the results may have been written,
 *   ODIN_ENGINE_FAILED, ODIN_NO_MEMORY */
ODIN_API odin_status odin_scorer_score(odin_scorer* scorer, const odin_images* images,
                                       const odin_scores* scores);

#ifdef __cplusplus
}
#endif

#endif
