// Use the cluster from C++ by nothing but Thrift. See ../README.md.
//
// usage: example PREFIX HOST:PORT...

#include <thrift/protocol/TBinaryProtocol.h>
#include <thrift/transport/TBufferTransports.h>
#include <thrift/transport/TSocket.h>

#include <chrono>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "KeyValue.h"

using apache::thrift::TApplicationException;
using apache::thrift::TException;
using apache::thrift::protocol::TBinaryProtocol;
using apache::thrift::transport::TFramedTransport;
using apache::thrift::transport::TSocket;
using std::string;
using Clock = std::chrono::steady_clock;

const int kPatienceMs = 2000;                       // for one call at one node
const auto kDeadline = std::chrono::seconds(30);    // for one call at all nodes together

// Calls one node until it fails, then the next.
class Cluster {
 public:
  explicit Cluster(std::vector<string> nodes) : nodes_(std::move(nodes)) {
    call([this](KeyValueClient& client) { client.open_session(session_); });
  }

  const string& node() const { return nodes_[node_]; }

  // Do it at this node, or else at another.
  void call(const std::function<void(KeyValueClient&)>& attempt) {
    const auto deadline = Clock::now() + kDeadline;
    for (;;) {
      try {
        connect();
        attempt(*client_);
        return;
      } catch (const NotDone& error) {
        if (error.permanent || Clock::now() > deadline) throw;
      } catch (const TApplicationException&) {
        throw;
      } catch (const TException&) {  // Unknown, or something about the connection
        if (Clock::now() > deadline) throw;
      }
      client_.reset();
      node_ = (node_ + 1) % nodes_.size();
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }

  // The same for a write: all attempts carry one number.
  Result write(const std::function<void(KeyValueClient&, Result&, const RequestId&)>& attempt) {
    RequestId request;
    request.session = session_;
    request.sequence = request.first_incomplete = ++sequence_;
    Result result;
    call([&](KeyValueClient& client) { attempt(client, result, request); });
    return result;
  }

  Outcome::type put(const string& key, const string& value) {
    return write([&](KeyValueClient& client, Result& result, const RequestId& request) {
             client.put(result, key, value, request);
           }).outcome;
  }

  Result get(const string& key) {
    Result result;
    call([&](KeyValueClient& client) { client.get(result, key, ReadMode::LINEARIZABLE); });
    return result;
  }

 private:
  void connect() {
    if (client_) return;
    const auto colon = node().rfind(':');
    auto socket = std::make_shared<TSocket>(node().substr(0, colon), std::stoi(node().substr(colon + 1)));
    socket->setConnTimeout(kPatienceMs);
    socket->setRecvTimeout(kPatienceMs);
    socket->setSendTimeout(kPatienceMs);
    auto transport = std::make_shared<TFramedTransport>(socket);
    transport->open();
    client_ = std::make_unique<KeyValueClient>(std::make_shared<TBinaryProtocol>(transport));
  }

  std::vector<string> nodes_;
  size_t node_ = 0;
  std::unique_ptr<KeyValueClient> client_;
  Session session_;
  int64_t sequence_ = 0;
};

void check(const string& name, bool holds) {
  if (!holds) {
    std::cerr << name << ": FAILED" << std::endl;
    std::exit(1);
  }
  std::cout << name << ": ok" << std::endl;
}

Command command(Verb::type verb, const string& key) {
  Command made;
  made.verb = verb;
  made.__set_key(key);
  return made;
}

void run(const string& prefix, const std::vector<string>& nodes) {
  Cluster cluster(nodes);

  check("put", cluster.put(prefix + "key", "value") == Outcome::OK);
  check("get", cluster.get(prefix + "key").value == "value");
  const string text = u8"\U0001f994 Z\u00fcrich \u6f22\u5b57 \U00010348";
  check("unicode", cluster.put(prefix + text, text) == Outcome::OK && cluster.get(prefix + text).value == text);
  const bool empty = cluster.put(prefix + "empty", "") == Outcome::OK;
  const Result nothing = cluster.get(prefix + "empty");
  check("empty value", empty && nothing.outcome == Outcome::OK && nothing.value.empty());
  check("absent", cluster.get(prefix + "absent").outcome == Outcome::NOT_FOUND);
  string largest;  // 524,288 bytes of UTF-8
  for (int i = 0; i < 131072; i++) largest += u8"\U0001f994";
  const bool stored = cluster.put(prefix + "largest", largest) == Outcome::OK;
  check("largest value", stored && cluster.get(prefix + "largest").value == largest);
  bool refused = false;
  try {
    cluster.put(prefix + "larger", largest + "x");
  } catch (const NotDone& error) {
    refused = error.permanent;
  }
  check("one byte more", refused);

  const auto swap = [&](const string& expected, const string& value) {
    return cluster.write([&](KeyValueClient& client, Result& result, const RequestId& request) {
      client.compare_and_set(result, prefix + "key", expected, value, request);
    });
  };
  const Result mismatch = swap("something else", "new");
  check("compare", mismatch.outcome == Outcome::MISMATCH && mismatch.value == "value");
  check("set", swap("value", "new").outcome == Outcome::OK && cluster.get(prefix + "key").value == "new");

  const auto add = [&](int64_t delta) {
    return cluster
        .write([&](KeyValueClient& client, Result& result, const RequestId& request) {
          client.increment(result, prefix + "n", delta, request);
        })
        .value;
  };
  check("increment", add(5) == "5" && add(-7) == "-2");
  const string key = prefix + "batch";
  std::vector<Command> commands = {command(Verb::PUT, key), command(Verb::INCREMENT, key),
                                   command(Verb::GET, key), command(Verb::DELETE, key),
                                   command(Verb::GET, key)};
  commands[0].__set_value("1");
  commands[1].__set_delta(int64_t{1} << 40);
  std::vector<Result> results;
  cluster.call([&](KeyValueClient& client) { client.execute(results, commands); });
  std::vector<Outcome::type> outcomes;
  for (const Result& result : results) outcomes.push_back(result.outcome);
  check("batch", outcomes == std::vector<Outcome::type>{Outcome::OK, Outcome::OK, Outcome::OK, Outcome::OK,
                                                        Outcome::NOT_FOUND});
  check("batch value", results[2].value == "1099511627777");

  std::cout << "waiting: end " << cluster.node() << ", then press Enter" << std::endl;
  string line;
  std::getline(std::cin, line);
  check("failover", add(10) == "8" && cluster.get(prefix + "n").value == "8");
}

int main(int count, char** words) {
  if (count < 3) {
    std::cerr << "usage: example PREFIX HOST:PORT..." << std::endl;
    return 2;
  }
  try {
    run(words[1], std::vector<string>(words + 2, words + count));
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
  return 0;
}
