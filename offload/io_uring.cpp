#include "offload/io_uring.h"

#include <liburing.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace shardplan {
namespace {

constexpr unsigned kPieces = 16;  // under way at once
constexpr std::size_t kPieceBytes = std::size_t{256} << 10;

}  // namespace

class IoUrings::Ring {
 public:
  Ring() {
    make();
    // Reading from nothing fails as it should where the kernel knows how to read (5.6) and the filters of a container let
    // it be asked.
    std::byte nothing{};
    const auto read_nothing = [&](io_uring_sqe* entry, std::size_t, unsigned count) {
      io_uring_prep_read(entry, -1, &nothing, count, 0);
    };
    if (broken_ == 0 && move(1, read_nothing) < 0 && errno != EBADF) broken_ = errno;
    if (broken_ == 0) return;
    const int error = broken_;
    forget();
    throw ConfigError("io_uring", "",
                      std::string("is refused by this system (") + std::strerror(error) + "): expected pread");
  }
  ~Ring() { forget(); }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // prepare(entry, done, bytes) makes an entry for `bytes` bytes from `done` on of what is to be moved.
  template <typename Prepare>
  ssize_t move(std::size_t bytes, Prepare&& prepare) {
    const std::size_t pieces = (bytes + kPieceBytes - 1) / kPieceBytes;
    const auto bytes_of = [&](std::size_t piece) { return std::min(kPieceBytes, bytes - piece * kPieceBytes); };
    std::size_t begun = 0;
    unsigned under_way = 0;
    std::size_t first_bad = pieces;  // the first piece of which not all was moved, and how it ended
    int bad_result = 0;
    while (broken_ == 0 && (under_way > 0 || (begun < pieces && first_bad == pieces))) {
      while (begun < pieces && first_bad == pieces && under_way < kPieces) {
        io_uring_sqe* const entry = io_uring_get_sqe(&ring_);
        prepare(entry, begun * kPieceBytes, static_cast<unsigned>(bytes_of(begun)));
        io_uring_sqe_set_data64(entry, begun);
        ++begun;
        ++under_way;
      }
      // Entries that the kernel cannot take now stay in the ring for the next call.
      const int submitted = io_uring_submit_and_wait(&ring_, 1);
      const bool for_now = submitted == -EAGAIN || submitted == -EBUSY || submitted == -EINTR;
      if (submitted < 0 && !for_now) {
        end(under_way, -submitted);
        break;
      }
      for (io_uring_cqe* ended = nullptr; io_uring_peek_cqe(&ring_, &ended) == 0;) {
        const auto piece = static_cast<std::size_t>(io_uring_cqe_get_data64(ended));
        const int result = ended->res;
        io_uring_cqe_seen(&ring_, ended);
        --under_way;
        if ((result >= 0 && static_cast<std::size_t>(result) == bytes_of(piece)) || piece >= first_bad) continue;
        first_bad = piece;
        bad_result = result;
      }
    }
    if (broken_ != 0) {
      errno = broken_;
      return -1;
    }
    if (first_bad == pieces) return static_cast<ssize_t>(bytes);
    const auto moved = static_cast<ssize_t>(first_bad * kPieceBytes) + std::max(bad_result, 0);
    if (moved > 0 || bad_result == 0) return moved;
    errno = -bad_result;
    return -1;
  }

 private:
  void make() {
    broken_ = -io_uring_queue_init(kPieces, &ring_, 0);
    made_ = broken_ == 0;
  }

  void forget() {
    if (made_) io_uring_queue_exit(&ring_);
    made_ = false;
  }

  // What the kernel has taken ends first, for it uses the caller's memory; the rest is forgotten with the ring.
  void end(unsigned under_way, int error) {
    for (unsigned taken = under_way - io_uring_sq_ready(&ring_); taken > 0;) {
      io_uring_cqe* ended = nullptr;
      if (io_uring_wait_cqe(&ring_, &ended) != 0) continue;
      io_uring_cqe_seen(&ring_, ended);
      --taken;
    }
    forget();
    broken_ = error;
  }

  io_uring ring_{};
  bool made_ = false;
  int broken_ = 0;  // why it cannot be used any more
};

IoUrings::IoUrings(int callers) {
  SHARDPLAN_CHECK(callers > 0, "io_uring for no caller");
  for (int i = 0; i < callers; ++i) free_.push_back(std::make_unique<Ring>());
}
IoUrings::~IoUrings() = default;

template <typename Act>
ssize_t IoUrings::with_ring(Act&& act) {
  std::unique_lock lock(mutex_);
  freed_.wait(lock, [&] { return !free_.empty(); });
  std::unique_ptr<Ring> ring = std::move(free_.back());
  free_.pop_back();
  lock.unlock();
  const ssize_t moved = act(*ring);
  const int error = errno;
  lock.lock();
  free_.push_back(std::move(ring));
  lock.unlock();
  freed_.notify_one();
  errno = error;
  return moved;
}

ssize_t IoUrings::read(int file, std::byte* to, std::size_t bytes, std::uint64_t offset) {
  return with_ring([&](Ring& ring) {
    return ring.move(bytes, [&](io_uring_sqe* entry, std::size_t done, unsigned count) {
      io_uring_prep_read(entry, file, to + done, count, offset + done);
    });
  });
}

ssize_t IoUrings::write(int file, const std::byte* from, std::size_t bytes, std::uint64_t offset) {
  return with_ring([&](Ring& ring) {
    return ring.move(bytes, [&](io_uring_sqe* entry, std::size_t done, unsigned count) {
      io_uring_prep_write(entry, file, from + done, count, offset + done);
    });
  });
}

}  // namespace shardplan
