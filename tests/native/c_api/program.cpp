// A C++ program that scores images from one thread, then from several at once on one scorer.
//
//   program BUNDLE FILE COUNT HEIGHT WIDTH THREADS ROUNDS STREAMS BATCH CACHE
//   program sizes BUNDLE FILE HEIGHT WIDTH   one image, its upper rows alone, each number of them
//   program race BUNDLE FILE HEIGHT WIDTH    two threads that write to the same place
//
// FILE holds raw images of three channels. Printed are the scores; on the last line, the largest
// difference between threads, bytes that were allocated and not freed, bytes that were allocated,
// and lines of the log. CACHE may be "".
#include <odin/odin.hpp>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>

namespace {

struct Counter {
  std::atomic<long long> held{0}, all{0};
};

void* allocate(void* context, size_t bytes, size_t alignment) {
  auto& counter = *static_cast<Counter*>(context);
  counter.held += static_cast<long long>(bytes);
  counter.all += static_cast<long long>(bytes);
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

void deallocate(void* context, void* memory, size_t bytes) {
  static_cast<Counter*>(context)->held -= static_cast<long long>(bytes);
  std::free(memory);
}

double difference(const odin::Scores& found, const odin::Scores& wanted, size_t first) {
  double most = 0;
  for (size_t i = 0; i < found.score.size(); ++i) {
    most = std::fmax(most, std::fabs(found.score[i] - wanted.score[first + i]));
    most = std::fmax(most, std::fabs(found.baseline[i] - wanted.baseline[first + i]));
    if (found.label[i] != wanted.label[first + i]) most = 1;
  }
  return most;
}

struct Images {
  std::vector<std::uint8_t> pixels;
  size_t count, height, width;
};

// Each thread scores another part of the images, of another size, in each round.
double from_threads(const odin::Scorer& scorer, const Images& images, const odin::Scores& wanted,
                    size_t threads, size_t rounds) {
  std::vector<double> worst(threads, 0);
  std::vector<std::thread> all;
  for (size_t thread = 0; thread < threads; ++thread) {
    all.emplace_back([&, thread] {
      for (size_t round = 0; round < rounds; ++round) {
        const size_t first = (thread + round) % images.count;
        const size_t count = 1 + (thread * 5 + round) % (images.count - first);
        const auto* start = images.pixels.data() + first * images.height * images.width * 3;
        const auto found = scorer.score_raw(start, count, images.height, images.width);
        worst[thread] = std::fmax(worst[thread], difference(found, wanted, first));
      }
    });
  }
  for (std::thread& each : all) each.join();
  double most = 0;
  for (const double each : worst) most = std::fmax(most, each);
  return most;
}

std::vector<std::uint8_t> read(const char* name) {
  std::ifstream file(name, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// For the sanitizer to find: both threads give the same target for the decision.
void race(char** arguments) {
  const odin::Scorer scorer(arguments[0]);
  const auto pixels = read(arguments[1]);
  std::uint8_t is_ood = 0;
  const auto score = [&] {
    odin_images images{};
    images.size = sizeof images;
    images.data = pixels.data();
    images.count = 1;
    images.height = std::atoi(arguments[2]);
    images.width = std::atoi(arguments[3]);
    images.channels = 3;
    odin_scores scores{};
    scores.size = sizeof scores;
    scores.is_ood = &is_ood;
    odin_scorer_score(scorer.get(), &images, &scores);
  };
  std::thread other(score);
  score();
  other.join();
}

// Twice: what has been compiled is taken again. The last line tells how often the log spoke.
void sizes(char** arguments) {
  std::atomic<int> lines{0};
  odin::Options options;
  options.log = [&](odin_log_level level, const std::string&) { lines += level == ODIN_LOG_INFO; };
  const odin::Scorer scorer(arguments[0], options);
  const auto pixels = read(arguments[1]);
  const auto height = std::strtoull(arguments[2], nullptr, 10);
  const auto width = std::strtoull(arguments[3], nullptr, 10);
  for (int round = 0; round < 2; ++round) {
    for (auto rows = static_cast<size_t>(scorer.info().least_height); rows <= height; ++rows) {
      std::printf("%.9g\n", scorer.score_raw(pixels.data(), 1, rows, width).score[0]);
    }
  }
  std::printf("%d\n", lines.load());
}

void run(char** arguments) {
  Counter counter;
  std::atomic<int> lines{0};
  double most = 0;
  {
    odin::Options options;
    options.streams = std::atoi(arguments[7]);
    options.batch_size = std::atoi(arguments[8]);
    options.cache = arguments[9];
    options.allocator = {&counter, allocate, deallocate};
    options.log = [&](odin_log_level, const std::string& text) {
      ++lines;
      if (text.empty()) throw std::runtime_error("an empty line");
    };
    odin::Scorer opened(arguments[0], options);
    const odin::Scorer scorer = std::move(opened);
    const Images images = {read(arguments[1]), std::strtoull(arguments[2], nullptr, 10),
                           std::strtoull(arguments[3], nullptr, 10),
                           std::strtoull(arguments[4], nullptr, 10)};
    const odin::Scores scores = scorer.score_raw(images.pixels.data(), images.count, images.height,
                                                 images.width, true);
    most = from_threads(scorer, images, scores, std::strtoull(arguments[5], nullptr, 10),
                        std::strtoull(arguments[6], nullptr, 10));
    for (size_t i = 0; i < images.count; ++i) {
      std::printf("%.9g %.9g %lld %d %.9g\n", scores.score[i], scores.baseline[i],
                  static_cast<long long>(scores.label[i]),
                  scores.is_ood.empty() ? -1 : scores.is_ood[i],
                  scores.percentile.empty() ? -1 : scores.percentile[i]);
    }
  }
  std::printf("%.9g %lld %lld %d\n", most, counter.held.load(), counter.all.load(), lines.load());
}

}  // namespace

int main(int count, char** arguments) {
  try {
    if (count == 6 && std::strcmp(arguments[1], "race") == 0) {
      race(arguments + 2);
    } else if (count == 6 && std::strcmp(arguments[1], "sizes") == 0) {
      sizes(arguments + 2);
    } else if (count == 11) {
      run(arguments + 1);
    } else {
      return 2;
    }
    return 0;
  } catch (const odin::Error& error) {
    std::printf("%d: %s\n", error.status(), error.what());
    return 1;
  }
}
