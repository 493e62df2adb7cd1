// The bundle on disk: a folder with odin.json and the files it lists, each with its SHA-256.
#pragma once

#include <stdint.h>

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "failure.hpp"
#include "json.hpp"

namespace odin::detail {

struct Range {
  int32_t least, most;
};

// What calibrating made known; the threshold is for scores made so, and for no others.
struct Calibration {
  double threshold;
  std::string engine, precision, method;
  double temperature, magnitude;
  int64_t images;                 // that were scored
  std::vector<double> quantiles;  // of their scores, ascending, at equal shares
};

// What odin.json says, less the files.
struct Spec {
  std::string model, architecture, in_dataset;
  std::string method, precision, graph_precision, input_type;
  int64_t classes = 0;
  int32_t channels = 0;
  Range height{}, width{};
  std::vector<double> mean, std;
  double temperature = 0, magnitude = 0;
  bool tunable = false;
  bool further_scores = false;  // whether the ODIN graph has outputs beside its own four
  int64_t activation_bytes = 0;
  std::optional<Calibration> calibration;
};

// A TensorRT plan: what it was made of and where it runs, as engines/odin_engines/plan_records.py.
struct PlanRecord {
  std::string file, form, engine, version, device, precision, hardware_compatibility;
  std::string graph, graph_sha256;
  std::vector<std::string> compute_capabilities;
};

struct FileRecord {
  std::optional<int64_t> bytes;
  std::string bytes_text, sha256;
};

struct Bundle {
  std::string path;
  Spec spec;
  std::vector<PlanRecord> plans;
  std::map<std::string, FileRecord> files;
  std::map<std::string, Failure> damaged;       // of files for one engine: what is wrong
  std::map<std::string, std::string> contents;  // of the files that were to be kept
};

// A bundle's folder as a shell takes it, and as no command takes for the name of a network.
std::string folder_argument(const std::string& path);

// Read and check a bundle's description, and none of its files.
Bundle describe_bundle(const std::string& path);

// Check size and hash of all files, and keep the content of some: what is verified is what is
// opened, for the file may change between two readings. What is wrong with files for one engine is
// in `damaged` then; with others, a Failure.
void verify_files(Bundle& bundle, const std::set<std::string>& kept);

// Take the content of a file that was kept; a Failure if it is damaged.
std::string take_content(Bundle& bundle, const std::string& name);

// The ODIN graph that an engine opens.
std::string graph_for(const Bundle& bundle, const std::string& engine);

// The description's part of it: `file` is odin.json's name, for messages.
Spec read_spec(const std::string& file, const Json& description);
std::vector<PlanRecord> read_plans(const std::string& file, const Json& description);

}  // namespace odin::detail
