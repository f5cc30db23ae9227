// A place in a program: which operation comes next. Walks the folded segments without expanding them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "planner/operation.h"

namespace shardplan {

class ProgramCursor {
 public:
  ProgramCursor() = default;
  explicit ProgramCursor(const Program& program) : program_(&program) { skip_empty(); }

  bool done() const { return program_ == nullptr || segment_ == program_->segments.size(); }
  // The next operation. Only while not done.
  Operation operation() const {
    const Segment& segment = program_->segments[segment_];
    return expand(segment, segment.operations[index_], iteration_);
  }
  void advance() {
    const Segment& segment = program_->segments[segment_];
    if (++index_ < segment.operations.size()) return;
    index_ = 0;
    if (++iteration_ < segment.count) return;
    iteration_ = 0;
    ++segment_;
    skip_empty();
  }

 private:
  void skip_empty() {
    while (!done() && (program_->segments[segment_].count == 0 || program_->segments[segment_].operations.empty())) {
      ++segment_;
    }
  }

  const Program* program_ = nullptr;
  std::size_t segment_ = 0;
  std::uint64_t iteration_ = 0;
  std::size_t index_ = 0;
};

}  // namespace shardplan
