#include "tests/support/lazy_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "base/error.h"

namespace shardplan::test {
namespace {

LazyStream& lazy(Stream& stream) {
  return dynamic_cast<LazyStream&>(stream.innermost());
}

class LazyEvent final : public Event {
 public:
  bool reached() const override { return stream == nullptr || stream->has_run(position); }
  void wait() override {
    if (stream != nullptr) stream->run_until(position);
  }

  LazyStream* stream = nullptr;
  std::uint64_t position = 0;
};

}  // namespace

class LazyMemory final : public Memory {
 public:
  LazyMemory(std::byte* base, std::unique_ptr<Memory> owned, std::byte* bytes, const MemoryRequest& request,
             LazyDevice& device)
      : Memory(base + request.shift.count(), request), base_(base), owned_(std::move(owned)), device_(device) {
    device_.ranges_[data()] = {request.bytes.count() - request.shift.count(), bytes};
  }
  ~LazyMemory() override {
    device_.ranges_.erase(data());
    munmap(base_, length(bytes()));
  }
  void handed_out(std::uint64_t, Bytes, std::string_view) override {}
  void given_back(std::uint64_t, Bytes) override {}

  static std::size_t length(Bytes bytes) { return std::max<std::size_t>(bytes.count(), 1); }

 private:
  std::byte* base_;
  std::unique_ptr<Memory> owned_;
  LazyDevice& device_;
};

// Host memory that somebody else has.
class BorrowedMemory final : public Memory {
 public:
  BorrowedMemory(std::byte* data, const MemoryRequest& request) : Memory(data, request) {}
  void handed_out(std::uint64_t, Bytes, std::string_view) override {}
  void given_back(std::uint64_t, Bytes) override {}
};

std::unique_ptr<Memory> LazyDevice::allocate(const MemoryRequest& request) {
  if (request.tier != MemoryTier::device) {
    std::byte* const bytes = std::exchange(next_, nullptr);
    return bytes == nullptr ? cpu_.allocate(request) : std::make_unique<BorrowedMemory>(bytes, request);
  }
  std::unique_ptr<Memory> owned;
  std::byte* bytes = std::exchange(next_, nullptr);
  if (bytes == nullptr) {
    owned = cpu_.allocate(request);
    owned->handed_out(0, owned->capacity(), "all");
    bytes = owned->data();
  }
  void* mapped = mmap(nullptr, LazyMemory::length(request.bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  SHARDPLAN_CHECK(mapped != MAP_FAILED, "no addresses");
  return std::make_unique<LazyMemory>(static_cast<std::byte*>(mapped), std::move(owned), bytes, request, *this);
}

std::unique_ptr<Stream> LazyDevice::make_stream() {
  return std::make_unique<LazyStream>(*this);
}

std::unique_ptr<Event> LazyDevice::make_event() {
  return std::make_unique<LazyEvent>();
}

std::byte* LazyDevice::real(const std::byte* address) const {
  const auto after = ranges_.upper_bound(address);
  if (after != ranges_.begin()) {
    const auto& [first, range] = *std::prev(after);
    if (static_cast<std::uint64_t>(address - first) < range.first) return range.second + (address - first);
  }
  return const_cast<std::byte*>(address);
}

void LazyStream::put(std::function<void()> work) {
  works_.push_back(std::move(work));
  ++put_;
}

void LazyStream::run_until(std::uint64_t count) {
  while (done_ < count) {
    const std::function<void()> work = std::move(works_.front());
    works_.pop_front();
    work();
    ++done_;
  }
}

void LazyStream::copy(std::byte* to, const std::byte* from, Bytes bytes) {
  if (bytes == Bytes{}) return;
  put([=, this] { std::memcpy(device_.real(to), device_.real(from), bytes.count()); });
}

void LazyStream::zero(std::byte* at, Bytes bytes) {
  if (bytes == Bytes{}) return;
  put([=, this] { std::memset(device_.real(at), 0, bytes.count()); });
}

void LazyStream::record(Event& event) {
  auto& lazy_event = dynamic_cast<LazyEvent&>(event);
  lazy_event.stream = this;
  lazy_event.position = put_;
}

// As the event is now: recorded again later, it is another point.
void LazyStream::wait(Event& event) {
  const auto& lazy_event = dynamic_cast<LazyEvent&>(event);
  if (lazy_event.stream == nullptr) return;
  put([stream = lazy_event.stream, position = lazy_event.position] { stream->run_until(position); });
}

namespace {

class LazyKernels final : public Kernels {
 public:
  bool hold_values() const override { return true; }
  void cast(Stream& stream, const Elements& to, const ConstElements& from) const override {
    put(stream, "cast", touched_by_cast(to, from), [=](Stream& inline_stream, const LazyDevice& device) {
      host_kernels().cast(inline_stream, real(device, to), real(device, from));
    });
  }
  void accumulate(Stream& stream, const Elements& sum, const ConstElements& part) const override {
    put(stream, "accumulate", touched_by_accumulate(sum, part), [=](Stream& inline_stream, const LazyDevice& device) {
      host_kernels().accumulate(inline_stream, real(device, sum), real(device, part));
    });
  }
  void update(Stream& stream, const UpdateOptions& options, const UpdateArrays& a) const override {
    put(stream, "update", touched_by_update(a), [=](Stream& inline_stream, const LazyDevice& device) {
      host_kernels().update(inline_stream, options,
                            {.parameter = real(device, a.parameter),
                             .master = real(device, a.master),
                             .master_rest = real(device, a.master_rest),
                             .gradient = real(device, a.gradient),
                             .first_moment = real(device, a.first_moment),
                             .second_moment = real(device, a.second_moment),
                             .ema = real(device, a.ema)});
    });
  }
  double sum_of_squares(Stream& stream, const ConstElements& values) const override {
    double sum = 0;
    put(stream, "norm", touched_by_norm(values), [&](Stream& inline_stream, const LazyDevice& device) {
      sum = host_kernels().sum_of_squares(inline_stream, real(device, values));
    });
    stream.synchronize();
    return sum;
  }

 private:
  template <typename Work>
  static void put(Stream& stream, std::string_view name, Bytes touched, Work work) {
    stream.launching(name, touched);
    lazy(stream).put([work, &device = lazy(stream).device()] { work(*CpuDevice().make_stream(), device); });
  }
  static Elements real(const LazyDevice& device, const Elements& array) {
    return {array.dtype, device.real(array.data), array.elements};
  }
  static ConstElements real(const LazyDevice& device, const ConstElements& array) {
    return {array.dtype, device.real(array.data), array.elements};
  }
  template <typename T>
  static std::span<T> real(const LazyDevice& device, std::span<T> values) {
    return {reinterpret_cast<T*>(device.real(reinterpret_cast<const std::byte*>(values.data()))), values.size()};
  }
};

}  // namespace

const Kernels& lazy_kernels() {
  static const LazyKernels kernels;
  return kernels;
}

// An arena of the inner communicator, all of it handed out: what the device's addresses stand for.
struct RealArena {
  std::unique_ptr<SymmetricArena> arena;
  Lease whole;
};
// By the arena that is seen outside; shared by the family of a rank.
using RealArenas = std::map<const SymmetricArena*, RealArena>;

class LazyCommunicator final : public Communicator {
 public:
  // The communicator at the top has an inner one that others own.
  LazyCommunicator(Communicator& inner, LazyDevice& device, std::unique_ptr<Communicator> owned,
                   std::shared_ptr<RealArenas> arenas)
      : inner_(inner), device_(device), owned_(std::move(owned)), arenas_(std::move(arenas)) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  int world_rank() const override { return inner_.world_rank(); }
  std::chrono::milliseconds deadline() const override { return inner_.deadline(); }
  bool reads_peers() const override { return inner_.reads_peers(); }
  void barrier() override {
    finish();
    inner_.barrier();
  }
  void all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) override {
    finish();
    inner_.all_gather_bytes(mine, all);
  }
  // As NCCL's: scratch is the device's, if anybody's.
  void visit_records(std::span<const std::byte> mine, std::span<std::byte>, const RecordVisitor& visit) override {
    std::vector<std::byte> all(mine.size() * static_cast<std::size_t>(size()));
    Communicator::visit_records(mine, all, visit);
  }
  std::unique_ptr<SymmetricArena> make_arena(Device& device, const ArenaOptions& options) override;
  void reduce_scatter(const ReduceScatter& call, Stream& stream) override {
    put(stream, "reduce_scatter", [this, call](Stream& inline_stream) {
      ReduceScatter real = call;
      for (ArenaPlace* place : {&real.input, &real.output.place, &real.staging}) *place = real_place(*place);
      inner_.reduce_scatter(real, inline_stream);
    });
  }
  void all_gather(const AllGather& call, Stream& stream) override {
    put(stream, "all_gather", [this, call](Stream& inline_stream) {
      AllGather real = call;
      for (ArenaPlace* place : {&real.input, &real.output}) *place = real_place(*place);
      inner_.all_gather(real, inline_stream);
    });
  }
  std::unique_ptr<Communicator> split(int color, int key) override {
    finish();
    std::unique_ptr<Communicator> made = inner_.split(color, key);
    if (!made) return nullptr;
    Communicator& inner = *made;
    return std::make_unique<LazyCommunicator>(inner, device_, std::move(made), arenas_);
  }
  void abort(const std::string& reason) override { inner_.abort(reason); }

 private:
  template <typename Work>
  void put(Stream& stream, std::string_view name, Work work) {
    stream.launching(name, Bytes{});
    last_ = &lazy(stream);
    last_->put([work] { work(*CpuDevice().make_stream()); });
    last_position_ = last_->position();
  }
  // What hosts exchange comes after the collectives that were put before.
  void finish() {
    if (last_ != nullptr) last_->run_until(last_position_);
  }
  ArenaPlace real_place(const ArenaPlace& place) const {
    return {place.arena == nullptr ? nullptr : arenas_->at(place.arena).arena.get(), place.offset};
  }

  Communicator& inner_;
  LazyDevice& device_;
  std::unique_ptr<Communicator> owned_;
  std::shared_ptr<RealArenas> arenas_;
  LazyStream* last_ = nullptr;
  std::uint64_t last_position_ = 0;
};

std::unique_ptr<SymmetricArena> LazyCommunicator::make_arena(Device& device, const ArenaOptions& options) {
  finish();
  CpuDevice cpu;
  std::unique_ptr<SymmetricArena> real = inner_.make_arena(cpu, options);
  Lease whole = real->take(0, real->capacity(), "all");
  ArenaOptions own = options;
  own.rank = world_rank();
  device_.next_ = real->data();
  auto group = std::make_shared<ArenaGroup>(real->group().id(), std::vector<int>{world_rank()});
  group->join(world_rank(), std::make_unique<Arena>(device, own));
  auto seen = std::make_unique<SymmetricArena>(std::move(group), world_rank());
  arenas_->erase(seen.get());  // one that is gone, at the same address
  arenas_->emplace(seen.get(), RealArena{std::move(real), std::move(whole)});
  return seen;
}

std::unique_ptr<Communicator> make_lazy_communicator(Communicator& inner, LazyDevice& device) {
  return std::make_unique<LazyCommunicator>(inner, device, nullptr, std::make_shared<RealArenas>());
}

}  // namespace shardplan::test
