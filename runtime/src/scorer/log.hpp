// Telling the caller what happens.
#pragma once

#include <string>

#include "odin/odin.h"

namespace odin::detail {

struct Log {
  odin_log_callback callback = nullptr;
  void* context = nullptr;

  void operator()(odin_log_level level, const std::string& text) const {
    if (callback != nullptr) callback(context, level, text.c_str());
  }
};

}  // namespace odin::detail
