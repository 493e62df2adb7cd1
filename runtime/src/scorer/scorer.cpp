// The functions of odin.h.
#include <math.h>

#include <exception>
#include <new>

#include "failure.hpp"
#include "images.hpp"
#include "options.hpp"
#include "parts.hpp"
#include "session.hpp"

using odin::detail::Bundle;
using odin::detail::fail;
using odin::detail::Failure;
using odin::detail::kAlignment;
using odin::detail::Part;
using odin::detail::Preparer;
using odin::detail::Session;
using odin::detail::SessionOptions;
using odin::detail::Spec;

struct odin_scorer {
  Bundle bundle;
  Preparer preparer;
  std::string engine, precision;
  int32_t batch_size;
  bool calibrated;
  odin_allocator allocator;
  std::unique_ptr<Session> session;
};

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

// Whether the threshold is for the scores of this bundle: those of another method, temperature or
// magnitude lie elsewhere.
bool is_calibrated(const Spec& spec) {
  const auto same = [](double a, double b) {
    return static_cast<float>(a) == static_cast<float>(b);
  };
  return spec.calibration && spec.calibration->method == spec.method &&
         same(spec.calibration->temperature, spec.temperature) &&
         same(spec.calibration->magnitude, spec.magnitude);
}

// In float32 engines differ by rounding alone; in half precision some images' labels change.
void warn_of_drift(const odin_scorer& scorer, const odin::detail::Log& log) {
  if (!scorer.calibrated) return;
  const auto& known = *scorer.bundle.spec.calibration;
  const bool same_engine = known.engine == scorer.engine;
  if (known.precision == scorer.precision && (known.precision == "fp32" || same_engine)) return;
  log(ODIN_LOG_WARNING, "the bundle was calibrated in " + known.precision + " by " + known.engine +
                            ", and is opened in " + scorer.precision + " by " + scorer.engine +
                            ": scores near the threshold may fall on its other side; calibrate "
                            "with the engine and the precision that are to decide");
}

// A scorer in memory of the caller's allocator.
odin_scorer* placed(odin_scorer scorer) {
  const odin_allocator allocator = scorer.allocator;
  void* memory = allocator.allocate(allocator.context, sizeof(odin_scorer), kAlignment);
  if (memory == nullptr) throw std::bad_alloc();
  return new (memory) odin_scorer(std::move(scorer));
}

odin_scorer* opened(const char* path, const odin_scorer_options& options) {
  const odin::detail::Log log = {options.log, options.log_context};
  const odin_allocator allocator = odin::detail::whole_allocator(options.allocator);
  const std::string engine = odin::detail::chosen_engine(options.engine);
  Bundle bundle = odin::detail::read_bundle(path, engine);
  for (const auto& [name, problem] : bundle.damaged) log(ODIN_LOG_WARNING, problem);
  const std::string precision = odin::detail::chosen_precision(bundle, options.precision);
  const int32_t batch_size = options.batch_size > 0
                                 ? options.batch_size
                                 : odin::detail::images_at_once(bundle.spec, precision);
  const SessionOptions session_options = {precision,
                                          options.threads,
                                          options.streams > 0 ? options.streams : 1,
                                          options.cache == nullptr ? "" : options.cache,
                                          allocator,
                                          log};
  auto session = odin::detail::open_openvino(bundle, session_options);
  const bool calibrated = is_calibrated(bundle.spec);
  Preparer preparer(bundle.spec);
  odin_scorer scorer{std::move(bundle), std::move(preparer), engine,    precision,
                     batch_size,        calibrated,          allocator, std::move(session)};
  warn_of_drift(scorer, log);
  log(ODIN_LOG_DEBUG, "opened " + scorer.bundle.path + " with " + engine + " in " + precision);
  return placed(std::move(scorer));
}

void check_scores(const odin_scorer& scorer, const odin_scores& scores) {
  check_aligned("scores.score", scores.score);
  check_aligned("scores.baseline", scores.baseline);
  check_aligned("scores.label", scores.label);
  check_aligned("scores.logits", scores.logits);
  if (scores.is_ood == nullptr || scorer.calibrated) return;
  const char* bundle = scorer.bundle.path.c_str();
  if (!scorer.bundle.spec.calibration) {
    fail(ODIN_UNSUPPORTED,
         "bundle %s is not calibrated, so there is no threshold for scores.is_ood: run 'odin-bench "
         "%s --calibrate IN_DATASET'",
         bundle, bundle);
  }
  fail(ODIN_UNSUPPORTED,
       "bundle %s was calibrated with another method, temperature or magnitude than it scores "
       "with: calibrate it again with 'odin-bench %s --calibrate IN_DATASET'",
       bundle, bundle);
}

// The parts of a batch; `score` has room for each image's.
std::vector<Part> parts_of(const odin_scorer& scorer, const odin_images& images,
                           const odin_scores& scores, float* score) {
  const Spec& spec = scorer.bundle.spec;
  const int64_t most =
      odin::detail::fitting(spec, scorer.batch_size, images.height, images.width);
  const auto from = [](auto* start, int64_t offset) {
    return start == nullptr ? nullptr : start + offset;
  };
  std::vector<Part> parts;
  for (const auto [first, count] : odin::detail::cut(images.count, most)) {
    const auto write = [&scorer, &images, first = first, count = count](void* target) {
      scorer.preparer.write(images, first, count, target);
    };
    parts.push_back({count, images.height, images.width, write, from(score, first),
                     from(scores.baseline, first), from(scores.label, first),
                     from(scores.logits, first * spec.classes)});
  }
  return parts;
}

// What the graph does not tell: images that are not finite score NaN (OpenVINO's Relu turns NaN
// into 0), and the decision.
void complete(const odin_scorer& scorer, const odin_images& images, const odin_scores& scores,
              float* score) {
  for (int64_t i = 0; i < images.count; ++i) {
    if (odin::detail::is_finite(images, i)) continue;
    if (score != nullptr) score[i] = NAN;
    if (scores.baseline != nullptr) scores.baseline[i] = NAN;
  }
  if (scores.is_ood == nullptr) return;
  const auto threshold = static_cast<float>(scorer.bundle.spec.calibration->threshold);
  for (int64_t i = 0; i < images.count; ++i) scores.is_ood[i] = score[i] >= threshold ? 0 : 1;
}

}  // namespace

extern "C" {

int32_t odin_scorer_version(void) {
  return 10000 * ODIN_VERSION_MAJOR + 100 * ODIN_VERSION_MINOR + ODIN_VERSION_PATCH;
}

int32_t odin_scorer_has_engine(odin_engine engine) {
  const bool asked = engine == ODIN_ENGINE_OPENVINO || engine == ODIN_ENGINE_AUTO;
  return asked && odin::detail::kHasOpenVino ? 1 : 0;
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
      return "the library was built without the engine";
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
    *scorer = opened(bundle, odin::detail::checked_options(options));
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
    known.least_height = spec.height.least;
    known.most_height = spec.height.most;
    known.least_width = spec.width.least;
    known.most_width = spec.width.most;
    known.batch_size = scorer->batch_size;
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
    check_pointer("scorer", scorer);
    check_pointer("images", images);
    check_pointer("scores", scores);
    const auto batch = odin::detail::whole_struct(images, "odin_images", sizeof(odin_images));
    const auto targets = odin::detail::whole_struct(scores, "odin_scores", sizeof(odin_scores));
    if (batch.reserved != 0) fail(ODIN_BAD_VALUE, "images.reserved is not 0");
    odin::detail::check_images(batch, scorer->bundle.spec);
    check_scores(*scorer, targets);
    std::vector<float> own;  // for the decision of a caller who does not want the score
    float* score = targets.score;
    if (score == nullptr && targets.is_ood != nullptr) {
      own.resize(static_cast<size_t>(batch.count));
      score = own.data();
    }
    scorer->session->run(parts_of(*scorer, batch, targets, score));
    complete(*scorer, batch, targets, score);
  });
}

}  // extern "C"
