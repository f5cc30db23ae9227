// Offload: which classes of model states live elsewhere than on the device, as a user says it.
//
//   optimizer=cpu                    optimizer states in page-locked host memory
//   optimizer=file:/mnt/nvme         in a file for each rank; `nvme` is another word for file
//   optimizer=cpu@0.5,gradients=cpu  half of the optimizer states, all gradients
//   optimizer=file,parameters=file   optimizer states and 16-bit parameters in the same file
//
// A fraction is reached by whole units, in their order: the fewest that hold so much of the class.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "planner/tier.h"

namespace shardplan {

struct OffloadedClass {
  Tier tier = Tier::device;  // device, pinned or file
  double fraction = 1;       // of the class's elements that is there; the rest is on the device

  bool elsewhere() const { return tier != Tier::device; }
  bool operator==(const OffloadedClass&) const = default;
};

// Elements of a block: what is read, updated and written in one go where optimizer states are in a file, and the least that is
// moved at once of parameters and gradients there. 2 MiB in fp32:
// large enough for the disk's full speed, small enough that a handful of blocks in memory is no matter.
inline constexpr std::uint64_t kBlockElements = std::uint64_t{1} << 19;

struct Offload {
  OffloadedClass optimizer;
  OffloadedClass gradients;
  OffloadedClass parameters;
  std::uint64_t block_elements = kBlockElements;  // a multiple of 2048, so that blocks of 16 bits are whole pages

  bool any() const { return optimizer.elsewhere() || gradients.elsewhere() || parameters.elsewhere(); }
  bool any_in_file() const {
    return optimizer.tier == Tier::file || gradients.tier == Tier::file || parameters.tier == Tier::file;
  }
  bool operator==(const Offload&) const = default;
};

// What --offload says; folders decide no bytes.
struct OffloadWords {
  Offload offload;
  std::string optimizer_folder;
  std::string gradients_folder;
  std::string parameters_folder;
};

// The folder of a rank's file, which has all classes that are in files: what any of them says, "" where none does. Throws
// ConfigError, whose source is --offload, where they say different ones.
std::string file_folder(const OffloadWords& words);

// CLASS=TIER[@FRACTION][:FOLDER],... with CLASS optimizer, gradients or parameters and TIER cpu, file or nvme. Throws
// ConfigError, whose source is --offload.
OffloadWords parse_offload(std::string_view text);

}  // namespace shardplan
