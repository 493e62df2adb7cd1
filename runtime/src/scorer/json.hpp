// A strict reader of JSON (RFC 8259): UTF-8 alone, no name twice, no NaN, at most 64 levels.
#pragma once

#include <stdint.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace odin::detail {

struct Json {
  enum class Kind { kNull, kBoolean, kNumber, kText, kList, kObject };

  Kind kind = Kind::kNull;
  bool boolean = false;
  std::string text;                // of a text; of a number, as it is written
  std::vector<Json> items;         // of a list or an object
  std::vector<std::string> names;  // of an object's items

  bool is(Kind other) const { return kind == other; }

  // An object's item of this name; null if it has none, or this is no object.
  const Json* find(std::string_view name) const;

  // The value of a number: no value if this is none, or too large for a double.
  std::optional<double> number() const;

  // Of a number written without fraction and exponent: no value if this is none, or too large.
  std::optional<int64_t> whole() const;
};

// Throws std::invalid_argument, saying what is wrong at which byte.
Json parse_json(std::string_view text);

}  // namespace odin::detail
