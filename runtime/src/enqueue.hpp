// Launching a kernel: launch.cu with CUDA, no_cuda.cpp without.
#pragma once

#include "checks.hpp"

namespace odin {

// Enqueue the kernel of these (checked, not empty) arguments on a CUDA stream.
template <typename Arguments>
odin_status enqueue(const char* function, const Arguments& arguments, void* stream);

extern const bool kHasCuda;

// All twelve, for the file that defines them.
#define ODIN_ENQUEUE_ALL(T)                                                                    \
  template odin_status enqueue(const char*, const NormalizeArguments<T>&, void*);              \
  template odin_status enqueue(const char*, const PerturbArguments<T>&, void*);                \
  template odin_status enqueue(const char*, const ScoreArguments<T>&, void*);                  \
  template odin_status enqueue(const char*, const FirstOrderArguments<T>&, void*);

}  // namespace odin
