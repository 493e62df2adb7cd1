// SHA-256 (FIPS 180-4).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>

namespace odin::detail {

class Sha256 {
 public:
  void add(const void* data, size_t bytes);

  // Of all that was added, in lower-case hexadecimal. Nothing may be added after.
  std::string finish();

 private:
  void block(const uint8_t* data);

  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t rest_[64] = {};
  uint64_t bytes_ = 0;
};

}  // namespace odin::detail
