#include "base/error.h"

#include <fmt/format.h>

#include <cstring>
#include <utility>

namespace shardplan {
namespace {

std::string where(const std::string& source, const std::string& key, const std::string& problem) {
  std::string text = source;
  for (const std::string* part : {&key, &problem}) {
    if (part->empty()) continue;
    if (!text.empty()) text += ": ";
    text += *part;
  }
  return text;
}

}  // namespace

void throw_overflow(const char* operation, std::uint64_t left, std::uint64_t right) {
  throw ArithmeticOverflow(fmt::format("the result of {} {} {} does not fit into 64 bits", left, operation, right));
}

ConfigError::ConfigError(std::string source, std::string key, std::string problem)
    : Error(where(source, key, problem)),
      source_(std::move(source)),
      key_(std::move(key)),
      problem_(std::move(problem)) {}

OutOfMemory::OutOfMemory(std::string tier, Bytes requested, Bytes available)
    : Error(fmt::format("out of {} memory: {} ({} bytes) requested, {} ({} bytes) available", tier, in_gib(requested),
                        requested.count(), in_gib(available), available.count())),
      tier_(std::move(tier)),
      requested_(requested),
      available_(available) {}

CommunicationError::CommunicationError(int rank, std::string operation, std::chrono::milliseconds deadline,
                                       const std::string& problem)
    : Error(fmt::format("{}{}: {} (deadline {} ms)", rank < 0 ? "" : fmt::format("rank {}, ", rank), operation, problem,
                        deadline.count())),
      rank_(rank),
      operation_(std::move(operation)),
      deadline_(deadline) {}

IoError::IoError(std::string path, std::uint64_t offset, int error_number, const std::string& problem)
    : Error(fmt::format("{}: {}{}{}", path, offset > 0 ? fmt::format("at byte {}: ", offset) : "", problem,
                        error_number == 0 ? std::string() : fmt::format(": {}", std::strerror(error_number)))),
      path_(std::move(path)),
      offset_(offset),
      error_number_(error_number) {}

CheckpointError::CheckpointError(std::string path, const std::string& problem)
    : Error(fmt::format("{}: {}", path, problem)), path_(std::move(path)) {}

void throw_check_failure(const char* file, int line, const char* condition, const std::string& message) {
  throw CheckFailure(fmt::format("{}:{}: check failed: {}: {}", file, line, condition, message));
}

}  // namespace shardplan
