#include "runtime/direct/bell.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <ctime>

namespace shardplan {

// Neither call is FUTEX_PRIVATE: the sleepers may be of other processes.
void Bell::wait(std::uint32_t rings, std::chrono::nanoseconds time) noexcept {
  constexpr std::int64_t kBillion = 1'000'000'000;
  const std::int64_t nanoseconds = std::max<std::int64_t>(time.count(), 0);
  const timespec relative{.tv_sec = nanoseconds / kBillion, .tv_nsec = nanoseconds % kBillion};
  syscall(SYS_futex, &rings_, FUTEX_WAIT, rings, &relative, nullptr, 0);
}

void Bell::wake() noexcept {
  syscall(SYS_futex, &rings_, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace shardplan
