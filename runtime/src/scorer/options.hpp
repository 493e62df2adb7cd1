// Structs of callers whose header may be older or newer than the library.
#pragma once

#include <string.h>

#include <algorithm>

#include "bundle.hpp"
#include "failure.hpp"
#include "log.hpp"

namespace odin::detail {

// A whole struct of the library's own header, from the caller's.
// least: the size that the struct had in its first version.
template <typename T>
T whole_struct(const T* given, const char* name, size_t least) {
  const uint64_t size = given->size;
  if (size < least || size > (1 << 16)) {
    fail(ODIN_BAD_SIZE, "%s.size is %llu; set it to sizeof(%s), which is %zu here", name,
         static_cast<unsigned long long>(size), name, sizeof(T));
  }
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (uint64_t i = sizeof(T); i < size; ++i) {
    if (bytes[i] != 0) {
      fail(ODIN_BAD_SIZE, "%s has values in fields that this version does not have: use a newer "
           "library, or leave them zero", name);
    }
  }
  T whole{};
  memcpy(&whole, given, std::min<size_t>(sizeof(T), static_cast<size_t>(size)));
  return whole;
}

// What the caller asks for; NULL asks for the defaults. All that is no choice is a Failure.
odin_scorer_options checked_options(const odin_scorer_options* given);

// The engine for a bundle, "openvino" or "trt"; a Failure if the one asked for cannot be had.
std::string chosen_engine(const Bundle& bundle, const odin_scorer_options& options, const Log& log);

// The precision in which the engine is to compute a bundle; a Failure if it does not.
std::string chosen_precision(const Bundle& bundle, const std::string& engine, odin_precision asked);

}  // namespace odin::detail
