// MPI from MPI_Init to MPI_Finalize, for a program that is all MPI's.
#pragma once

#include <cstddef>
#include <span>
#include <string>

namespace shardplan {

class MpiSession {
 public:
  // MPI_Init_thread with MPI_THREAD_FUNNELED. Throws ConfigError if a launcher and MPI disagree about the world
  // (require_launched).
  MpiSession();
  // MPI_Finalize, which waits for all ranks: communicators must be gone, and nobody may have failed.
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  std::string library() const;  // "Open MPI v4.1.4"

  // MPI_Allgather: one record per rank, in rank order.
  void all_gather(std::span<const std::byte> mine, std::span<std::byte> all) const;

  // The end of a program that has failed, in place of MPI_Finalize: after a second, in which the other ranks can tell what
  // they saw, MPI_Abort ends all that are left.
  [[noreturn]] void abort(int exit_status) const;

 private:
  int rank_ = 0;
  int size_ = 0;
};

}  // namespace shardplan
