// Tells one file what is read next, so that the disk works while what is there is checked and copied.
//
// A page cache notices too late, and asks for too little, that a file is read from its beginning to its end: on the
// machine of docs/benchmarks.md half of the bandwidth was left. As much is asked for ahead as has been read in a row, so
// that who reads in pieces makes the disk read twice what is needed at the most.
#pragma once

#include <cstdint>

#include "runtime/files/files.h"

namespace shardplan {

class ReadAhead {
 public:
  // Before bytes [begin, end) of it are read.
  void next(const InputFile& file, std::uint64_t begin, std::uint64_t end);

 private:
  std::uint64_t row_ = 0;   // where reading in a row began
  std::uint64_t read_ = 0;  // up to here it has come
  std::uint64_t told_ = 0;  // up to here the file knows
};

}  // namespace shardplan
