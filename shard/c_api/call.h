// What every function of the C interface does around its work: exceptions become statuses, structs come and go by the
// size that the caller knows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <exception>
#include <string>

#include "base/error.h"
#include "shard/c_api/shardplan.h"

namespace shardplan::c_api {

// A function of the caller's returned something else than 0.
class CallbackError : public std::exception {
 public:
  CallbackError(const char* callback, int result);
  const char* what() const noexcept override { return message_.c_str(); }
  int result() const { return result_; }

 private:
  std::string message_;
  int result_;
};

inline void require_success(const char* callback, int result) {
  if (result != 0) throw CallbackError(callback, result);
}

// Inside of a catch block: the status of the exception that is handled, told in `error` too unless it is null.
shardplan_status status_of_exception(shardplan_error* error) noexcept;

template <typename Body>
shardplan_status guarded(shardplan_error* error, const Body& body) noexcept {
  try {
    body();
    return SHARDPLAN_OK;
  } catch (...) {
    return status_of_exception(error);
  }
}

template <typename T>
T& required(T* pointer, const char* what) {
  SHARDPLAN_CHECK(pointer != nullptr, std::string(what) + " is NULL");
  return *pointer;
}

// The size of a struct in version 0.1. Stays as it is for a struct that grows.
template <typename T>
inline constexpr std::size_t kFirstSize = sizeof(T);

// A struct of the caller's; fields that it does not know are 0.
template <typename T>
T taken(const T* from, const char* what) {
  const std::size_t size = required(from, what).struct_size;
  SHARDPLAN_CHECK(size >= kFirstSize<T>, std::string(what) + ": struct_size is not sizeof the struct");
  T result{};
  std::memcpy(&result, from, std::min(size, sizeof result));
  return result;
}

// Fills in what the caller knows of.
template <typename T>
void give(T* to, T value, const char* what) {
  const std::size_t size = required(to, what).struct_size;
  SHARDPLAN_CHECK(size >= kFirstSize<T>, std::string(what) + ": struct_size is not sizeof the struct");
  value.struct_size = size;
  std::memcpy(to, &value, std::min(size, sizeof value));
}

}  // namespace shardplan::c_api
