#include "planner/cost/collective.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "base/error.h"

namespace shardplan {
namespace {

// What a tree reaches of a ring's rate (NCCL, src/graph/tuning.cc, "Various model refinements").
constexpr double kTreeRate = 0.9;

double as_double(std::uint64_t count) {
  return static_cast<double>(count);
}

// Rounds in which what is known doubles until all `ranks` know it.
double doublings(std::uint64_t ranks) {
  return as_double(static_cast<std::uint64_t>(std::bit_width(ranks - 1)));
}

// One collective, priced each way. r ranks on each of m nodes; N = r m.
class Pricing {
 public:
  Pricing(CollectiveKind kind, Bytes shard, const Group& group, const Cluster& cluster, const Contention& contention)
      : kind_(kind),
        shard_(shard),
        r_(group.ranks_per_node),
        m_(group.nodes),
        n_(checked_multiply(r_, m_)),
        cluster_(cluster),
        node_rate_(cluster.node.rate() / contention.node),
        network_rate_(cluster.network.rate() / contention.network) {}

  CollectiveCost price(Algorithm algorithm) const {
    const bool direct = kind_ == CollectiveKind::all_to_all;
    if (direct != (algorithm == Algorithm::direct)) {
      throw ConfigError("", "algorithm", fmt::format("{} has no algorithm '{}'", name(kind_), name(algorithm)));
    }
    switch (algorithm) {
      case Algorithm::ring:
        return ring();
      case Algorithm::tree:
        return kind_ == CollectiveKind::all_reduce ? double_tree() : in_two_levels(Algorithm::tree);
      case Algorithm::hierarchical:
        return in_two_levels(Algorithm::hierarchical);
      case Algorithm::direct:
        return everyone_to_everyone();
      case Algorithm::fastest:
        break;
    }
    SHARDPLAN_CHECK(false, "an unknown algorithm");
    return {};
  }

 private:
  // An all_reduce is a reduce_scatter and an all_gather.
  std::uint64_t passes() const { return kind_ == CollectiveKind::all_reduce ? 2 : 1; }
  double shards(std::uint64_t count) const { return as_double(count) * as_double(shard_.count()); }

  CollectiveCost cost(Algorithm algorithm, double node_steps, double network_steps, double seconds_of_bytes,
                      LinkBytes sent) const {
    return {cluster_.collective_seconds + node_steps * cluster_.node.latency_seconds +
                network_steps * cluster_.network.latency_seconds + seconds_of_bytes,
            algorithm, sent, seconds_of_bytes};
  }

  // Of what crosses a node's edge once: over all of its adapters, each of a ring of its own.
  double slowest_rate() const {
    if (m_ == 1) return node_rate_;
    const double out = as_double(r_) * network_rate_;
    return r_ == 1 ? out : std::min(node_rate_, out);
  }

  CollectiveCost ring() const {
    const std::uint64_t over_one_edge = checked_multiply(passes(), n_ - 1);
    const std::uint64_t network_edges = m_ > 1 ? m_ : 0;
    const std::uint64_t network_steps = passes() * (m_ - 1);
    return cost(Algorithm::ring, as_double(over_one_edge - network_steps), as_double(network_steps),
                shards(over_one_edge) / slowest_rate(),
                {shard_ * checked_multiply(n_ - network_edges, over_one_edge),
                 shard_ * checked_multiply(network_edges, over_one_edge)});
  }

  CollectiveCost double_tree() const {
    const std::uint64_t over_one_edge = checked_multiply(2, n_);
    return cost(Algorithm::tree, 2 * as_double(r_ - 1), 2 * doublings(m_),
                shards(over_one_edge) / (kTreeRate * slowest_rate()),
                {shard_ * checked_multiply(n_ - m_, over_one_edge), shard_ * checked_multiply(m_ - 1, over_one_edge)});
  }

  // Equal places of all nodes exchange among themselves, and the ranks of a node among themselves.
  CollectiveCost in_two_levels(Algorithm algorithm) const {
    const bool doubling = algorithm == Algorithm::tree;
    const double p = as_double(passes());
    const std::uint64_t across = passes() * (m_ - 1);
    const std::uint64_t within = checked_multiply(passes() * (r_ - 1), m_);
    const double node_seconds = within == 0 ? 0 : shards(within) / node_rate_;
    const double network_seconds = across == 0 ? 0 : shards(across) / network_rate_;
    return cost(algorithm, p * (doubling ? doublings(r_) : as_double(r_ - 1)),
                p * (doubling ? doublings(m_) : as_double(m_ - 1)), node_seconds + network_seconds,
                {shard_ * checked_multiply(n_, within), shard_ * checked_multiply(n_, across)});
  }

  CollectiveCost everyone_to_everyone() const {
    const std::uint64_t within = r_ - 1;
    const std::uint64_t across = n_ - r_;
    const double node_seconds = within == 0 ? 0 : shards(within) / node_rate_;
    const double network_seconds = across == 0 ? 0 : shards(across) / network_rate_;
    return cost(Algorithm::direct, as_double(within), as_double(across), std::max(node_seconds, network_seconds),
                {shard_ * checked_multiply(n_, within), shard_ * checked_multiply(n_, across)});
  }

  CollectiveKind kind_;
  Bytes shard_;
  std::uint64_t r_;
  std::uint64_t m_;
  std::uint64_t n_;
  const Cluster& cluster_;
  double node_rate_;
  double network_rate_;
};

}  // namespace

std::string_view name(CollectiveKind kind) {
  switch (kind) {
    case CollectiveKind::all_gather:
      return "all_gather";
    case CollectiveKind::reduce_scatter:
      return "reduce_scatter";
    case CollectiveKind::all_reduce:
      return "all_reduce";
    case CollectiveKind::all_to_all:
      return "all_to_all";
  }
  SHARDPLAN_CHECK(false, "an unknown kind of collective");
  return {};
}

std::string_view name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::fastest:
      return "fastest";
    case Algorithm::ring:
      return "ring";
    case Algorithm::tree:
      return "tree";
    case Algorithm::hierarchical:
      return "hierarchical";
    case Algorithm::direct:
      return "direct";
  }
  SHARDPLAN_CHECK(false, "an unknown algorithm");
  return {};
}

Group group_of(std::uint64_t ranks, std::uint64_t stride, std::uint64_t gpus_per_node) {
  SHARDPLAN_CHECK(ranks > 0 && stride > 0 && gpus_per_node > 0, "a group has ranks, and nodes have GPUs");
  const std::uint64_t most_per_node = std::max<std::uint64_t>(gpus_per_node / stride, 1);
  const std::uint64_t nodes = (ranks - 1) / most_per_node + 1;
  if (ranks % nodes == 0) return {ranks / nodes, nodes};
  throw ConfigError("--gpus-per-node", "",
                    fmt::format("nodes of {} GPUs would hold unequal parts of a group of {} ranks{}", gpus_per_node,
                                ranks, stride == 1 ? std::string() : fmt::format(", {} apart", stride)));
}

LinkBytes& LinkBytes::operator+=(const LinkBytes& other) {
  node += other.node;
  network += other.network;
  return *this;
}

CollectiveCost cost_of(CollectiveKind kind, Bytes shard, const Group& group, const Cluster& cluster,
                       Algorithm algorithm, const Contention& contention) {
  SHARDPLAN_CHECK(group.ranks() > 0, "a group has ranks");
  SHARDPLAN_CHECK(contention.node > 0 && contention.network > 0, "a collective uses the links");
  if (group.ranks() == 1) return CollectiveCost{};
  const Pricing pricing(kind, shard, group, cluster, contention);
  if (algorithm != Algorithm::fastest) return pricing.price(algorithm);
  if (kind == CollectiveKind::all_to_all) return pricing.price(Algorithm::direct);
  CollectiveCost best = pricing.price(Algorithm::ring);
  for (const Algorithm candidate : {Algorithm::tree, Algorithm::hierarchical}) {
    const CollectiveCost cost = pricing.price(candidate);
    if (cost.seconds < best.seconds) best = cost;
  }
  return best;
}

}  // namespace shardplan
