// What adaptors over Communicator derive from: before(operation) is called ahead of every call but abort,
// then the inner communicator does the work. Communicators split from it are wrapped the same way.
#pragma once

#include <memory>

#include "runtime/communicator.h"

namespace shardplan {

class InterposedCommunicator : public Communicator {
 public:
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  int world_rank() const override { return inner_->world_rank(); }
  std::chrono::milliseconds deadline() const override { return inner_->deadline(); }
  bool reads_peers() const override { return inner_->reads_peers(); }
  bool keeps_tree() const override { return inner_->keeps_tree(); }
  void barrier() override;
  void all_gather_bytes(std::span<const std::byte> mine, std::span<std::byte> all) override;
  void visit_records(std::span<const std::byte> mine, std::span<std::byte> scratch,
                     const RecordVisitor& visit) override;
  std::unique_ptr<SymmetricArena> make_arena(Device& device, const ArenaOptions& options) override;
  void reduce_scatter(const ReduceScatter& call, Stream& stream) override;
  void all_gather(const AllGather& call, Stream& stream) override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  void abort(const std::string& reason) override { inner_->abort(reason); }

 protected:
  explicit InterposedCommunicator(std::unique_ptr<Communicator> inner) : inner_(std::move(inner)) {}
  // May throw; then the call is not made.
  virtual void before(const char* operation) = 0;
  // The same adaptor, with the same state, around a communicator that was split from the inner one.
  virtual std::unique_ptr<Communicator> wrap(std::unique_ptr<Communicator> inner) const = 0;

 private:
  std::unique_ptr<Communicator> inner_;
};

}  // namespace shardplan
