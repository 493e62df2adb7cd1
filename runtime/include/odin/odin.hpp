// The ODIN scorer for C++17: odin.h with a destructor, exceptions and vectors. Nothing to link but
// libodin.
//
//   odin::Scorer scorer("densenet10");
//   odin::Scores scores = scorer.score_raw(pixels, 16, 32, 32);
//   if (scorer.info().calibrated && scores.is_ood[0]) ...
#ifndef ODIN_ODIN_HPP
#define ODIN_ODIN_HPP

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "odin/odin.h"

namespace odin {

// What a function of odin.h returned, with its message.
class Error : public std::runtime_error {
 public:
  explicit Error(odin_status status)
      : std::runtime_error(odin_scorer_last_error()), status_(status) {}

  odin_status status() const noexcept { return status_; }

 private:
  odin_status status_;
};

// As odin_scorer_options.
struct Options {
  odin_engine engine = ODIN_ENGINE_AUTO;
  odin_precision precision = ODIN_PRECISION_BUNDLE;
  std::int32_t threads = 0;
  std::int32_t streams = 0;
  std::int32_t batch_size = 0;
  std::int32_t device = 0;
  std::string cache;  // "": compiled graphs are not kept
  // Called by several threads at once. What it throws is dropped.
  std::function<void(odin_log_level, const std::string&)> log;
  odin_allocator allocator{};
};

// As odin_scores.
struct Scores {
  std::vector<float> score;
  std::vector<float> baseline;
  std::vector<std::int64_t> label;
  std::vector<std::uint8_t> is_ood;  // empty if the bundle is not calibrated
  std::vector<float> logits;         // empty unless asked for
  std::vector<float> percentile;     // empty if the bundle is not calibrated
};

// A bundle opened in an engine. `score...` and `enqueue` may be called by several threads at once;
// one that was moved from can only be destroyed or assigned to.
class Scorer {
 public:
  // Throws Error.
  explicit Scorer(const std::string& bundle, Options options = {})
      : log_(std::make_unique<Log>(std::move(options.log))) {
    odin_scorer_options given{};
    given.size = sizeof given;
    given.engine = options.engine;
    given.precision = options.precision;
    given.threads = options.threads;
    given.streams = options.streams;
    given.batch_size = options.batch_size;
    given.device = options.device;
    given.cache = options.cache.empty() ? nullptr : options.cache.c_str();
    given.log = *log_ ? &tell : nullptr;
    given.log_context = log_.get();
    given.allocator = options.allocator;
    odin_scorer* opened = nullptr;
    check(odin_scorer_open(bundle.c_str(), &given, &opened));
    scorer_.reset(opened);
  }

  Scorer(Scorer&&) = default;
  Scorer& operator=(Scorer&& other) noexcept {
    scorer_ = std::move(other.scorer_);  // first: closing the old one may still log
    log_ = std::move(other.log_);
    return *this;
  }

  // What is known of the scorer; pointers in it are valid as long as this.
  odin_scorer_info info() const {
    odin_scorer_info info{};
    info.size = sizeof info;
    check(odin_scorer_get_info(scorer_.get(), &info));
    return info;
  }

  // Score raw pixels, (count, height, width, channels). Throws Error.
  Scores score_raw(const std::uint8_t* pixels, std::size_t count, std::size_t height,
                   std::size_t width, bool logits = false) const {
    return score(images(ODIN_U8_NHWC, pixels, count, height, width), logits);
  }

  // Score normalised images, (count, channels, height, width). Throws Error.
  Scores score_normalised(const float* values, std::size_t count, std::size_t height,
                          std::size_t width, bool logits = false) const {
    return score(images(ODIN_F32_NCHW, values, count, height, width), logits);
  }

  // Score images of any type, memory and number of channels. Throws Error.
  Scores score(const odin_images& images, bool logits = false) const {
    const odin_scorer_info known = info();
    const auto count = static_cast<std::size_t>(images.count < 0 ? 0 : images.count);
    Scores scores;
    scores.score.resize(count);
    scores.baseline.resize(count);
    scores.label.resize(count);
    if (known.calibrated != 0) {
      scores.is_ood.resize(count);
      scores.percentile.resize(count);
    }
    if (logits) scores.logits.resize(count * static_cast<std::size_t>(known.classes));
    odin_scores targets{};
    targets.size = sizeof targets;
    targets.score = scores.score.data();
    targets.baseline = scores.baseline.data();
    targets.label = scores.label.data();
    targets.is_ood = known.calibrated != 0 ? scores.is_ood.data() : nullptr;
    targets.logits = logits ? scores.logits.data() : nullptr;
    targets.percentile = known.calibrated != 0 ? scores.percentile.data() : nullptr;
    check(odin_scorer_score(scorer_.get(), &images, &targets));
    return scores;
  }

  // Queue scoring images of the device on a stream, with results on the device, as
  // odin_scorer_enqueue; `size` and `memory` of both structs are set. Throws Error.
  void enqueue(odin_images images, odin_scores scores, void* stream) const {
    images.size = sizeof images;
    images.memory = ODIN_DEVICE;
    scores.size = sizeof scores;
    scores.memory = ODIN_DEVICE;
    check(odin_scorer_enqueue(scorer_.get(), &images, &scores, stream));
  }

  // For functions of odin.h; this keeps it.
  odin_scorer* get() const noexcept { return scorer_.get(); }

 private:
  using Log = std::function<void(odin_log_level, const std::string&)>;

  struct Closer {
    void operator()(odin_scorer* scorer) const { odin_scorer_close(scorer); }
  };

  static void check(odin_status status) {
    if (status != ODIN_OK) throw Error(status);
  }

  // No exception may pass through the library.
  static void tell(void* context, odin_log_level level, const char* text) {
    try {
      (*static_cast<Log*>(context))(level, text);
    } catch (...) {
    }
  }

  odin_images images(odin_image_type type, const void* data, std::size_t count, std::size_t height,
                     std::size_t width) const {
    odin_images images{};
    images.size = sizeof images;
    images.type = type;
    images.data = data;
    images.count = static_cast<std::int64_t>(count);
    images.height = static_cast<std::int64_t>(height);
    images.width = static_cast<std::int64_t>(width);
    images.channels = info().channels;
    return images;
  }

  std::unique_ptr<Log> log_;  // outlives the scorer, which calls it
  std::unique_ptr<odin_scorer, Closer> scorer_;
};

}  // namespace odin

#endif
