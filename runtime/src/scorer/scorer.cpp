// The functions of odin.h.
#include <math.h>

#include <exception>
#include <new>

#include "decision.hpp"
#include "failure.hpp"
#include "images.hpp"
#include "opening.hpp"
#include "options.hpp"

using odin::detail::fail;
using odin::detail::Failure;
using odin::detail::Spec;
using odin::detail::Targets;

namespace {

thread_local char last_error[2048] = "";

odin_status remember(odin_status status, const char* function, const char* text) noexcept {
  snprintf(last_error, sizeof last_error, "%s: %s", function, text);
  return status;
}

// Run what may throw, and return the status of what it threw.
template <typename Work>
odin_status guarded(const char* function, Work work) noexcept {
  try {
    work();
    return ODIN_OK;
  } catch (const Failure& failure) {
    return remember(failure.status, function, failure.text.c_str());
  } catch (const std::bad_alloc&) {
    return remember(ODIN_NO_MEMORY, function, "there is no memory left");
  } catch (const std::exception& error) {
    return remember(ODIN_INTERNAL, function, error.what());
  } catch (...) {
    return remember(ODIN_INTERNAL, function, "something unknown was thrown");
  }
}

template <typename T>
void check_pointer(const char* name, const T* pointer) {
  if (pointer == nullptr) fail(ODIN_NULL_POINTER, "%s is null", name);
}

template <typename T>
void check_aligned(const char* name, const T* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(T) != 0) {
    fail(ODIN_MISALIGNED, "%s is not at a multiple of %zu bytes", name, alignof(T));
  }
}

void check_memory(const char* name, odin_memory memory) {
  if (memory != ODIN_HOST && memory != ODIN_DEVICE) {
    fail(ODIN_BAD_VALUE, "%s.memory is %d; it must be ODIN_HOST or ODIN_DEVICE", name, memory);
  }
}

void check_scores(const odin_scorer& scorer, const odin_scores& scores) {
  check_memory("scores", scores.memory);
  if (scores.reserved != 0) fail(ODIN_BAD_VALUE, "scores.reserved is not 0");
  check_aligned("scores.score", scores.score);
  check_aligned("scores.baseline", scores.baseline);
  check_aligned("scores.label", scores.label);
  check_aligned("scores.logits", scores.logits);
  check_aligned("scores.percentile", scores.percentile);
  const char* asked = scores.is_ood != nullptr       ? "is_ood"
                      : scores.percentile != nullptr ? "percentile"
                                                     : nullptr;
  if (asked == nullptr) return;
  odin::detail::check_calibrated(scorer.bundle, asked);
  if (scores.memory == ODIN_DEVICE) {
    fail(ODIN_UNSUPPORTED,
         "scores.%s is found on the host: give host memory (ODIN_HOST) to odin_scorer_score, or "
         "compare the scores with the threshold of odin_scorer_get_info",
         asked);
  }
}

// The caller's structs, whole and checked.
struct Call {
  odin_images images;
  odin_scores scores;
};

Call checked_call(odin_scorer* scorer, const odin_images* images, const odin_scores* scores) {
  check_pointer("scorer", scorer);
  check_pointer("images", images);
  check_pointer("scores", scores);
  const Call call = {
      odin::detail::whole_struct(images, "odin_images", sizeof(odin_images)),
      odin::detail::whole_struct(scores, "odin_scores", offsetof(odin_scores, percentile))};
  check_memory("images", call.images.memory);
  odin::detail::check_images(call.images, scorer->bundle.spec);
  check_scores(*scorer, call.scores);
  return call;
}

Targets targets_of(const odin_scores& scores, float* score) {
  return {score, scores.baseline, scores.label, scores.logits, scores.memory};
}

}  // namespace

extern "C" {

int32_t odin_scorer_version(void) {
  return 10000 * ODIN_VERSION_MAJOR + 100 * ODIN_VERSION_MINOR + ODIN_VERSION_PATCH;
}

int32_t odin_scorer_has_engine(odin_engine engine) {
  const bool automatic = engine == ODIN_ENGINE_AUTO;
  const bool on_cpu = automatic || engine == ODIN_ENGINE_OPENVINO;
  const bool on_gpu = automatic || engine == ODIN_ENGINE_TENSORRT;
  return (on_cpu && odin::detail::kHasOpenVino) || (on_gpu && odin::detail::kHasTensorRt) ? 1 : 0;
}

const char* odin_scorer_last_error(void) { return last_error; }

const char* odin_scorer_status_text(odin_status status) {
  switch (status) {
    case ODIN_OK:
      return "success";
    case ODIN_NULL_POINTER:
      return "a pointer that must be given is null";
    case ODIN_MISALIGNED:
      return "a pointer is not at a multiple of its elements' size";
    case ODIN_BAD_SIZE:
      return "a size is not one that the network, or the library, takes";
    case ODIN_BAD_TYPE:
      return "the type is not one that is taken here";
    case ODIN_BAD_VALUE:
      return "a number is outside its range";
    case ODIN_NO_CUDA:
      return "the library was built without nvcc: it holds the host functions alone";
    case ODIN_CUDA_FAILED:
      return "CUDA could not launch the kernel, or work before it failed";
    case ODIN_NOT_FOUND:
      return "a bundle, a file or a folder is not there or cannot be read";
    case ODIN_DAMAGED:
      return "the bundle is damaged";
    case ODIN_TOO_NEW:
      return "the bundle was written by a newer version";
    case ODIN_UNSUPPORTED:
      return "the bundle or the engine cannot do what is asked";
    case ODIN_NO_ENGINE:
      return "the library was built without the engine, or it does not run here";
    case ODIN_ENGINE_FAILED:
      return "the engine failed";
    case ODIN_NO_MEMORY:
      return "there is no memory left";
    case ODIN_INTERNAL:
      return "the library failed in a way that it should not";
    default:
      return "unknown status";
  }
}

odin_status odin_scorer_open(const char* bundle, const odin_scorer_options* options,
                             odin_scorer** scorer) {
  return guarded(__func__, [&] {
    check_pointer("scorer", scorer);
    *scorer = nullptr;
    check_pointer("bundle", bundle);
    *scorer = odin::detail::opened(bundle, odin::detail::checked_options(options));
  });
}

void odin_scorer_close(odin_scorer* scorer) {
  if (scorer == nullptr) return;
  const odin_allocator allocator = scorer->allocator;
  scorer->~odin_scorer();
  allocator.deallocate(allocator.context, scorer, sizeof(odin_scorer));
}

odin_status odin_scorer_get_info(const odin_scorer* scorer, odin_scorer_info* info) {
  return guarded(__func__, [&] {
    check_pointer("scorer", scorer);
    check_pointer("info", info);
    const uint64_t size = info->size;
    if (size < offsetof(odin_scorer_info, threshold) + sizeof(double) || size > (1 << 16)) {
      fail(ODIN_BAD_SIZE,
           "info.size is %llu; set it to sizeof(odin_scorer_info), which is %zu here",
           static_cast<unsigned long long>(size), sizeof(odin_scorer_info));
    }
    const Spec& spec = scorer->bundle.spec;
    odin_scorer_info known{};
    known.size = size;
    known.model = spec.model.c_str();
    known.architecture = spec.architecture.c_str();
    known.in_dataset = spec.in_dataset.c_str();
    known.method = spec.method.c_str();
    known.input_type = spec.input_type.c_str();
    known.engine = scorer->engine.c_str();
    known.precision = scorer->precision.c_str();
    known.mean = spec.mean.data();
    known.std = spec.std.data();
    known.classes = spec.classes;
    known.channels = spec.channels;
    known.least_height = scorer->session->height().least;
    known.most_height = scorer->session->height().most;
    known.least_width = scorer->session->width().least;
    known.most_width = scorer->session->width().most;
    known.batch_size = scorer->session->batch_size();
    known.temperature = spec.temperature;
    known.magnitude = spec.magnitude;
    known.tunable = spec.tunable ? 1 : 0;
    known.calibrated = scorer->calibrated ? 1 : 0;
    known.threshold = scorer->calibrated ? spec.calibration->threshold : NAN;
    memset(info, 0, static_cast<size_t>(size));  // fields of a newer header
    memcpy(info, &known, std::min<size_t>(sizeof known, static_cast<size_t>(size)));
  });
}

odin_status odin_scorer_score(odin_scorer* scorer, const odin_images* images,
                              const odin_scores* scores) {
  return guarded(__func__, [&] {
    const Call call = checked_call(scorer, images, scores);
    const odin_scores& wanted = call.scores;
    std::vector<float> own;  // of a caller who wants what follows from the score, and not the score
    float* score = wanted.score;
    if (score == nullptr && (wanted.is_ood != nullptr || wanted.percentile != nullptr)) {
      own.resize(static_cast<size_t>(call.images.count));
      score = own.data();
    }
    if (call.images.count > 0) scorer->session->score(call.images, targets_of(wanted, score));
    odin::detail::decide(scorer->bundle.spec, score, call.images.count, wanted);
  });
}

odin_status odin_scorer_enqueue(odin_scorer* scorer, const odin_images* images,
                                const odin_scores* scores, void* stream) {
  return guarded(__func__, [&] {
    const Call call = checked_call(scorer, images, scores);
    const Targets targets = targets_of(call.scores, call.scores.score);
    scorer->session->enqueue(call.images, targets, stream);
  });
}

}  // extern "C"
