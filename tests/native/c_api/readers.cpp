// The library's own readers, of hashes and of JSON.
//
//   readers sha256 FILE...   the hash of each, as a whole and in pieces
//   readers json FILE...     of each: what is in it, on one line, or "error: ..."
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

#include "json.hpp"
#include "sha256.hpp"

namespace {

using odin::detail::Json;

std::string read(const char* name) {
  std::ifstream file(name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void hash(const std::string& content) {
  odin::detail::Sha256 whole, pieces;
  whole.add(content.data(), content.size());
  size_t at = 0;
  for (size_t size = 1; at < content.size(); size = size % 97 + 1) {
    const std::string piece = content.substr(at, size);
    pieces.add(piece.data(), piece.size());
    at += piece.size();
  }
  std::printf("%s %s\n", whole.finish().c_str(), pieces.finish().c_str());
}

// Texts in hexadecimal, numbers as doubles.
void print(const Json& value) {
  switch (value.kind) {
    case Json::Kind::kNull:
      std::printf("null ");
      break;
    case Json::Kind::kBoolean:
      std::printf("%s ", value.boolean ? "true" : "false");
      break;
    case Json::Kind::kNumber:
      std::printf("%s ", value.whole() ? std::to_string(*value.whole()).c_str() : "float");
      value.number() ? std::printf("%.17g ", *value.number()) : std::printf("large ");
      break;
    case Json::Kind::kText:
      std::printf("'");
      for (const char c : value.text) std::printf("%02x", static_cast<unsigned char>(c));
      std::printf(" ");
      break;
    default:
      std::printf(value.is(Json::Kind::kList) ? "[ " : "{ ");
      for (size_t i = 0; i < value.items.size(); ++i) {
        if (value.is(Json::Kind::kObject)) {
          Json name;
          name.kind = Json::Kind::kText;
          name.text = value.names[i];
          print(name);
        }
        print(value.items[i]);
      }
      std::printf(value.is(Json::Kind::kList) ? "] " : "} ");
  }
}

}  // namespace

int main(int count, char** arguments) {
  for (int i = 2; i < count; ++i) {
    const std::string content = read(arguments[i]);
    if (std::strcmp(arguments[1], "sha256") == 0) {
      hash(content);
      continue;
    }
    try {
      print(odin::detail::parse_json(content));
    } catch (const std::invalid_argument& error) {
      std::printf("error: %s", error.what());
    }
    std::printf("\n");
  }
  return 0;
}
