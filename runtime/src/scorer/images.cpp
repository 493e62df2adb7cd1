#include "images.hpp"

#include <math.h>
#include <string.h>

#include <string>

#include "failure.hpp"

namespace odin::detail {

namespace {

using LongLong = long long;

std::string shape_text(const odin_images& images) {
  char text[160];
  const bool raw = images.type == ODIN_U8_NHWC;
  snprintf(text, sizeof text, "images are %lld x %lld x %lld x %lld %s",
           static_cast<LongLong>(images.count),
           static_cast<LongLong>(raw ? images.height : images.channels),
           static_cast<LongLong>(raw ? images.width : images.height),
           static_cast<LongLong>(raw ? images.channels : images.width), raw ? "uint8" : "float32");
  return text;
}

void check_side(const odin_images& images, const Spec& spec, const char* name, int64_t size,
                Range allowed) {
  if (size >= allowed.least && size <= allowed.most) return;
  fail(ODIN_BAD_SIZE, "%s: %lld pixels %s, where %s takes %d to %d; %s", shape_text(images).c_str(),
       static_cast<LongLong>(size), name, spec.model.c_str(), allowed.least, allowed.most,
       size < allowed.least ? "scale the images up" : "resize or crop the images");
}

// Bytes of all images; a Failure if they do not fit in 63 bits.
int64_t total_bytes(const odin_images& images) {
  int64_t total = 4;
  for (const int64_t size : {images.count, images.height, images.width, images.channels}) {
    if (__builtin_mul_overflow(total, size, &total)) {
      fail(ODIN_BAD_SIZE, "%s: more bytes than fit in 63 bits", shape_text(images).c_str());
    }
  }
  return total;
}

}  // namespace

size_t element_bytes(odin_image_type type) {
  return type == ODIN_U8_NHWC ? sizeof(uint8_t) : sizeof(float);
}

void check_images(const odin_images& images, const Spec& spec) {
  if (images.type != ODIN_U8_NHWC && images.type != ODIN_F32_NCHW) {
    fail(ODIN_BAD_TYPE, "the images' type is %d; it must be ODIN_U8_NHWC or ODIN_F32_NCHW",
         images.type);
  }
  if (images.type == ODIN_F32_NCHW && spec.input_type == "uint8") {
    fail(ODIN_BAD_TYPE,
         "%s, but the bundle takes raw uint8 images and normalises them itself; give it "
         "ODIN_U8_NHWC, or export it with --input-type float32",
         shape_text(images).c_str());
  }
  if (images.count < 0) {
    fail(ODIN_BAD_SIZE, "count is %lld; it must be at least 0",
         static_cast<LongLong>(images.count));
  }
  if (images.channels != spec.channels) {
    fail(ODIN_BAD_SIZE, "%s: %lld channels, where %s takes %d", shape_text(images).c_str(),
         static_cast<LongLong>(images.channels), spec.model.c_str(), spec.channels);
  }
  check_side(images, spec, "high", images.height, spec.height);
  check_side(images, spec, "wide", images.width, spec.width);
  total_bytes(images);
  if (images.count > 0 && images.data == nullptr) {
    fail(ODIN_NULL_POINTER, "images.data is null");
  }
  if (reinterpret_cast<uintptr_t>(images.data) % element_bytes(images.type) != 0) {
    fail(ODIN_MISALIGNED, "images.data is not at a multiple of 4 bytes");
  }
}

Preparer::Preparer(const Spec& spec) : raw_(spec.input_type == "uint8") {
  for (int32_t channel = 0; channel < spec.channels; ++channel) {
    const auto mean = static_cast<float>(spec.mean[static_cast<size_t>(channel)]);
    const auto std = static_cast<float>(spec.std[static_cast<size_t>(channel)]);
    auto& values = values_.emplace_back();
    for (int pixel = 0; pixel < 256; ++pixel) {
      float value = static_cast<float>(pixel) / 255.0F;
      value -= mean;
      values[static_cast<size_t>(pixel)] = value / std;
    }
  }
}

void Preparer::write(const odin_images& images, int64_t first, int64_t count, void* target) const {
  const int64_t plane = images.height * images.width;
  const int64_t size = plane * images.channels;
  if (raw_ || images.type == ODIN_F32_NCHW) {
    const auto bytes = static_cast<size_t>(size) * element_bytes(images.type);
    const auto* source = static_cast<const char*>(images.data);
    memcpy(target, source + static_cast<size_t>(first) * bytes, static_cast<size_t>(count) * bytes);
    return;
  }
  const auto* image = static_cast<const uint8_t*>(images.data) + first * size;
  auto* planes = static_cast<float*>(target);
  for (int64_t n = 0; n < count; ++n, image += size) {
    for (const auto& values : values_) {
      const uint8_t* pixel = image + (&values - values_.data());
      for (int64_t p = 0; p < plane; ++p, pixel += images.channels) *planes++ = values[*pixel];
    }
  }
}

bool is_finite(const odin_images& images, int64_t index) {
  if (images.type == ODIN_U8_NHWC) return true;
  const int64_t size = images.height * images.width * images.channels;
  const float* values = static_cast<const float*>(images.data) + index * size;
  for (int64_t i = 0; i < size; ++i) {
    if (!isfinite(values[i])) return false;
  }
  return true;
}

}  // namespace odin::detail
