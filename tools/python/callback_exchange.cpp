#include "tools/python/callback_exchange.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <string>
#include <utility>

namespace shardplan::python {
namespace {

namespace nb = nanobind;

using Bytes1d = nb::ndarray<std::uint8_t, nb::array_api, nb::ndim<1>, nb::device::cpu>;

nb::object message(int peer, const std::byte* data, std::size_t bytes) {
  auto* first = reinterpret_cast<std::uint8_t*>(const_cast<std::byte*>(data));  // DLPack knows no constant arrays
  return nb::make_tuple(peer, Bytes1d(first, {bytes}, nb::none()));
}

}  // namespace

CallbackExchange::CallbackExchange(int rank, int size, nb::object messages, std::chrono::milliseconds deadline)
    : rank_(rank), size_(size), messages_(std::move(messages)), deadline_(deadline) {}

CallbackExchange::~CallbackExchange() {
  const nb::gil_scoped_acquire acquired;
  messages_.reset();
}

void CallbackExchange::exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) {
  const nb::gil_scoped_acquire acquired;
  finish(start({sends, receives}));
}

void CallbackExchange::exchange_both(const Messages& first, const std::function<void()>& look, const Messages& second) {
  const nb::gil_scoped_acquire acquired;
  const nb::object first_work = start(first);
  const nb::object second_work = start(second);
  finish(first_work);
  look();
  finish(second_work);
}

nb::object CallbackExchange::start(const Messages& messages) {
  nb::list outgoing;
  nb::list incoming;
  for (const Outgoing& each : messages.sends) outgoing.append(message(each.peer, each.bytes.data(), each.bytes.size()));
  for (const Incoming& each : messages.receives) {
    incoming.append(message(each.peer, each.bytes.data(), each.bytes.size()));
  }
  return messages_.attr("start")(outgoing, incoming);
}

void CallbackExchange::finish(const nb::object& work) {
  const nb::object failure = messages_.attr("finish")(work);
  if (failure.is_none()) return;
  throw PeerFailure(nb::cast<int>(failure[0]), PeerFailure::Cause::other, nb::cast<std::string>(failure[1]));
}

}  // namespace shardplan::python
