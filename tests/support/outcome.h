// How a rank of a test ended, as data that can come from another process.
#pragma once

#include <exception>
#include <string>

namespace shardplan::test {

struct Outcome {
  enum class Kind { fine, communication_error, out_of_memory, check_failure, other_error, died };
  Kind kind = Kind::fine;
  int rank = -1;          // that a CommunicationError names
  std::string operation;  // that a CommunicationError names
  std::string message;    // of the exception, or of what the process died of
};

Outcome outcome_of(const std::exception_ptr& exception);

}  // namespace shardplan::test
