#include "tests/support/outcome.h"

#include "base/error.h"

namespace shardplan::test {

Outcome outcome_of(const std::exception_ptr& exception) {
  if (!exception) return {};
  try {
    std::rethrow_exception(exception);
  } catch (const CommunicationError& error) {
    return {Outcome::Kind::communication_error, error.rank(), error.operation(), error.what()};
  } catch (const OutOfMemory& error) {
    return {Outcome::Kind::out_of_memory, -1, {}, error.what()};
  } catch (const CheckFailure& error) {
    return {Outcome::Kind::check_failure, -1, {}, error.what()};
  } catch (const std::exception& error) {
    return {Outcome::Kind::other_error, -1, {}, error.what()};
  }
}

}  // namespace shardplan::test
