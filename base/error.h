// The two families of exceptions.
//
// Recoverable errors derive from Error, are typed, and carry what a program needs to react: which file and key, how
// many bytes, which rank. A caller catches the ones it can do something about.
//
// Bugs are CheckFailure, thrown by SHARDPLAN_CHECK in every build type; nothing catches it but a top level.
//
// No library of this project calls exit or abort, reads the environment, or logs.
#pragma once

#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "base/bytes.h"

namespace shardplan {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A size or a count does not fit into 64 bits.
class ArithmeticOverflow : public Error {
 public:
  using Error::Error;
};

// What the user gave is wrong. `source` is the file (or the flag, or the preset); `key` is the path inside it
// ("zero_optimization.stage", a tensor's name); both can be empty. what() is "source: key: problem".
class ConfigError : public Error {
 public:
  ConfigError(std::string source, std::string key, std::string problem);
  const std::string& source() const { return source_; }
  const std::string& key() const { return key_; }
  const std::string& problem() const { return problem_; }

 private:
  std::string source_;
  std::string key_;
  std::string problem_;
};

class OutOfMemory : public Error {
 public:
  OutOfMemory(std::string tier, Bytes requested, Bytes available);
  const std::string& tier() const { return tier_; }
  Bytes requested() const { return requested_; }
  Bytes available() const { return available_; }

 private:
  std::string tier_;
  Bytes requested_;
  Bytes available_;
};

// A rank did not answer, or answered something else. `rank` is the one to look at, -1 if it is not known.
class CommunicationError : public Error {
 public:
  CommunicationError(int rank, std::string operation, std::chrono::milliseconds deadline, const std::string& problem);
  int rank() const { return rank_; }
  const std::string& operation() const { return operation_; }
  std::chrono::milliseconds deadline() const { return deadline_; }

 private:
  int rank_;
  std::string operation_;
  std::chrono::milliseconds deadline_;
};

// Reading or writing failed, at `offset` (said unless 0); `error_number` is errno, 0 where the file simply ended.
class IoError : public Error {
 public:
  IoError(std::string path, std::uint64_t offset, int error_number, const std::string& problem);
  const std::string& path() const { return path_; }
  std::uint64_t offset() const { return offset_; }
  int error_number() const { return error_number_; }

 private:
  std::string path_;
  std::uint64_t offset_;
  int error_number_;
};

// A checkpoint is not whole, not ours, or from a future version.
class CheckpointError : public Error {
 public:
  CheckpointError(std::string path, const std::string& problem);
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A bug in this project or in the program that uses it.
class CheckFailure : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] void throw_check_failure(const char* file, int line, const char* condition, const std::string& message);

}  // namespace shardplan

// Throws CheckFailure with file, line, condition and message unless the condition holds. Active in every build type;
// the message is only built when it fails.
#define SHARDPLAN_CHECK(condition, message)                                        \
  do {                                                                             \
    if (!(condition)) [[unlikely]]                                                 \
      ::shardplan::throw_check_failure(__FILE__, __LINE__, #condition, (message)); \
  } while (false)
