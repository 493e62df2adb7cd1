#include "json.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <stdexcept>

namespace odin::detail {

namespace {

constexpr int kMostLevels = 64;
constexpr size_t kMostNames = 4096;  // of an object: each is compared with all before it

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  Json document() {
    Json value = read(0);
    skip_space();
    if (at_ != text_.size()) wrong("something follows the value");
    return value;
  }

 private:
  [[noreturn]] void wrong(const char* what) const {
    throw std::invalid_argument(std::string(what) + " at byte " + std::to_string(at_));
  }

  // The next byte, 0 at the end: JSON has no such byte outside of texts, and none in them.
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_space() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t') ++at_;
  }

  bool take(char wanted) {
    if (peek() != wanted) return false;
    ++at_;
    return true;
  }

  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json read(int level) {
    if (level > kMostLevels) wrong("there are too many levels");
    skip_space();
    Json value;
    if (peek() == '{') {
      read_object(value, level);
    } else if (peek() == '[') {
      read_list(value, level);
    } else if (peek() == '"') {
      value.kind = Json::Kind::kText;
      value.text = read_text();
    } else if (take_word("true")) {
      value.kind = Json::Kind::kBoolean;
      value.boolean = true;
    } else if (take_word("false")) {
      value.kind = Json::Kind::kBoolean;
    } else if (!take_word("null")) {
      value.kind = Json::Kind::kNumber;
      value.text = read_number();
    }
    return value;
  }

  void read_object(Json& value, int level) {
    value.kind = Json::Kind::kObject;
    ++at_;
    skip_space();
    if (take('}')) return;
    do {
      skip_space();
      if (peek() != '"') wrong("a name is missing");
      if (value.names.size() == kMostNames) wrong("there are too many names");
      std::string name = read_text();
      if (value.find(name) != nullptr) wrong("a name comes twice");
      skip_space();
      if (!take(':')) wrong("a colon is missing");
      value.items.push_back(read(level + 1));
      value.names.push_back(std::move(name));
      skip_space();
    } while (take(','));
    if (!take('}')) wrong("a comma or a closing brace is missing");
  }

  void read_list(Json& value, int level) {
    value.kind = Json::Kind::kList;
    ++at_;
    skip_space();
    if (take(']')) return;
    do {
      value.items.push_back(read(level + 1));
      skip_space();
    } while (take(','));
    if (!take(']')) wrong("a comma or a closing bracket is missing");
  }

  bool take_digits() {
    const size_t start = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > start;
  }

  std::string read_number() {
    const size_t start = at_;
    take('-');
    if (!take('0') && !take_digits()) wrong("there is no value");
    if (take('.') && !take_digits()) wrong("digits are missing");
    if (take('e') || take('E')) {
      if (!take('+')) take('-');
      if (!take_digits()) wrong("digits are missing");
    }
    return std::string(text_.substr(start, at_ - start));
  }

  std::string read_text() {
    std::string text;
    ++at_;
    while (!take('"')) {
      if (at_ == text_.size()) wrong("a text does not end");
      if (static_cast<unsigned char>(peek()) < 0x20) wrong("a text holds a control character");
      if (take('\\')) {
        read_escape(text);
      } else {
        read_character(text);
      }
    }
    return text;
  }

  void read_escape(std::string& text) {
    constexpr std::string_view kNames = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    const size_t index = peek() == '\0' ? kNames.npos : kNames.find(peek());
    if (index != kNames.npos) {
      text += kMeanings[index];
      ++at_;
    } else if (take('u')) {
      append_utf8(text, read_code_point());
    } else {
      wrong("there is no such escape");
    }
  }

  uint32_t read_hex() {
    uint32_t value = 0;
    const char* start = text_.data() + at_;
    const char* end = start + std::min<size_t>(4, text_.size() - at_);
    const auto found = std::from_chars(start, end, value, 16);
    if (found.ec != std::errc() || found.ptr != start + 4) wrong("four digits are missing");
    at_ += 4;
    return value;
  }

  uint32_t read_code_point() {
    const uint32_t first = read_hex();
    if (first < 0xD800 || first > 0xDFFF) return first;
    if (first > 0xDBFF || !take_word("\\u")) wrong("half of a surrogate pair is missing");
    const uint32_t second = read_hex();
    if (second < 0xDC00 || second > 0xDFFF) wrong("half of a surrogate pair is missing");
    return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
  }

  static void append_utf8(std::string& text, uint32_t code) {
    if (code < 0x80) {
      text += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    const uint32_t mark = more == 1 ? 0xC0 : more == 2 ? 0xE0 : 0xF0;
    text += static_cast<char>(mark | code >> (6 * more));
    for (int i = more - 1; i >= 0; --i) {
      text += static_cast<char>(0x80 | (code >> (6 * i) & 0x3F));
    }
  }

  // One character of UTF-8: as short as can be, and no surrogate.
  void read_character(std::string& text) {
    const auto first = static_cast<unsigned char>(peek());
    const size_t start = at_;
    const int more = first < 0x80 ? 0 : first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
    if ((first >= 0x80 && first < 0xC2) || first > 0xF4) wrong("the text is not UTF-8");
    uint32_t code = first & (more == 0 ? 0x7F : 0x3F >> more);
    ++at_;
    for (int i = 0; i < more; ++i, ++at_) {
      const auto next = static_cast<unsigned char>(peek());
      if ((next & 0xC0) != 0x80) wrong("the text is not UTF-8");
      code = code << 6 | (next & 0x3F);
    }
    const uint32_t least[] = {0, 0x80, 0x800, 0x10000};
    if (code < least[more] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) {
      wrong("the text is not UTF-8");
    }
    text += text_.substr(start, at_ - start);
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

const Json* Json::find(std::string_view name) const {
  const auto found = std::find(names.begin(), names.end(), name);
  return found == names.end() ? nullptr : &items[static_cast<size_t>(found - names.begin())];
}

std::optional<double> Json::number() const {
  if (kind != Kind::kNumber) return std::nullopt;
  double value = 0;  // not strtod, which goes by the locale
  const auto found = std::from_chars(text.data(), text.data() + text.size(), value);
  if (found.ec == std::errc()) return value;
  // from_chars does not tell too small from too large.
  const size_t exponent = text.find_first_of("eE"), digits = text.find_first_of(".eE");
  const bool grows = exponent != text.npos && text.find('-', exponent) == text.npos;
  const bool tiny = !grows && std::min(digits, text.size()) < 300;
  return tiny ? std::optional<double>(0.0) : std::nullopt;
}

std::optional<int64_t> Json::whole() const {
  int64_t value = 0;
  const char* end = text.data() + text.size();
  if (kind != Kind::kNumber) return std::nullopt;
  const auto found = std::from_chars(text.data(), end, value);
  if (found.ec != std::errc() || found.ptr != end) return std::nullopt;
  return value;
}

Json parse_json(std::string_view text) { return Reader(text).document(); }

}  // namespace odin::detail
