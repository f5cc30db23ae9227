#include "tools/mpi/mpi_session.h"

#include <mpi.h>

#include <array>
#include <chrono>
#include <cstdlib>
#include <string_view>
#include <thread>

#include "base/error.h"
#include "tools/mpi/launcher.h"

namespace shardplan {

MpiSession::MpiSession() {
  int threads = 0;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &threads) != MPI_SUCCESS) throw Error("MPI_Init failed");
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &size_);
  try {
    require_launched(launched_worlds([](const char* variable) { return std::getenv(variable); }),
                     static_cast<std::uint64_t>(size_), library());
  } catch (...) {
    MPI_Finalize();
    throw;
  }
}

MpiSession::~MpiSession() {
  MPI_Finalize();
}

// The first line, up to a comma: Open MPI goes on with who built it, MPICH with how.
std::string MpiSession::library() const {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text{};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string_view whole(text.data());
  std::string line(whole.substr(0, whole.find_first_of(",\n")));
  for (char& c : line) c = c == '\t' ? ' ' : c;
  return line;
}

void MpiSession::all_gather(std::span<const std::byte> mine, std::span<std::byte> all) const {
  const int bytes = static_cast<int>(mine.size());
  if (MPI_Allgather(mine.data(), bytes, MPI_BYTE, all.data(), bytes, MPI_BYTE, MPI_COMM_WORLD) != MPI_SUCCESS) {
    throw Error("MPI_Allgather failed");
  }
}

void MpiSession::abort(int exit_status) const {
  if (size_ > 1) std::this_thread::sleep_for(std::chrono::seconds{1});
  MPI_Abort(MPI_COMM_WORLD, exit_status);
  std::_Exit(exit_status);
}

}  // namespace shardplan
