// The C functions: check the arguments, then launch the kernel or run the host twin.
#include "enqueue.hpp"

namespace {

// What to do with arguments that are right and not empty.
struct OnStream {
  void* stream;
  template <typename Arguments>
  odin_status operator()(const char* function, const Arguments& a) const {
    return odin::enqueue(function, a, stream);
  }
};

struct OnHost {
  template <typename Arguments>
  odin_status operator()(const char*, const Arguments& a) const {
    odin::run_on_host(a);
    return ODIN_OK;
  }
};

template <typename Arguments, typename Action>
odin_status checked(const char* function, const Arguments& a, Action action) {
  const odin_status status = odin::check(function, a);
  return status != ODIN_OK || is_empty(a) ? status : action(function, a);
}

// Call `run` with a value of the element type.
template <typename Run>
odin_status with_type(const char* function, odin_type type, Run run) {
  switch (type) {
    case ODIN_F32:
      return run(float{});
    case ODIN_F16:
      return run(odin::Half{});
    case ODIN_BF16:
      return run(odin::Bfloat16{});
    default:
      return odin::fail(ODIN_BAD_TYPE, function, "type is %d; it must be %d, %d or %d", type,
                        ODIN_F32, ODIN_F16, ODIN_BF16);
  }
}

template <typename T>
const T* in(const void* pointer) {
  return static_cast<const T*>(pointer);
}

template <typename T>
T* out(void* pointer) {
  return static_cast<T*>(pointer);
}

template <typename Action>
odin_status normalize(const char* function, Action action, odin_type type, const uint8_t* pixels,
                      void* images, const float* scale, const float* offset, int64_t count,
                      int64_t plane, int32_t channels) {
  return with_type(function, type, [&](auto element) {
    using T = decltype(element);
    const odin::NormalizeArguments<T> a{pixels, out<T>(images), scale,   offset,
                                        count,  plane,          channels};
    return checked(function, a, action);
  });
}

template <typename Action>
odin_status perturb(const char* function, Action action, odin_type type, const void* images,
                    const void* gradient, void* perturbed, const float* steps,
                    const float* channel_scale, const float* low, const float* high, int64_t count,
                    int64_t plane, int32_t channels, int32_t magnitudes) {
  return with_type(function, type, [&](auto element) {
    using T = decltype(element);
    const odin::PerturbArguments<T> a{in<T>(images), in<T>(gradient), out<T>(perturbed), steps,
                                      channel_scale, low,             high,              count,
                                      plane,         channels,        magnitudes};
    return checked(function, a, action);
  });
}

template <typename Action>
odin_status score(const char* function, Action action, odin_type type, const void* logits,
                  float* score, float* baseline, int64_t* label, float* energy, void* seed,
                  float temperature, float seed_scale, int64_t rows, int64_t classes) {
  return with_type(function, type, [&](auto element) {
    using T = decltype(element);
    const odin::ScoreArguments<T> a{in<T>(logits), score,        baseline,    label,
                                    energy,        out<T>(seed), temperature, seed_scale,
                                    rows,          classes};
    return checked(function, a, action);
  });
}

template <typename Action>
odin_status first_order(const char* function, Action action, odin_type type, const void* gradient,
                        const float* channel_scale, const float* probability, const float* steps,
                        float* total, float* score, int64_t count, int64_t plane, int32_t channels,
                        int32_t magnitudes) {
  return with_type(function, type, [&](auto element) {
    using T = decltype(element);
    const odin::FirstOrderArguments<T> a{in<T>(gradient), channel_scale, probability, steps,
                                         total,           score,         count,       plane,
                                         channels,        magnitudes};
    return checked(function, a, action);
  });
}

}  // namespace

extern "C" {

odin_status odin_normalize(odin_type type, const uint8_t* pixels, void* images, const float* scale,
                           const float* offset, int64_t count, int64_t plane, int32_t channels,
                           void* stream) {
  return normalize(__func__, OnStream{stream}, type, pixels, images, scale, offset, count, plane,
                   channels);
}

odin_status odin_normalize_host(odin_type type, const uint8_t* pixels, void* images,
                                const float* scale, const float* offset, int64_t count,
                                int64_t plane, int32_t channels) {
  return normalize(__func__, OnHost{}, type, pixels, images, scale, offset, count, plane, channels);
}

odin_status odin_perturb(odin_type type, const void* images, const void* gradient, void* perturbed,
                         const float* steps, const float* channel_scale, const float* low,
                         const float* high, int64_t count, int64_t plane, int32_t channels,
                         int32_t magnitudes, void* stream) {
  return perturb(__func__, OnStream{stream}, type, images, gradient, perturbed, steps,
                 channel_scale, low, high, count, plane, channels, magnitudes);
}

odin_status odin_perturb_host(odin_type type, const void* images, const void* gradient,
                              void* perturbed, const float* steps, const float* channel_scale,
                              const float* low, const float* high, int64_t count, int64_t plane,
                              int32_t channels, int32_t magnitudes) {
  return perturb(__func__, OnHost{}, type, images, gradient, perturbed, steps, channel_scale, low,
                 high, count, plane, channels, magnitudes);
}

odin_status odin_score(odin_type type, const void* logits, float* score_of, float* baseline,
                       int64_t* label, float* energy, void* seed, float temperature,
                       float seed_scale, int64_t rows, int64_t classes, void* stream) {
  return score(__func__, OnStream{stream}, type, logits, score_of, baseline, label, energy, seed,
               temperature, seed_scale, rows, classes);
}

odin_status odin_score_host(odin_type type, const void* logits, float* score_of, float* baseline,
                            int64_t* label, float* energy, void* seed, float temperature,
                            float seed_scale, int64_t rows, int64_t classes) {
  return score(__func__, OnHost{}, type, logits, score_of, baseline, label, energy, seed,
               temperature, seed_scale, rows, classes);
}

odin_status odin_first_order(odin_type type, const void* gradient, const float* channel_scale,
                             const float* probability, const float* steps, float* total,
                             float* score_of, int64_t count, int64_t plane, int32_t channels,
                             int32_t magnitudes, void* stream) {
  return first_order(__func__, OnStream{stream}, type, gradient, channel_scale, probability, steps,
                     total, score_of, count, plane, channels, magnitudes);
}

odin_status odin_first_order_host(odin_type type, const void* gradient, const float* channel_scale,
                                  const float* probability, const float* steps, float* total,
                                  float* score_of, int64_t count, int64_t plane, int32_t channels,
                                  int32_t magnitudes) {
  return first_order(__func__, OnHost{}, type, gradient, channel_scale, probability, steps, total,
                     score_of, count, plane, channels, magnitudes);
}

}  // extern "C"
