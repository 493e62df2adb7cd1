// Lanes: what scores one part at a time, and handing them to threads.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <vector>

#include "model.hpp"
#include "session.hpp"

namespace odin::detail {

// Images `first` to `first + count` of a batch.
struct Chunk {
  int64_t first, count;
};

// A stream of its own, memory, and execution contexts. All its work is on its stream, so that what
// comes next finds the memory free.
class Lane {
 public:
  explicit Lane(const Model& model);
  ~Lane();  // waits for what is queued
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // Queue scoring a chunk. Results for the host are there after `finish`.
  void begin(const odin_images& images, const Targets& targets, Chunk chunk);

  // Wait for the chunk that was begun, and write its results for the host.
  void finish(const Targets& targets);

  // Let what is queued next come after the work that a stream holds now, or the reverse.
  void come_after(cudaStream_t stream);
  void hold_back(cudaStream_t stream);

  // Whether nothing is queued any more.
  bool at_rest() const noexcept;

  // Wait for all that is queued; whether that went well.
  bool settle() noexcept;

 private:
  const void* readable(const odin_images& images, Chunk chunk, int64_t padded);
  void stage(const odin_images& images, Chunk chunk, int64_t padded);
  void fetch(const Targets& targets, Chunk chunk);

  const Model& model_;
  Stream stream_;
  Event event_;
  DeviceBytes input_;
  PinnedBytes staged_, fetched_, fetched_logits_;
  Workspace workspace_;
  Chunk chunk_{};  // that was begun
};

// At most so many lanes, made when they are first wanted.
class Lanes {
 public:
  Lanes(const Model& model, int32_t most, const Log& log);

  // A lane in use. It is given back at the end, at rest if it was not `queued`.
  class Lease {
   public:
    Lease(Lanes& lanes, std::unique_ptr<Lane> lane) : lanes_(&lanes), lane_(std::move(lane)) {}
    Lease(Lease&&) = default;
    Lease& operator=(Lease&&) = delete;
    ~Lease();

    Lane* operator->() const { return lane_.get(); }
    void at_work(bool value) { at_work_ = value; }

   private:
    Lanes* lanes_;
    std::unique_ptr<Lane> lane_;
    bool at_work_ = false;
  };

  // One that is idle; waits until there is one.
  Lease wait();

  // The same, if there is one without waiting.
  std::optional<Lease> try_one();

 private:
  std::unique_ptr<Lane> take(std::unique_lock<std::mutex>& guard);
  void give_back(std::unique_ptr<Lane> lane) noexcept;

  const Model& model_;
  const Log log_;
  std::mutex lock_;  // of what follows
  std::condition_variable freed_;
  size_t most_, made_ = 0;
  std::vector<std::unique_ptr<Lane>> idle_;
};

}  // namespace odin::detail
