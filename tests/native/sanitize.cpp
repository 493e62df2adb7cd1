// Runs the host twins over many sizes and addresses, compiled with the address and the
// undefined-behaviour sanitizer.
//
// Each tensor lies in memory of its own that ends with its last element, at every distance from a
// 16-byte boundary; what comes before it is poisoned in steps of 8 bytes. So one byte read or
// written too much ends the program. The results at each distance must be those at a boundary, to
// the bit (but for those of NaN). Prints the calls and a digest of all results, which must be that
// of a build without sanitizers.
//
// With the argument "overrun" one tensor is one element too short, with "overflow" a size does not
// fit in 64 bits: the sanitizers must notice.
#include <sanitizer/asan_interface.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <random>
#include <vector>

#include "first_order.cuh"
#include "odin/kernels.h"

namespace {

long calls = 0;
size_t missing = 0;  // elements that the next tensors lack at their end
uint64_t digest = 14695981039346656037u;  // FNV-1a, of Fowler, Noll and Vo
std::mt19937 generator(1);

void require(bool right, const char* what) {
  if (right) return;
  fprintf(stderr, "FAILED: %s: %s\n", what, odin_last_error());
  exit(2);
}

class Tensor {
 public:
  Tensor(int64_t count, size_t element, size_t offset)
      : before_(offset * element), bytes_((static_cast<size_t>(count) - missing) * element) {
    memory_ = static_cast<uint8_t*>(allocate(before_ + bytes_));
    ASAN_POISON_MEMORY_REGION(memory_, before_ / 8 * 8);
  }
  ~Tensor() {
    ASAN_UNPOISON_MEMORY_REGION(memory_, before_ / 8 * 8);
    free(memory_);
  }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  void* data() { return memory_ + before_; }
  template <typename T>
  T* as() {
    return static_cast<T*>(data());
  }
  void fill(const std::vector<uint8_t>& bytes) {
    if (bytes_ > 0) memcpy(data(), bytes.data(), bytes_);
  }
  std::vector<uint8_t> bytes() {
    const uint8_t* first = static_cast<uint8_t*>(data());
    return {first, first + bytes_};
  }

 private:
  // malloc's memory begins at a multiple of 16 and ends, for the sanitizer, at the exact byte.
  static void* allocate(size_t bytes) {
    void* memory = malloc(bytes > 0 ? bytes : 1);
    require(reinterpret_cast<uintptr_t>(memory) % 16 == 0, "malloc's alignment");
    return memory;
  }

  size_t before_, bytes_;
  uint8_t* memory_;
};

size_t size_of(odin_type type) { return type == ODIN_F32 ? 4 : 2; }

// Bytes of random numbers, of any bits: NaN, infinities and denormals too.
std::vector<uint8_t> random_bytes(size_t count) {
  std::vector<uint8_t> bytes(count);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(generator());
  return bytes;
}

template <typename T>
void put_number(uint8_t* target) {
  const float number = std::uniform_real_distribution<float>(-8, 8)(generator);
  const T element = odin::from_float<T>(number);
  memcpy(target, &element, sizeof element);
}

// Elements of any bits or, every other time, numbers that have finite sums and softmaxes.
std::vector<uint8_t> random_elements(odin_type type, int64_t count) {
  std::vector<uint8_t> bytes = random_bytes(static_cast<size_t>(count) * size_of(type));
  if (generator() % 2 == 0) return bytes;
  for (size_t i = 0; i < bytes.size(); i += size_of(type)) {
    if (type == ODIN_F32) put_number<float>(&bytes[i]);
    if (type == ODIN_F16) put_number<odin::Half>(&bytes[i]);
    if (type == ODIN_BF16) put_number<odin::Bfloat16>(&bytes[i]);
  }
  return bytes;
}

std::vector<float> random_floats(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = std::uniform_real_distribution<float>(0.1f, 2.0f)(generator);
  return values;
}

void check(odin_status status, const char* what) {
  require(status == ODIN_OK, what);
  ++calls;
}

using Bytes = std::vector<uint8_t>;

// The bytes of results; compilers are free in the bits of a float32 NaN.
Bytes result_of(Tensor& tensor, size_t element) {
  Bytes bytes = tensor.bytes();
  for (size_t i = 0; element == 4 && i < bytes.size(); i += 4) {
    float value;
    memcpy(&value, &bytes[i], 4);
    if (value != value) memcpy(&bytes[i], "\0\0\xc0\x7f", 4);
  }
  return bytes;
}

void append(Bytes& all, const Bytes& part) { all.insert(all.end(), part.begin(), part.end()); }

// `at_boundary` is filled by the first distance, 0, and compared with by the others.
void compare(Bytes& at_boundary, size_t offset, const Bytes& result, const char* what) {
  if (offset == 0) {
    at_boundary = result;
    for (uint8_t byte : result) digest = (digest ^ byte) * 1099511628211u;
  } else {
    require(at_boundary == result, what);
  }
}

void normalize(odin_type type, int64_t count, int64_t plane, int32_t channels) {
  const int64_t size = count * plane * channels;
  const Bytes source = random_bytes(static_cast<size_t>(size));
  const std::vector<float> scale = random_floats(channels), shift = random_floats(channels);
  Bytes expected;
  for (size_t offset = 0; offset < 9; ++offset) {
    Tensor pixels(size, 1, offset), images(size, size_of(type), offset);
    pixels.fill(source);
    check(odin_normalize_host(type, static_cast<uint8_t*>(pixels.data()), images.data(),
                              scale.data(), shift.data(), count, plane, channels),
          "normalize");
    compare(expected, offset, result_of(images, size_of(type)), "normalize differs");
  }
}

void perturb(odin_type type, int64_t count, int64_t plane, int32_t channels, int32_t magnitudes,
             bool limits) {
  const int64_t size = count * plane * channels;
  const size_t element = size_of(type);
  const Bytes image = random_elements(type, size), slope = random_elements(type, size);
  const std::vector<float> steps = random_floats(magnitudes), scale = random_floats(channels);
  const std::vector<float> low(static_cast<size_t>(channels), -1), high = random_floats(channels);
  Bytes expected;
  for (size_t offset = 0; offset < 9; ++offset) {
    // All three at the same distance, then the gradient at another.
    for (size_t other = 0; other < (offset > 0 ? 2u : 1u); ++other) {
      Tensor images(size, element, offset), gradient(size, element, offset - other);
      Tensor perturbed(size * magnitudes, element, offset);
      images.fill(image);
      gradient.fill(slope);
      check(odin_perturb_host(type, images.data(), gradient.data(), perturbed.data(), steps.data(),
                              scale.data(), limits ? low.data() : nullptr,
                              limits ? high.data() : nullptr, count, plane, channels, magnitudes),
            "perturb");
      compare(expected, offset, result_of(perturbed, element), "perturb differs");
    }
  }
}

// The bits of `wanted` say which outputs are not null: score, baseline, label, energy, seed.
void score(odin_type type, int64_t rows, int64_t classes, unsigned wanted = 31) {
  const size_t element = size_of(type);
  const Bytes source = random_elements(type, rows * classes);
  Bytes expected;
  for (size_t offset = 0; offset < 9; ++offset) {
    Tensor logits(rows * classes, element, offset), seed(rows * classes, element, offset);
    Tensor best(rows, 4, 0), baseline(rows, 4, 1), energy(rows, 4, 2), label(rows, 8, 1);
    logits.fill(source);
    check(odin_score_host(type, logits.data(), wanted & 1 ? best.as<float>() : nullptr,
                          wanted & 2 ? baseline.as<float>() : nullptr,
                          wanted & 4 ? label.as<int64_t>() : nullptr,
                          wanted & 8 ? energy.as<float>() : nullptr,
                          wanted & 16 ? seed.data() : nullptr, 10, 100, rows, classes),
          "score");
    Bytes all;
    if (wanted & 1) append(all, result_of(best, 4));
    if (wanted & 2) append(all, result_of(baseline, 4));
    if (wanted & 4) append(all, result_of(label, 8));
    if (wanted & 8) append(all, result_of(energy, 4));
    if (wanted & 16) append(all, result_of(seed, element));
    compare(expected, offset, all, "score differs");
  }
}

void first_order(odin_type type, int64_t count, int64_t plane, int32_t channels, bool totals,
                 bool scored) {
  const int64_t size = count * plane * channels;
  const size_t element = size_of(type);
  const Bytes source = random_elements(type, size);
  const std::vector<float> scale = random_floats(channels), probability = random_floats(count);
  const std::vector<float> steps = random_floats(2);
  Bytes expected;
  for (size_t offset = 0; offset < 9; ++offset) {
    Tensor gradient(size, element, offset), total(count, 4, 1), scores(2 * count, 4, 1);
    gradient.fill(source);
    check(odin_first_order_host(type, gradient.data(), scale.data(),
                                scored ? probability.data() : nullptr,
                                scored ? steps.data() : nullptr,
                                totals ? total.as<float>() : nullptr,
                                scored ? scores.as<float>() : nullptr, count, plane, channels, 2),
          "first_order");
    Bytes all;
    if (totals) append(all, result_of(total, 4));
    if (scored) append(all, result_of(scores, 4));
    compare(expected, offset, all, "first_order differs");
  }
}

// Beside the C functions, which check their sizes.
void overflow() {
  odin::FirstOrderArguments<float> a{};
  a.count = 1;
  a.plane = INT64_MAX / 2;
  a.channels = 4;
  odin::run_on_host(a);
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && strcmp(arguments[1], "overrun") == 0) {
    missing = 1;
    normalize(ODIN_F32, 1, 8, 3);
    return 0;
  }
  if (count > 1 && strcmp(arguments[1], "overflow") == 0) {
    overflow();
    return 0;
  }
  for (odin_type type : {ODIN_F32, ODIN_F16, ODIN_BF16}) {
    for (int64_t images : {0, 1, 2}) {
      for (int64_t plane : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 25, 64, 121, 1024}) {
        for (int32_t channels : {0, 1, 2, 3, 4, 5}) {
          normalize(type, images, plane, channels);
          first_order(type, images, plane, channels, true, true);
          for (int32_t magnitudes : {0, 1, 3}) {
            perturb(type, images, plane, channels, magnitudes, true);
          }
        }
      }
    }
    for (int64_t plane : {1, 5, 64, 121}) {
      perturb(type, 2, plane, 3, 2, false);
      first_order(type, 2, plane, 3, true, false);
      first_order(type, 2, plane, 3, false, true);
      first_order(type, 2, plane, 3, false, false);
    }
    for (int64_t rows : {0, 1, 3}) {
      for (int64_t classes = 1; classes < 40; ++classes) score(type, rows, classes);
      for (int64_t classes : {1000, 1023, 1024, 1025, 1031, 4096, 5003}) {
        score(type, rows, classes);
      }
    }
    score(type, 1, 100'000);
    for (unsigned wanted : {0u, 1u, 2u, 4u, 8u, 16u}) {
      for (int64_t classes : {10, 1023, 1031}) score(type, 2, classes, wanted);
    }
  }
  printf("%ld calls, digest %016llx\n", calls, static_cast<unsigned long long>(digest));
  return 0;
}
