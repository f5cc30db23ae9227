#include "shard/c_api/call.h"

#include <fmt/format.h>

#include <new>
#include <string_view>

static_assert(SHARDPLAN_VERSION == SHARDPLAN_PROJECT_VERSION, "shardplan.h and CMakeLists.txt name different versions");

namespace shardplan::c_api {
namespace {

// At most so many bytes, cut at the end of a character.
void copy_text(std::string_view text, char (&to)[sizeof(shardplan_error::message)]) {
  std::size_t size = std::min(text.size(), sizeof to - 1);
  const auto continues = [&](std::size_t at) { return (static_cast<unsigned char>(text[at]) & 0xc0U) == 0x80U; };
  while (size < text.size() && size > 0 && continues(size)) --size;
  std::memcpy(to, text.data(), size);
  to[size] = '\0';
}

shardplan_status tell(shardplan_error* error, shardplan_error value, std::string_view message) {
  if (error != nullptr) {
    copy_text(message, value.message);
    *error = value;
  }
  return value.status;
}

shardplan_error of_status(shardplan_status status) {
  shardplan_error error{};
  error.status = status;
  error.rank = -1;
  return error;
}

// The planner names a setup's contradictions by memcalc's flags, which here are keys of the options.
std::string in_words_of_options(const ConfigError& error) {
  if (!error.source().starts_with("--")) return error.what();
  std::string key = error.source().substr(2);
  std::replace(key.begin(), key.end(), '-', '_');
  if (key == "gpus") key = "world_size";
  if (key == "zero") key = "zero_stage";
  return ConfigError("options", key, error.problem()).what();
}

}  // namespace

CallbackError::CallbackError(const char* callback, int result)
    : message_(fmt::format("{} returned {}", callback, result)), result_(result) {}

shardplan_status status_of_exception(shardplan_error* error) noexcept {
  try {
    throw;
  } catch (const ConfigError& e) {
    return tell(error, of_status(SHARDPLAN_CONFIG_ERROR), in_words_of_options(e));
  } catch (const ArithmeticOverflow& e) {
    return tell(error, of_status(SHARDPLAN_ARITHMETIC_OVERFLOW), e.what());
  } catch (const OutOfMemory& e) {
    shardplan_error value = of_status(SHARDPLAN_OUT_OF_MEMORY);
    value.requested_bytes = e.requested().count();
    value.available_bytes = e.available().count();
    return tell(error, value, e.what());
  } catch (const CommunicationError& e) {
    shardplan_error value = of_status(SHARDPLAN_COMMUNICATION_ERROR);
    value.rank = e.rank();
    return tell(error, value, e.what());
  } catch (const IoError& e) {
    shardplan_error value = of_status(SHARDPLAN_IO_ERROR);
    value.error_number = e.error_number();
    return tell(error, value, e.what());
  } catch (const CheckpointError& e) {
    return tell(error, of_status(SHARDPLAN_CHECKPOINT_ERROR), e.what());
  } catch (const CallbackError& e) {
    shardplan_error value = of_status(SHARDPLAN_CALLBACK_ERROR);
    value.callback_result = e.result();
    return tell(error, value, e.what());
  } catch (const std::bad_alloc&) {
    return tell(error, of_status(SHARDPLAN_OUT_OF_MEMORY), "the heap has no more memory");
  } catch (const std::exception& e) {
    return tell(error, of_status(SHARDPLAN_BUG), e.what());
  } catch (...) {
    return tell(error, of_status(SHARDPLAN_BUG), "an exception that is no std::exception");
  }
}

}  // namespace shardplan::c_api

extern "C" {

int shardplan_version(void) {
  return SHARDPLAN_VERSION;
}

const char* shardplan_status_name(shardplan_status status) {
  switch (status) {
    case SHARDPLAN_OK:
      return "success";
    case SHARDPLAN_CONFIG_ERROR:
      return "config error";
    case SHARDPLAN_ARITHMETIC_OVERFLOW:
      return "arithmetic overflow";
    case SHARDPLAN_OUT_OF_MEMORY:
      return "out of memory";
    case SHARDPLAN_COMMUNICATION_ERROR:
      return "communication error";
    case SHARDPLAN_IO_ERROR:
      return "I/O error";
    case SHARDPLAN_CHECKPOINT_ERROR:
      return "checkpoint error";
    case SHARDPLAN_CALLBACK_ERROR:
      return "callback error";
    case SHARDPLAN_BUG:
      return "bug";
    default:
      return "unknown status";
  }
}

}  // extern "C"
