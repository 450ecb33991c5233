// Use the cluster from Node.js by nothing but Thrift. See ../README.md.
//
// usage: node example.js PREFIX HOST:PORT...
"use strict";

const readline = require("readline");
const thrift = require("thrift");
const Int64 = require("node-int64");
const KeyValue = require("./gen-nodejs/KeyValue");
const { Command, NotDone, Outcome, ReadMode, RequestId, Unknown, Verb } = require("./gen-nodejs/kvstore_types");

const PATIENCE_MS = 2000; // for one call at one node
const DEADLINE_MS = 30000; // for one call at all nodes together
const LARGEST = "\u{1f994}".repeat(131072); // 524,288 bytes of UTF-8

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Calls one node until it fails, then the next.
class Cluster {
  constructor(nodes) {
    this.nodes = nodes;
    this.node = 0;
    this.connection = null;
    this.sequence = 0;
  }

  // One call at this node. A connection that failed in any way is not used again.
  attempt(call) {
    return new Promise((resolve, reject) => {
      if (this.connection === null) {
        const at = this.nodes[this.node].lastIndexOf(":");
        const host = this.nodes[this.node].slice(0, at);
        const port = Number(this.nodes[this.node].slice(at + 1));
        this.connection = thrift.createConnection(host, port, {
          transport: thrift.TFramedTransport,
          protocol: thrift.TBinaryProtocol,
        });
      }
      const connection = this.connection;
      const lost = (error) => {
        connection.removeAllListeners("error");
        connection.on("error", () => {}); // what it still has to say is nobody's matter any more
        connection.destroy();
        if (this.connection === connection) this.connection = null;
        reject(error);
      };
      const timer = setTimeout(() => lost(new Error("no answer in time")), PATIENCE_MS);
      connection.removeAllListeners("error");
      connection.removeAllListeners("close");
      connection.on("error", (error) => { clearTimeout(timer); lost(error); });
      connection.on("close", () => { clearTimeout(timer); lost(new Error("closed by the node")); });
      call(thrift.createClient(KeyValue, connection)).then(
        (answer) => { clearTimeout(timer); resolve(answer); },
        (error) => { clearTimeout(timer); reject(error); },
      );
    });
  }

  // Do it at this node, or else at another.
  async call(call) {
    const deadline = Date.now() + DEADLINE_MS;
    for (;;) {
      try {
        return await this.attempt(call);
      } catch (error) {
        const permanent = error instanceof NotDone ? error.permanent : error instanceof thrift.Thrift.TApplicationException;
        if (permanent || Date.now() > deadline) throw error;
      }
      this.node = (this.node + 1) % this.nodes.length;
      this.close();
      await pause(50);
    }
  }

  // The same for a write: all attempts carry one number.
  async write(call) {
    if (this.session === undefined) this.session = await this.call((client) => client.open_session());
    this.sequence += 1;
    const sequence = new Int64(this.sequence);
    const request = new RequestId({ session: this.session, sequence, first_incomplete: sequence });
    return this.call((client) => call(client, request));
  }

  async put(key, value) {
    return (await this.write((client, request) => client.put(key, value, request))).outcome;
  }

  async get(key) {
    return (await this.call((client) => client.get(key, ReadMode.LINEARIZABLE))).value;
  }

  close() {
    if (this.connection === null) return;
    this.connection.removeAllListeners("close");
    this.connection.on("error", () => {});
    this.connection.destroy();
    this.connection = null;
  }
}

function check(name, holds) {
  if (!holds) throw new Error(`${name}: FAILED`);
  console.log(`${name}: ok`);
}

async function main(prefix, nodes) {
  const cluster = new Cluster(nodes);

  check("put", (await cluster.put(prefix + "key", "value")) === Outcome.OK);
  check("get", (await cluster.get(prefix + "key")) === "value");
  const text = "\u{1f994} Zürich 漢字 \u{10348}";
  check("unicode", (await cluster.put(prefix + text, text)) === Outcome.OK && (await cluster.get(prefix + text)) === text);
  check("empty value", (await cluster.put(prefix + "empty", "")) === Outcome.OK && (await cluster.get(prefix + "empty")) === "");
  check("absent", (await cluster.get(prefix + "absent")) === null);
  const stored = (await cluster.put(prefix + "largest", LARGEST)) === Outcome.OK;
  check("largest value", stored && (await cluster.get(prefix + "largest")) === LARGEST);
  const refusal = await cluster.put(prefix + "larger", LARGEST + "x").catch((error) => error);
  check("one byte more", refusal instanceof NotDone && refusal.permanent);

  const swap = (expected, value) =>
    cluster.write((client, request) => client.compare_and_set(prefix + "key", expected, value, request));
  const mismatch = await swap("something else", "new");
  check("compare", mismatch.outcome === Outcome.MISMATCH && mismatch.value === "value");
  check("set", (await swap("value", "new")).outcome === Outcome.OK && (await cluster.get(prefix + "key")) === "new");

  const add = async (delta) =>
    (await cluster.write((client, request) => client.increment(prefix + "n", new Int64(delta), request))).value;
  check("increment", (await add(5)) === "5" && (await add(-7)) === "-2");
  const key = prefix + "batch";
  const results = await cluster.call((client) => client.execute([
    new Command({ verb: Verb.PUT, key, value: "1" }),
    new Command({ verb: Verb.INCREMENT, key, delta: new Int64(2 ** 40) }),
    new Command({ verb: Verb.GET, key }),
    new Command({ verb: Verb.DELETE, key }),
    new Command({ verb: Verb.GET, key }),
  ]));
  check("batch", results.map((result) => result.outcome).join() === [0, 0, 0, 0, Outcome.NOT_FOUND].join());
  check("batch value", results[2].value === "1099511627777");

  console.log(`waiting: end ${nodes[cluster.node]}, then press Enter`);
  const input = readline.createInterface({ input: process.stdin });
  await new Promise((resolve) => input.once("line", resolve));
  input.close();
  check("failover", (await add(10)) === "8" && (await cluster.get(prefix + "n")) === "8");
  cluster.close();
}

if (process.argv.length < 4) {
  console.error("usage: node example.js PREFIX HOST:PORT...");
  process.exit(2);
}
main(process.argv[2], process.argv.slice(3)).catch((error) => {
  console.error(error.stack || error);
  process.exit(1);
});
