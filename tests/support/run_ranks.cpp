#include "tests/support/run_ranks.h"

#include <mutex>
#include <thread>
#include <utility>

namespace shardplan::test {

std::vector<std::exception_ptr> outcomes_of_ranks(int ranks,
                                                  const std::function<void(std::unique_ptr<Communicator>)>& body,
                                                  const LocalOptions& options) {
  return outcomes_of_ranks(make_local_communicators(ranks, options), body);
}

std::vector<std::exception_ptr> outcomes_of_ranks(std::vector<std::unique_ptr<Communicator>> communicators,
                                                  const std::function<void(std::unique_ptr<Communicator>)>& body) {
  std::vector<std::exception_ptr> outcomes(communicators.size());
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < communicators.size(); ++rank) {
    threads.emplace_back([&outcome = outcomes[rank], &body, mine = std::move(communicators[rank])]() mutable {
      try {
        body(std::move(mine));
      } catch (...) {
        outcome = std::current_exception();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return outcomes;
}

void run_ranks(int ranks, const std::function<void(Communicator&)>& body, const LocalOptions& options) {
  std::mutex mutex;
  std::exception_ptr first;
  outcomes_of_ranks(
      ranks,
      [&](std::unique_ptr<Communicator> communicator) {
        try {
          body(*communicator);
        } catch (...) {
          const std::exception_ptr outcome = std::current_exception();
          {
            const std::lock_guard lock(mutex);
            if (!first) first = outcome;
          }
          communicator->abort(message_of(outcome));
        }
      },
      options);
  if (first) std::rethrow_exception(first);
}

std::string message_of(const std::exception_ptr& outcome) {
  if (!outcome) return {};
  try {
    std::rethrow_exception(outcome);
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an exception that is no std::exception";
  }
}

}  // namespace shardplan::test
