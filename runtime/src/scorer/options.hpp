// Structs of callers whose header may be older or newer than the library.
#pragma once

#include <string.h>

#include <algorithm>

#include "bundle.hpp"
#include "failure.hpp"

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

// The name of the engine that was asked for; a Failure if the library was built without it.
std::string chosen_engine(odin_engine asked);

// The precision in which to compute a bundle; a Failure if the engine does not.
std::string chosen_precision(const Bundle& bundle, odin_precision asked);

}  // namespace odin::detail
