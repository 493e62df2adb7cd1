// What stops a call: thrown inside the library, and never out of it.
#pragma once

#include <stdarg.h>
#include <stdio.h>

#include <string>

#include "odin/odin.h"

namespace odin::detail {

struct Failure {
  odin_status status;
  std::string text;
};

// Throw a Failure; printf's formats.
[[noreturn]] inline void fail(odin_status status, const char* format, ...)
    __attribute__((format(printf, 2, 3)));

inline void fail(odin_status status, const char* format, ...) {
  char text[2048];
  va_list values;
  va_start(values, format);
  vsnprintf(text, sizeof text, format, values);
  va_end(values);
  throw Failure{status, text};
}

}  // namespace odin::detail
