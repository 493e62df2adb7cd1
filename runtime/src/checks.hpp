// Checks of what callers pass, and the text of what was wrong.
#pragma once

#include <float.h>
#include <math.h>
#include <stdint.h>

#include "first_order.cuh"
#include "normalize.cuh"
#include "odin/kernels.h"
#include "perturb.cuh"
#include "score.cuh"

namespace odin {

// Remember a text for odin_last_error, "function: text", and return the status. printf's formats.
odin_status fail(odin_status status, const char* function, const char* format, ...)
    __attribute__((format(printf, 3, 4)));

// The first complaint of several checks. Sizes come before pointers: tensors without elements may
// be null.
class Checks {
 public:
  explicit Checks(const char* function) : function_(function) {}

  Checks& size(const char* name, int64_t value, int64_t least = 0) {
    if (status_ == ODIN_OK && value < least) {
      status_ = fail(ODIN_BAD_SIZE, function_, "%s is %lld; it must be at least %lld", name,
                     static_cast<long long>(value), static_cast<long long>(least));
    }
    return *this;
  }

  // That the product of sizes, times 8 bytes an element at most, fits in 63 bits.
  Checks& total(int64_t a, int64_t b, int64_t c = 1, int64_t d = 1) {
    int64_t product = 0;
    const bool too_large = __builtin_mul_overflow(a, b, &product) ||
                           __builtin_mul_overflow(product, c, &product) ||
                           __builtin_mul_overflow(product, d, &product) ||
                           product > INT64_MAX / 8;
    if (status_ == ODIN_OK && too_large) {
      status_ = fail(ODIN_BAD_SIZE, function_, "the sizes give more bytes than fit in 63 bits");
    }
    return *this;
  }

  template <typename T>
  Checks& pointer(const char* name, const T* pointer) {
    if (status_ == ODIN_OK && pointer == nullptr) {
      status_ = fail(ODIN_NULL_POINTER, function_, "%s is null", name);
    }
    return optional(name, pointer);
  }

  // May be null.
  template <typename T>
  Checks& optional(const char* name, const T* pointer) {
    if (status_ == ODIN_OK && !is_aligned(pointer, alignof(T))) {
      status_ = fail(ODIN_MISALIGNED, function_, "%s is not at a multiple of %d bytes", name,
                     static_cast<int>(alignof(T)));
    }
    return *this;
  }

  Checks& value(bool right, const char* text) {
    if (status_ == ODIN_OK && !right) status_ = fail(ODIN_BAD_VALUE, function_, "%s", text);
    return *this;
  }

  odin_status status() const { return status_; }

 private:
  const char* function_;
  odin_status status_ = ODIN_OK;
};

// Whether there is nothing to write.

template <typename T>
bool is_empty(const NormalizeArguments<T>& a) {
  return a.count == 0 || a.plane == 0 || a.channels == 0;
}

template <typename T>
bool is_empty(const PerturbArguments<T>& a) {
  return a.count == 0 || a.plane == 0 || a.channels == 0 || a.magnitudes == 0;
}

template <typename T>
bool is_empty(const ScoreArguments<T>& a) {
  return a.rows == 0;
}

template <typename T>
bool is_empty(const FirstOrderArguments<T>& a) {
  return a.count == 0;
}

// What is wrong with the arguments, or ODIN_OK.

template <typename T>
odin_status check(const char* function, const NormalizeArguments<T>& a) {
  Checks checks(function);
  checks.size("count", a.count).size("plane", a.plane).size("channels", a.channels);
  checks.total(a.count, a.plane, a.channels);
  if (checks.status() != ODIN_OK || is_empty(a)) return checks.status();
  checks.pointer("pixels", a.pixels).pointer("images", a.images);
  return checks.pointer("scale", a.scale).pointer("offset", a.offset).status();
}

template <typename T>
odin_status check(const char* function, const PerturbArguments<T>& a) {
  Checks checks(function);
  checks.size("count", a.count).size("plane", a.plane).size("channels", a.channels);
  checks.size("magnitudes", a.magnitudes).total(a.count, a.plane, a.channels, a.magnitudes);
  if (checks.status() != ODIN_OK || is_empty(a)) return checks.status();
  checks.pointer("images", a.images).pointer("gradient", a.gradient);
  checks.pointer("perturbed", a.perturbed).pointer("steps", a.steps);
  checks.pointer("channel_scale", a.channel_scale);
  if (a.low != nullptr || a.high != nullptr) checks.pointer("low", a.low).pointer("high", a.high);
  return checks.status();
}

template <typename T>
odin_status check(const char* function, const ScoreArguments<T>& a) {
  Checks checks(function);
  checks.size("rows", a.rows).size("classes", a.classes, 1).total(a.rows, a.classes);
  checks.value(a.temperature >= FLT_MIN && a.temperature <= FLT_MAX,
               "temperature must be a normal, finite number above 0");
  checks.value(isfinite(a.seed_scale), "seed_scale must be finite");
  if (checks.status() != ODIN_OK || is_empty(a)) return checks.status();
  checks.pointer("logits", a.logits).optional("score", a.score).optional("baseline", a.baseline);
  checks.optional("label", a.label).optional("energy", a.energy).optional("seed", a.seed);
  return checks.status();
}

template <typename T>
odin_status check(const char* function, const FirstOrderArguments<T>& a) {
  Checks checks(function);
  checks.size("count", a.count).size("plane", a.plane).size("channels", a.channels);
  checks.size("magnitudes", a.magnitudes).total(a.count, a.plane, a.channels);
  checks.total(a.count, a.magnitudes);
  if (checks.status() != ODIN_OK || is_empty(a)) return checks.status();
  if (a.plane > 0 && a.channels > 0) {
    checks.pointer("gradient", a.gradient).pointer("channel_scale", a.channel_scale);
  }
  checks.optional("total", a.total).optional("score", a.score);
  if (a.score != nullptr && a.magnitudes > 0) {
    checks.pointer("probability", a.probability).pointer("steps", a.steps);
  }
  return checks.status();
}

}  // namespace odin
