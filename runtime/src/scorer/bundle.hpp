// The bundle on disk: a folder with odin.json and the files it lists, each with its SHA-256.
#pragma once

#include <stdint.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

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
  int64_t activation_bytes = 0;
  std::optional<Calibration> calibration;
};

struct Bundle {
  std::string path;
  Spec spec;
  std::map<std::string, std::string> damaged;  // of files for one engine: what is wrong
  std::string graph_name, graph;               // the ODIN graph for the engine, and its content
};

// Open a bundle for an engine; all that is wrong is a Failure, but of other engines' files.
Bundle read_bundle(const std::string& path, const std::string& engine);

// The description's part of it: `file` is odin.json's name, for messages.
Spec read_spec(const std::string& file, const Json& description);

}  // namespace odin::detail
