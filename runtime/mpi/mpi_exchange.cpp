#include "runtime/mpi/mpi_exchange.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/staged/staged_communicator.h"

namespace shardplan {
namespace {

using Clock = std::chrono::steady_clock;
using Milliseconds = std::chrono::milliseconds;

// Receives take any tag: a farewell that comes in the place of data is seen at once.
constexpr int kData = 1;
constexpr int kGone = 2;    // empty: this rank has left
constexpr int kGaveUp = 3;  // empty; kWords follows
constexpr int kWords = 4;   // of kWordsBytes

constexpr std::size_t kWordsBytes = 1024;  // small enough to be on its way when MPI_Isend returns

constexpr std::chrono::microseconds kSpin{50};
constexpr Milliseconds kPatience{10};  // then a rank that waits for small messages only looks now and then
constexpr std::chrono::microseconds kNap{100};
constexpr std::size_t kSmallBytes = std::size_t{64} * 1024;
constexpr int kLooksPerProbe = 64;
constexpr int kLooksOfTheLast = 8;
// A peer may have given up a moment ago, and know better who is to blame than a rank whose wait has just run out.
constexpr Milliseconds kLastLook{50};
constexpr Milliseconds kFarewell{200};  // for the last messages to get out, and in

std::string text_of(int code) {
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(code, text.data(), &length);
  return fmt::format("MPI: {}", std::string_view(text.data(), static_cast<std::size_t>(length)));
}

void require(int code, int peer) {
  if (code != MPI_SUCCESS) throw PeerFailure(peer, PeerFailure::Cause::other, text_of(code));
}

class MpiExchange final : public Exchange {
 public:
  MpiExchange(MPI_Comm communicator, const MpiOptions& options);
  ~MpiExchange() override;
  MpiExchange(const MpiExchange&) = delete;
  MpiExchange& operator=(const MpiExchange&) = delete;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  Milliseconds deadline() const override { return deadline_; }
  void exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) override;
  void give_up(std::string_view words) noexcept override;

 private:
  struct Message {
    int peer;
    bool incoming;
    int bytes;
  };

  void start(std::span<const Outgoing> sends, std::span<const Incoming> receives);
  bool some_completed();
  void check_received(const Message& message, const MPI_Status& status);
  void look_for_farewells();
  [[noreturn]] void throw_last_words(int peer);
  void take_last_look();
  [[noreturn]] void throw_late();
  bool calls_are_allowed_here() const;
  void announce();
  static bool finish(std::vector<MPI_Request>& requests);
  bool peers_said_farewell() const;

  const MPI_Comm communicator_;
  const Milliseconds deadline_;
  const bool yield_;
  int rank_ = 0;
  int size_ = 0;
  int threads_ = MPI_THREAD_SINGLE;

  // Of the exchange under way. A completed request is MPI_REQUEST_NULL.
  std::vector<MPI_Request> requests_;
  std::vector<Message> messages_;
  std::vector<int> completed_;
  std::vector<MPI_Status> statuses_;
  std::size_t left_ = 0;

  std::atomic<bool> gave_up_{false};
  std::mutex mutex_;  // of what follows
  std::unique_ptr<std::array<char, kWordsBytes>> words_ = std::make_unique<std::array<char, kWordsBytes>>();
  bool announced_ = false;
  std::vector<MPI_Request> announcements_;
};

MpiExchange::MpiExchange(MPI_Comm communicator, const MpiOptions& options)
    : communicator_(communicator), deadline_(options.deadline), yield_(options.yield.value_or(false)) {
  MPI_Comm_rank(communicator_, &rank_);
  MPI_Comm_size(communicator_, &size_);
  MPI_Query_thread(&threads_);
  const auto most = 2 * static_cast<std::size_t>(size_);
  requests_.reserve(most);
  messages_.reserve(most);
  completed_.resize(most);
  statuses_.resize(most);
  announcements_.reserve(most);
}

MpiExchange::~MpiExchange() {
  int finalized = 0;
  MPI_Finalized(&finalized);
  if (finalized != 0) return;
  announce();
  for (std::size_t i = 0; i < requests_.size(); ++i) {
    if (requests_[i] != MPI_REQUEST_NULL && messages_[i].incoming) MPI_Cancel(&requests_[i]);
  }
  finish(requests_);
  if (!finish(announcements_)) words_.release();  // NOLINT(bugprone-unused-return-value): MPI goes on reading it
  if (gave_up_.load() || !peers_said_farewell()) return;
  MPI_Comm communicator = communicator_;
  MPI_Comm_free(&communicator);
}

// Ranks usually leave together. Where they do not the communicator stays until MPI_Finalize: its number, used again, would
// let a late farewell into another one's messages.
bool MpiExchange::peers_said_farewell() const {
  const auto end = Clock::now() + kFarewell;
  for (int missing = size_ - 1; missing > 0;) {
    int found = 0;
    MPI_Status status;
    if (MPI_Iprobe(MPI_ANY_SOURCE, kGone, communicator_, &found, &status) != MPI_SUCCESS) return false;
    if (found != 0) {
      if (MPI_Recv(nullptr, 0, MPI_BYTE, status.MPI_SOURCE, kGone, communicator_, MPI_STATUS_IGNORE) != MPI_SUCCESS) {
        return false;
      }
      --missing;
    } else if (Clock::now() > end) {
      return false;
    } else {
      std::this_thread::yield();
    }
  }
  return true;
}

void MpiExchange::exchange(std::span<const Outgoing> sends, std::span<const Incoming> receives) {
  start(sends, receives);
  std::size_t awaited = 0;
  for (const Incoming& incoming : receives) awaited += incoming.bytes.size();
  const auto begin = Clock::now();
  for (int look = 1; left_ > 0; ++look) {
    if (some_completed()) continue;
    const auto waited = Clock::now() - begin;
    if (look % kLooksPerProbe == 0 || waited > kPatience) look_for_farewells();
    if (waited >= deadline_) {
      take_last_look();
      if (left_ > 0) throw_late();
    }
    if (waited > kPatience && awaited < kSmallBytes) {
      std::this_thread::sleep_for(kNap);
    } else if (yield_ || waited > kSpin) {
      std::this_thread::yield();
    }
  }
  // A rank that was late finds all messages there, and that the others have given up: some looks behind them.
  const int looks = Clock::now() - begin < kSpin ? kLooksOfTheLast : 1;
  for (int look = 0; look < looks; ++look) look_for_farewells();
}

void MpiExchange::start(std::span<const Outgoing> sends, std::span<const Incoming> receives) {
  requests_.clear();
  messages_.clear();
  left_ = 0;
  const auto next = [&](int peer, bool incoming, std::size_t bytes) {
    messages_.push_back({peer, incoming, static_cast<int>(bytes)});
    requests_.push_back(MPI_REQUEST_NULL);
    ++left_;
    return &requests_.back();
  };
  for (const Incoming& message : receives) {
    MPI_Request* request = next(message.peer, true, message.bytes.size());
    require(MPI_Irecv(message.bytes.data(), messages_.back().bytes, MPI_BYTE, message.peer, MPI_ANY_TAG, communicator_,
                      request),
            message.peer);
  }
  for (const Outgoing& message : sends) {
    MPI_Request* request = next(message.peer, false, message.bytes.size());
    require(
        MPI_Isend(message.bytes.data(), messages_.back().bytes, MPI_BYTE, message.peer, kData, communicator_, request),
        message.peer);
  }
}

bool MpiExchange::some_completed() {
  int count = 0;
  const int code =
      MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &count, completed_.data(), statuses_.data());
  if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS) require(code, -1);
  if (count == MPI_UNDEFINED || count == 0) return false;
  left_ -= static_cast<std::size_t>(count);
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
    const Message& message = messages_[static_cast<std::size_t>(completed_[i])];
    if (code == MPI_ERR_IN_STATUS) require(statuses_[i].MPI_ERROR, message.peer);
    if (message.incoming) check_received(message, statuses_[i]);
  }
  return true;
}

void MpiExchange::check_received(const Message& message, const MPI_Status& status) {
  if (status.MPI_TAG == kGone) throw PeerFailure(message.peer, PeerFailure::Cause::other, PeerFailure::kGone);
  if (status.MPI_TAG == kGaveUp) throw_last_words(message.peer);
  int bytes = 0;
  MPI_Get_count(&status, MPI_BYTE, &bytes);
  if (bytes == message.bytes) return;
  throw PeerFailure(message.peer, PeerFailure::Cause::other,
                    fmt::format("sent {} bytes where {} were expected", bytes, message.bytes));
}

// From whomever: this rank may wait for one that waits for one that gave up.
void MpiExchange::look_for_farewells() {
  if (gave_up_.load()) {
    announce();
    throw PeerFailure(rank_, PeerFailure::Cause::gave_up, words_->data());
  }
  int found = 0;
  MPI_Status status;
  require(MPI_Iprobe(MPI_ANY_SOURCE, kGaveUp, communicator_, &found, &status), -1);
  if (found == 0) return;
  require(MPI_Recv(nullptr, 0, MPI_BYTE, status.MPI_SOURCE, kGaveUp, communicator_, MPI_STATUS_IGNORE),
          status.MPI_SOURCE);
  throw_last_words(status.MPI_SOURCE);
}

void MpiExchange::throw_last_words(int peer) {
  std::array<char, kWordsBytes> words{};
  const auto end = Clock::now() + kFarewell;
  int found = 0;
  while (found == 0 && Clock::now() < end) {
    require(MPI_Iprobe(peer, kWords, communicator_, &found, MPI_STATUS_IGNORE), peer);
  }
  if (found != 0) {
    require(
        MPI_Recv(words.data(), static_cast<int>(kWordsBytes), MPI_BYTE, peer, kWords, communicator_, MPI_STATUS_IGNORE),
        peer);
  }
  words.back() = '\0';
  throw PeerFailure(peer, PeerFailure::Cause::gave_up, words.data());
}

void MpiExchange::take_last_look() {
  const auto end = Clock::now() + kLastLook;
  while (left_ > 0 && Clock::now() < end) {
    some_completed();
    look_for_farewells();
    std::this_thread::yield();
  }
}

// Names the lowest rank from which something is awaited; else the lowest that takes nothing.
void MpiExchange::throw_late() {
  int late = size_;
  for (const bool incoming : {true, false}) {
    for (std::size_t i = 0; i < requests_.size() && (incoming || late == size_); ++i) {
      if (requests_[i] == MPI_REQUEST_NULL || messages_[i].incoming != incoming) continue;
      late = std::min(late, messages_[i].peer);
    }
  }
  throw PeerFailure(late, PeerFailure::Cause::other, PeerFailure::kLate);
}

void MpiExchange::give_up(std::string_view words) noexcept {
  {
    const std::lock_guard lock(mutex_);
    if (gave_up_.load()) return;
    words_->fill('\0');
    std::copy_n(words.begin(), std::min(words.size(), kWordsBytes - 1), words_->begin());
    gave_up_.store(true);
  }
  if (calls_are_allowed_here()) announce();
}

bool MpiExchange::calls_are_allowed_here() const {
  if (threads_ == MPI_THREAD_MULTIPLE) return true;
  if (threads_ == MPI_THREAD_SERIALIZED) return false;  // the rank's own thread may be any, and in a call
  int main_thread = 0;
  return MPI_Is_thread_main(&main_thread) == MPI_SUCCESS && main_thread != 0;
}

// To every peer, once: gone, or why this rank gives up. What MPI refuses here the peers find out by themselves.
void MpiExchange::announce() {
  const std::lock_guard lock(mutex_);
  if (std::exchange(announced_, true)) return;
  const auto next = [&] { return &announcements_.emplace_back(MPI_REQUEST_NULL); };
  for (int peer = 0; peer < size_; ++peer) {
    if (peer == rank_) continue;
    MPI_Isend(nullptr, 0, MPI_BYTE, peer, gave_up_.load() ? kGaveUp : kGone, communicator_, next());
    if (!gave_up_.load()) continue;
    MPI_Isend(words_->data(), static_cast<int>(kWordsBytes), MPI_BYTE, peer, kWords, communicator_, next());
  }
}

// Whether all have ended, as they nearly always do at once; what has not is left to MPI.
bool MpiExchange::finish(std::vector<MPI_Request>& requests) {
  const auto end = Clock::now() + kFarewell;
  int done = 0;
  while (done == 0 && Clock::now() < end) {
    const int code = MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE);
    if (code != MPI_SUCCESS) break;
  }
  for (MPI_Request& request : requests) {
    if (request != MPI_REQUEST_NULL) MPI_Request_free(&request);
  }
  return done != 0;
}

// How many ranks of the communicator share this node, against the processors that this one may use.
bool is_crowded(MPI_Comm communicator) {
  MPI_Comm node = MPI_COMM_NULL;
  require(MPI_Comm_split_type(communicator, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node), -1);
  int ranks = 0;
  MPI_Comm_size(node, &ranks);
  MPI_Comm_free(&node);
  return static_cast<unsigned>(ranks) > std::thread::hardware_concurrency();
}

}  // namespace

std::unique_ptr<Exchange> make_mpi_exchange(MPI_Comm parent, const MpiOptions& options) {
  const auto fail = [&](const std::string& problem) {
    throw CommunicationError(-1, "make_mpi_exchange", options.deadline, problem);
  };
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized == 0) fail("MPI is not initialized: MPI_Init is the program's to call");
  MPI_Comm own = MPI_COMM_NULL;
  if (const int code = MPI_Comm_dup(parent, &own); code != MPI_SUCCESS) fail(text_of(code));
  MPI_Comm_set_errhandler(own, MPI_ERRORS_RETURN);
  MpiOptions resolved = options;
  if (!resolved.yield) resolved.yield = is_crowded(own);
  return std::make_unique<MpiExchange>(own, resolved);
}

std::unique_ptr<Communicator> make_mpi_communicator(const MpiOptions& options) {
  return make_staged_communicator(make_mpi_exchange(MPI_COMM_WORLD, options));
}

}  // namespace shardplan
