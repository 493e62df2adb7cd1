// How many threads an engine is told to use.
#pragma once

#include <sched.h>

#include <algorithm>
#include <cstdio>

namespace odin::detail {

// What the caller asked for; else in a container with a share of the processors' time, as many as
// that share: engines count cores by themselves and know nothing of it, and with a thread on each
// core all stand still together whenever it is used up. 0: the engine's own choice.
inline int32_t threads_of(int32_t asked) {
  if (asked > 0) return asked;
  FILE* file = fopen("/sys/fs/cgroup/cpu.max", "r");
  if (file == nullptr) return 0;
  long long time = 0, period = 0;  // "max 100000" where there is no bound
  const bool bounded = fscanf(file, "%lld %lld", &time, &period) == 2 && time > 0 && period > 0;
  fclose(file);
  if (!bounded) return 0;
  cpu_set_t own;
  CPU_ZERO(&own);
  const int cores = sched_getaffinity(0, sizeof own, &own) == 0 ? CPU_COUNT(&own) : 4096;
  return static_cast<int32_t>(std::clamp<long long>(time / period, 1, cores));
}

}  // namespace odin::detail
