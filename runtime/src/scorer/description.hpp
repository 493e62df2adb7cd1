// The values of odin.json, each of the kind that it has to be.
#pragma once

#include <stdint.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "json.hpp"

namespace odin::detail {

inline constexpr const char* kExportAgain = "export it again with odin-export";

// An object of the description. Values that are missing or of another kind are a Failure of status
// ODIN_DAMAGED that names file and value.
class Description {
 public:
  Description(std::string file, std::string prefix, const Json& object)
      : file_(std::move(file)), prefix_(std::move(prefix)), object_(object) {}

  // Null if there is none, or it is JSON's null.
  const Json* optional(const char* name) const;

  const std::string& text(const char* name) const;
  const std::string& choice(const char* name, std::initializer_list<const char*> choices) const;
  double number(const char* name) const;
  int64_t whole(const char* name, int64_t least, int64_t most) const;
  bool boolean(const char* name) const;
  std::vector<double> numbers(const char* name) const;
  std::vector<double> numbers(const char* name, int64_t count) const;
  std::vector<std::string> texts(const char* name) const;

  [[noreturn]] void wrong(const char* name, const std::string& what) const;

 private:
  const Json& value(const char* name) const;

  std::string file_, prefix_;
  const Json& object_;
};

}  // namespace odin::detail
