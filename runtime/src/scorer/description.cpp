#include "description.hpp"

#include <algorithm>

#include "failure.hpp"

namespace odin::detail {

void Description::wrong(const char* name, const std::string& what) const {
  fail(ODIN_DAMAGED, "%s: %s%s %s; %s", file_.c_str(), prefix_.c_str(), name, what.c_str(),
       kExportAgain);
}

const Json& Description::value(const char* name) const {
  const Json* found = object_.find(name);
  if (found == nullptr) wrong(name, "is missing");
  return *found;
}

const Json* Description::optional(const char* name) const {
  const Json* found = object_.find(name);
  return found == nullptr || found->is(Json::Kind::kNull) ? nullptr : found;
}

const std::string& Description::text(const char* name) const {
  const Json& found = value(name);
  if (!found.is(Json::Kind::kText)) wrong(name, "is not text");
  // It is given to C programs, for which it would end there.
  if (found.text.find('\0') != std::string::npos) wrong(name, "holds a NUL character");
  return found.text;
}

const std::string& Description::choice(const char* name,
                                       std::initializer_list<const char*> choices) const {
  const std::string& found = text(name);
  if (std::find(choices.begin(), choices.end(), found) != choices.end()) return found;
  std::string known;
  for (const char* each : choices) known += (known.empty() ? "" : ", ") + std::string(each);
  wrong(name, "is '" + found + "', not one of " + known);
}

double Description::number(const char* name) const {
  const auto found = value(name).number();
  if (!found) wrong(name, "is not a number");
  return *found;
}

int64_t Description::whole(const char* name, int64_t least, int64_t most) const {
  const auto found = value(name).whole();
  if (!found || *found < least || *found > most) {
    wrong(name, "is not a whole number from " + std::to_string(least) + " to " +
                    std::to_string(most));
  }
  return *found;
}

bool Description::boolean(const char* name) const {
  const Json& found = value(name);
  if (!found.is(Json::Kind::kBoolean)) wrong(name, "is neither true nor false");
  return found.boolean;
}

std::vector<double> Description::numbers(const char* name, int64_t count) const {
  const Json& found = value(name);
  if (!found.is(Json::Kind::kList) || static_cast<int64_t>(found.items.size()) != count) {
    wrong(name, "does not have " + std::to_string(count) + " values");
  }
  return numbers(name);
}

std::vector<double> Description::numbers(const char* name) const {
  const Json& found = value(name);
  if (!found.is(Json::Kind::kList)) wrong(name, "is not a list of numbers");
  std::vector<double> values;
  for (const Json& item : found.items) {
    const auto number = item.number();
    if (!number) wrong(name, "holds something that is not a number");
    values.push_back(*number);
  }
  return values;
}

std::vector<std::string> Description::texts(const char* name) const {
  const Json& found = value(name);
  if (!found.is(Json::Kind::kList)) wrong(name, "is not a list of texts");
  std::vector<std::string> values;
  for (const Json& item : found.items) {
    if (!item.is(Json::Kind::kText)) wrong(name, "holds something that is not text");
    values.push_back(item.text);
  }
  return values;
}

}  // namespace odin::detail
