// What a handle holds, and opening it.
#pragma once

#include "session.hpp"

struct odin_scorer {
  odin::detail::Bundle bundle;
  std::string engine, precision;
  bool calibrated;
  odin_allocator allocator;
  std::unique_ptr<odin::detail::Session> session;
};

namespace odin::detail {

// A scorer in memory of the caller's allocator; a Failure says what is wrong.
odin_scorer* opened(const char* path, const odin_scorer_options& options);

}  // namespace odin::detail
