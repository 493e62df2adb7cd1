#include "bundle.hpp"

#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <stdexcept>

#include "description.hpp"
#include "failure.hpp"
#include "sha256.hpp"

namespace odin::detail {

namespace {

constexpr int64_t kSchema = 1;
constexpr int64_t kMostDescription = 8 << 20;  // a thousand quantiles take 20 kB
constexpr const char* kOdin = "odin.onnx";

struct FileCloser {
  void operator()(FILE* file) const { fclose(file); }
};

// Call use(bytes, count) for one piece of a file after another.
template <typename Use>
void read_file(const std::string& name, Use use) {
  const std::unique_ptr<FILE, FileCloser> file(fopen(name.c_str(), "rb"));
  int error = errno;
  if (file) {
    std::vector<char> piece(1 << 20);
    size_t count = 0;
    while ((count = fread(piece.data(), 1, piece.size(), file.get())) > 0) {
      use(piece.data(), count);
    }
    if (!ferror(file.get())) return;
    error = errno;
  }
  fail(ODIN_NOT_FOUND, "%s cannot be read: %s; check its permissions", name.c_str(),
       strerror(error));
}

// The size of a file; no value if there is no such file, or it is something else.
std::optional<int64_t> file_size(const std::string& name) {
  struct stat status {};
  if (stat(name.c_str(), &status) != 0 || !S_ISREG(status.st_mode)) return std::nullopt;
  return status.st_size;
}

Json read_description(const std::string& bundle, const std::string& file) {
  const auto size = file_size(file);
  if (!size) {
    fail(ODIN_NOT_FOUND,
         "no bundle at %s: it has no odin.json; make one with 'odin-export MODEL --output %s'",
         bundle.c_str(), bundle.c_str());
  }
  if (*size > kMostDescription) {
    fail(ODIN_DAMAGED, "%s is too large; %s", file.c_str(), kExportAgain);
  }
  std::string text;
  read_file(file, [&](const char* piece, size_t count) { text.append(piece, count); });
  try {
    return parse_json(text);
  } catch (const std::invalid_argument& error) {
    fail(ODIN_DAMAGED, "%s cannot be read: %s; %s", file.c_str(), error.what(), kExportAgain);
  }
}

void check_schema(const std::string& file, const Json& description) {
  const Json* entry = description.find("schema");
  const auto schema = entry == nullptr ? std::nullopt : entry->whole();
  if (!schema) {
    fail(ODIN_DAMAGED, "%s is not a bundle's description; %s", file.c_str(), kExportAgain);
  }
  if (*schema > kSchema) {
    fail(ODIN_TOO_NEW,
         "%s has schema %lld, from a newer version; this library reads up to %lld: use a newer one",
         file.c_str(), static_cast<long long>(*schema), static_cast<long long>(kSchema));
  }
  if (*schema < 1) {
    fail(ODIN_DAMAGED, "%s has schema %lld, which never existed; %s", file.c_str(),
         static_cast<long long>(*schema), kExportAgain);
  }
}

// The engine that a file was derived for, that of odin.rtx.plan or odin.ort.onnx; or "".
std::string engine_of(const std::string& name) {
  const std::string engine = std::filesystem::path(name).stem().extension().string();
  return engine.empty() ? "" : engine.substr(1);
}

bool is_plain(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string("/\\\0", 3)) == name.npos;
}

// Check one file of the list; `content`, if not null, takes what is in it.
void verify(const Bundle& bundle, const std::string& name, const FileRecord& record,
            std::string* content) {
  const std::string file = bundle.path + "/" + name;
  const std::string engine = engine_of(name);
  const std::string remedy =
      engine.empty() ? kExportAgain
                     : "build it again with 'odin-export " + folder_argument(bundle.path) +
                           " --engine " + engine + "'";
  const auto found = file_size(file);
  if (!found) {
    fail(ODIN_NOT_FOUND, "%s is missing; copy the whole bundle, or %s", file.c_str(),
         remedy.c_str());
  }
  if (!record.bytes || *found != *record.bytes) {
    fail(ODIN_DAMAGED, "%s has %lld bytes, not %s: it was cut or changed; %s", file.c_str(),
         static_cast<long long>(*found), record.bytes_text.c_str(), remedy.c_str());
  }
  Sha256 sum;
  read_file(file, [&](const char* piece, size_t count) {
    sum.add(piece, count);
    if (content != nullptr) content->append(piece, count);
  });
  if (sum.finish() != record.sha256) {
    fail(ODIN_DAMAGED, "%s does not match its SHA-256: it was changed; %s", file.c_str(),
         remedy.c_str());
  }
}

std::map<std::string, FileRecord> read_files(const std::string& file, const Json& description) {
  const Json* entries = description.find("files");
  if (entries == nullptr || entries->find(kOdin) == nullptr) {
    fail(ODIN_DAMAGED, "%s lists no %s; %s", file.c_str(), kOdin, kExportAgain);
  }
  std::map<std::string, FileRecord> files;
  for (size_t i = 0; i < entries->items.size(); ++i) {
    const std::string& name = entries->names[i];
    const Json* bytes = entries->items[i].find("bytes");
    const Json* sha256 = entries->items[i].find("sha256");
    if (!is_plain(name)) {
      fail(ODIN_DAMAGED, "%s lists '%s', which is not a plain file name; %s", file.c_str(),
           name.c_str(), kExportAgain);
    }
    if (bytes == nullptr || sha256 == nullptr) {
      fail(ODIN_DAMAGED, "%s gives no size and hash of %s; %s", file.c_str(), name.c_str(),
           kExportAgain);
    }
    files.emplace(name, FileRecord{bytes->whole(), bytes->text, sha256->text});
  }
  return files;
}

}  // namespace

std::string folder_argument(const std::string& path) {
  const std::string folder = path.find('/') == path.npos ? "./" + path : path;
  const auto is_plain = [](unsigned char c) { return isalnum(c) != 0 || strchr("_@%+=:,./-", c); };
  if (std::all_of(folder.begin(), folder.end(), is_plain)) return folder;
  std::string quoted = "'";
  for (const char c : folder) quoted += c == '\'' ? std::string("'\"'\"'") : std::string(1, c);
  return quoted + "'";
}

Bundle describe_bundle(const std::string& path) {
  const std::string file = path + "/odin.json";
  const Json description = read_description(path, file);
  check_schema(file, description);
  Bundle bundle;
  bundle.path = path;
  bundle.files = read_files(file, description);
  bundle.spec = read_spec(file, description);
  bundle.plans = read_plans(file, description);
  std::set<std::string> plan_names;
  for (const PlanRecord& plan : bundle.plans) {
    if (!plan_names.insert(plan.file).second) {
      fail(ODIN_DAMAGED, "%s: plans name '%s' twice; %s", file.c_str(), plan.file.c_str(),
           kExportAgain);
    }
    for (const std::string& name : {plan.file, plan.graph}) {
      if (bundle.files.count(name) != 0) continue;
      fail(ODIN_DAMAGED, "%s: plans name '%s', which is not among the files; %s", file.c_str(),
           name.c_str(), kExportAgain);
    }
  }
  return bundle;
}

void verify_files(Bundle& bundle, const std::set<std::string>& kept) {
  for (const auto& [name, record] : bundle.files) {
    std::string content;
    const bool keep = kept.count(name) != 0;
    try {
      verify(bundle, name, record, keep ? &content : nullptr);
      if (keep) bundle.contents.emplace(name, std::move(content));
    } catch (const Failure& failure) {
      if (engine_of(name).empty()) throw;
      bundle.damaged.emplace(name, failure);
    }
  }
}

std::string take_content(Bundle& bundle, const std::string& name) {
  const auto damage = bundle.damaged.find(name);
  if (damage != bundle.damaged.end()) throw damage->second;
  std::string content = std::move(bundle.contents.at(name));
  bundle.contents.erase(name);
  return content;
}

std::string graph_for(const Bundle& bundle, const std::string& engine) {
  const std::string own = "odin." + engine + ".onnx";
  return bundle.files.count(own) != 0 ? own : kOdin;
}

}  // namespace odin::detail
