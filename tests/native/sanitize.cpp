// Runs the host twins over many sizes and addresses, compiled with the address and the
// undefined-behaviour sanitizer.
//
// Each tensor lies in memory of its own that ends with its last element, at every distance from a
// 16-byte boundary; what comes before it is poisoned in steps of 8 bytes. So one byte read or
// written too much ends the program. The results at each distance must be those at a boundary, to
// the bit.
//
// With the argument "overrun" one tensor is one element too short: the sanitizer must notice.
#include <sanitizer/asan_interface.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <random>
#include <vector>

#include "odin/kernels.h"

namespace {

long calls = 0;
size_t missing = 0;  // elements that the next tensors lack at their end
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

// `at_boundary` is filled by the first distance, 0, and compared with by the others.
void compare(Bytes& at_boundary, size_t offset, const Bytes& result, const char* what) {
  if (offset == 0) {
    at_boundary = result;
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
    compare(expected, offset, images.bytes(), "normalize differs");
  }
}

void perturb(odin_type type, int64_t count, int64_t plane, int32_t channels, int32_t magnitudes) {
  const int64_t size = count * plane * channels;
  const size_t element = size_of(type);
  const Bytes image = random_bytes(static_cast<size_t>(size) * element);
  const Bytes slope = random_bytes(static_cast<size_t>(size) * element);
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
                              scale.data(), low.data(), high.data(), count, plane, channels,
                              magnitudes),
            "perturb");
      compare(expected, offset, perturbed.bytes(), "perturb differs");
    }
  }
}

void score(odin_type type, int64_t rows, int64_t classes) {
  const size_t element = size_of(type);
  const Bytes source = random_bytes(static_cast<size_t>(rows * classes) * element);
  Bytes expected;
  for (size_t offset = 0; offset < 9; ++offset) {
    Tensor logits(rows * classes, element, offset), seed(rows * classes, element, offset);
    Tensor best(rows, 4, 0), baseline(rows, 4, 1), energy(rows, 4, 2), label(rows, 8, 1);
    logits.fill(source);
    check(odin_score_host(type, logits.data(), static_cast<float*>(best.data()),
                          static_cast<float*>(baseline.data()),
                          static_cast<int64_t*>(label.data()), static_cast<float*>(energy.data()),
                          seed.data(), 10, 100, rows, classes),
          "score");
    Bytes all = seed.bytes();
    for (Tensor* tensor : {&best, &baseline, &energy, &label}) {
      const Bytes part = tensor->bytes();
      all.insert(all.end(), part.begin(), part.end());
    }
    compare(expected, offset, all, "score differs");
  }
}

void first_order(odin_type type, int64_t count, int64_t plane, int32_t channels) {
  const int64_t size = count * plane * channels;
  const size_t element = size_of(type);
  const Bytes source = random_bytes(static_cast<size_t>(size) * element);
  const std::vector<float> scale = random_floats(channels), probability = random_floats(count);
  const std::vector<float> steps = random_floats(2);
  Bytes expected;
  for (size_t offset = 0; offset < 9; ++offset) {
    Tensor gradient(size, element, offset), total(count, 4, 1), scores(2 * count, 4, 1);
    gradient.fill(source);
    check(odin_first_order_host(type, gradient.data(), scale.data(), probability.data(),
                                steps.data(), static_cast<float*>(total.data()),
                                static_cast<float*>(scores.data()), count, plane, channels, 2),
          "first_order");
    Bytes all = total.bytes();
    const Bytes part = scores.bytes();
    all.insert(all.end(), part.begin(), part.end());
    compare(expected, offset, all, "first_order differs");
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && strcmp(arguments[1], "overrun") == 0) {
    missing = 1;
    normalize(ODIN_F32, 1, 8, 3);
    return 0;
  }
  for (odin_type type : {ODIN_F32, ODIN_F16, ODIN_BF16}) {
    for (int64_t images : {0, 1, 2}) {
      for (int64_t plane : {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 25, 64, 121, 1024}) {
        for (int32_t channels : {0, 1, 2, 3, 4, 5}) {
          normalize(type, images, plane, channels);
          first_order(type, images, plane, channels);
          for (int32_t magnitudes : {0, 1, 3}) perturb(type, images, plane, channels, magnitudes);
        }
      }
    }
    for (int64_t rows : {0, 1, 3}) {
      for (int64_t classes = 1; classes < 40; ++classes) score(type, rows, classes);
      for (int64_t classes : {1000, 1023, 1024, 1025, 1031, 4096, 5003}) {
        score(type, rows, classes);
      }
    }
  }
  printf("%ld calls\n", calls);
  return 0;
}
