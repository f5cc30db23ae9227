#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "base/error.h"
#include "runtime/communicator.h"
#include "runtime/local_communicator.h"
#include "runtime/shared/shared_communicator.h"
#include "runtime/staged/staged_communicator.h"
#include "tools/python/bindings.h"
#include "tools/python/callback_exchange.h"

namespace shardplan::python {
namespace {

std::chrono::milliseconds milliseconds(double seconds) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::duration<double>(seconds));
}

std::vector<std::unique_ptr<Communicator>> local_communicators(int ranks, double deadline_seconds) {
  LocalOptions options;
  options.deadline = milliseconds(deadline_seconds);
  return make_local_communicators(ranks, options);
}

// `exchange` takes this rank's bytes and returns those of all ranks, in rank order.
std::unique_ptr<Communicator> shared_communicator(int rank, int size, const nb::callable& exchange,
                                                  double deadline_seconds) {
  const auto through_python = [&](std::span<const std::byte> mine, std::span<std::byte> all) {
    const nb::gil_scoped_acquire acquired;
    const auto records = nb::cast<nb::bytes>(exchange(nb::bytes(mine.data(), mine.size())));
    SHARDPLAN_CHECK(records.size() == all.size(), "the exchange has not returned one record per rank");
    std::memcpy(all.data(), records.data(), all.size());
  };
  const nb::gil_scoped_release released;
  return make_shared_communicator(rank, size, through_python, {.deadline = milliseconds(deadline_seconds)});
}

std::unique_ptr<Communicator> staged_communicator(int rank, int size, const nb::object& messages,
                                                  double deadline_seconds) {
  auto exchange = std::make_unique<CallbackExchange>(rank, size, messages, milliseconds(deadline_seconds));
  const nb::gil_scoped_release released;
  return make_staged_communicator(std::move(exchange));
}

}  // namespace

void bind_communicators(nb::module_& module) {
  using Released = nb::call_guard<nb::gil_scoped_release>;
  nb::class_<Communicator>(module, "Communicator")
      .def_prop_ro("rank", &Communicator::rank)
      .def_prop_ro("size", &Communicator::size)
      .def_prop_ro("reads_peers", &Communicator::reads_peers)
      .def("barrier", &Communicator::barrier, Released())
      .def("abort", &Communicator::abort, nb::arg("reason"), Released());
  module.def("local_communicators", local_communicators, nb::arg("ranks"), nb::arg("deadline_seconds"));
  module.def("shared_communicator", shared_communicator, nb::arg("rank"), nb::arg("size"), nb::arg("exchange"),
             nb::arg("deadline_seconds"));
  module.def("staged_communicator", staged_communicator, nb::arg("rank"), nb::arg("size"), nb::arg("messages"),
             nb::arg("deadline_seconds"));
}

}  // namespace shardplan::python
