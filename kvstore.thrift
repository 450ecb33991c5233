/**
 * The interface of the cluster: what clients call (service KeyValue), what nodes say to one another (service Node),
 * and what a journal holds (struct Record). A node serves both services on one port: framed transport, strict binary
 * protocol. gen-py/ is generated from this file; CONTRIBUTING.md has the command.
 */
namespace py kvstore

/**
 * The pair (round, node), packed as round * 256 + node, so that comparing two integers compares two pairs.
 * 0 is the ballot before all others. Every log has ballots of its own.
 */
typedef i64 Ballot

// ---------------------------------------------------------------------------------------------- commands and results

/** What a command does. */
enum Verb {
    /** Set the key to the value. */
    PUT = 1,
    /** Read the key at the command's place in the order. */
    GET = 2,
    /** Remove the key. */
    DELETE = 3,
    /** Set the key to the value if it now holds what is expected (no expectation: if it does not exist). */
    COMPARE_AND_SET = 4,
    /** Add delta to the decimal integer that the key holds (a missing key counts as 0). */
    INCREMENT = 5,
    /** Open a session, whose id is the command's place in the order. */
    OPEN_SESSION = 6,
    /** Compare keys, then do one of two lists of actions, with nothing in between: all of it or nothing. */
    TRANSACTION = 7,
    /** From here on all nodes do what format `delta` knows. Nodes send it, once all have said that they know it. */
    UPGRADE = 8,
    /** The node whose id is `key` is at the address `value` from here on: HOST:PORT. */
    REPLACE_NODE = 9,
}

/** What became of a command that was applied. */
enum Outcome {
    /** Done. */
    OK = 0,
    /** GET, DELETE: the key does not exist. */
    NOT_FOUND = 1,
    /** COMPARE_AND_SET: the key held something else, which is in `value`. TRANSACTION: a comparison did not hold, and
     * the actions of `else_do` were done. */
    MISMATCH = 2,
    /** INCREMENT, alone or in a TRANSACTION: the value, or the sum, is not a 64-bit decimal integer; nothing changed. */
    NOT_A_NUMBER = 3,
    /** Not applied: the session is not known any more (single commands raise Expired instead). */
    EXPIRED = 4,
    /** Not applied: below the session's first incomplete sequence (single commands raise Forgotten instead). */
    FORGOTTEN = 5,
    /** Not applied: the command makes no sense (unknown verb, a missing field, a key or value over the limit), or not
     * all nodes are known to understand it. */
    INVALID = 6,
    /** TRANSACTION: it would read more than 1,048,576 characters, or more than those before it in its entry have left of
     * 8,388,608; nothing changed. */
    TOO_LARGE = 7,
}

/** What a comparison of a transaction says about a key. */
enum Relation {
    /** It holds this value. */
    EQUALS = 1,
    /** It does not hold this value, or does not exist. */
    DIFFERS = 2,
    /** It exists. */
    EXISTS = 3,
    /** It does not exist. */
    ABSENT = 4,
    /** It holds a 64-bit decimal integer below this one. */
    LESS = 5,
    /** It holds a 64-bit decimal integer above this one. */
    GREATER = 6,
    /** It has a time to live, which the command at this place has set: nobody has written the key since. */
    LEASED = 7,
}

/** How a read is ordered among the writes. */
enum ReadMode {
    /** Sees every write answered before the read was sent. One round to the peers, no log entry. */
    LINEARIZABLE = 0,
    /** As linearizable, by way of the log: the read is a command like any other. */
    LOG = 1,
    /** What this node has applied so far; may be stale, says up to which timestamp. */
    LOCAL = 2,
}

/** A client's session: the place in the order of the command that opened it. */
struct Session {
    /** Timestamp of the entry that holds the command. */
    1: i64 timestamp
    /** The log that the entry stands in. */
    2: i32 owner
    /** The command's index in the entry, from 0. */
    3: i32 index
} (python.immutable = "")

/** What makes a repeated command recognizable, so that it is applied once. */
struct RequestId {
    /** The session, as open_session gave it. */
    1: Session session
    /** The command's number in the session, from 1; a repeat carries the same one. */
    2: i64 sequence
    /** The lowest number that the client has no answer for yet; results below it may be forgotten. Never falls. */
    3: i64 first_incomplete
} (python.immutable = "")

/** A place in the order of all commands. */
struct Position {
    /** The entry's timestamp. */
    1: i64 timestamp
    /** The log that it stands in. */
    2: i32 owner
} (python.immutable = "")

/** A command's place in the order of all commands: no two have the same, whatever they do. */
struct CommandPlace {
    /** The timestamp of its entry. */
    1: i64 timestamp
    /** The log that the entry stands in. */
    2: i32 owner
    /** Which command of the entry it is, from 0. */
    3: i32 command
} (python.immutable = "")

/** One comparison of a transaction. */
struct Compare {
    /** The key. */
    1: string key
    /** What must be so. */
    2: Relation relation
    /** EQUALS, DIFFERS: the value. LESS, GREATER: the number, in decimal. */
    3: optional string value
    /** LEASED: the place. */
    4: optional CommandPlace place
} (python.immutable = "")

/** One action of a transaction. */
struct Action {
    /** PUT, GET, DELETE or INCREMENT. */
    1: Verb verb
    /** The key. */
    2: string key
    /** PUT: the value to set. */
    3: optional string value
    /** INCREMENT: how much to add. */
    4: optional i64 delta
    /** PUT: the key's time to live, in milliseconds, up to ten years; absent: it stays. The nodes remove it, never
     * earlier. Whatever writes the key again ends this. */
    5: optional i64 ttl_ms
} (python.immutable = "")

/** What a TRANSACTION does; of each list at most 128. */
struct Transaction {
    /** If all of these hold, */
    1: list<Compare> compares
    /** these actions are done, in order, each of them on what those before it have left; */
    2: list<Action> then_do
    /** if not, these. */
    3: list<Action> else_do
} (python.immutable = "")

/** One command, as clients batch them and as the logs hold them. */
struct Command {
    /** What to do. */
    1: Verb verb
    /** The key: UTF-8, 1 to 4,096 bytes. OPEN_SESSION has none. */
    2: optional string key
    /** PUT, COMPARE_AND_SET: the value to set: UTF-8, at most 524,288 bytes. */
    3: optional string value
    /** COMPARE_AND_SET: the value that the key must hold; absent: the key must not exist. */
    4: optional string expected
    /** INCREMENT: how much to add. */
    5: optional i64 delta
    /** Set by clients that may repeat the command. */
    6: optional RequestId request
    /** TRANSACTION: what it does. */
    7: optional Transaction transaction
} (python.immutable = "")

/** What became of one action of a transaction. */
struct Answer {
    /** OK or NOT_FOUND. */
    1: Outcome outcome
    /** GET: the value. INCREMENT: the sum. */
    2: optional string value
} (python.immutable = "")

/** What became of a transaction of which one list of actions was done. */
struct Transacted {
    /** Its place in the order. */
    1: CommandPlace place
    /** For each action. */
    2: list<Answer> answers
} (python.immutable = "")

/** The answer to one command. */
struct Result {
    /** What became of it. */
    1: Outcome outcome
    /** GET: the value. COMPARE_AND_SET with MISMATCH: what the key holds (absent: it does not exist). INCREMENT: the sum. */
    2: optional string value
    /** OPEN_SESSION: the new session. */
    3: optional Session session
    /** GET with mode LOCAL: all commands up to this timestamp had been applied. */
    4: optional i64 timestamp
    /** TRANSACTION with OK or MISMATCH: what was done. */
    5: optional Transacted transacted
} (python.immutable = "")

/** One key and its value. */
struct Item {
    /** The key. */
    1: string key
    /** Its value. */
    2: string value
} (python.immutable = "")

/** A page of a scan. */
struct Page {
    /** The items in ascending order of their keys (by code point), or in descending order if that was asked for. */
    1: list<Item> items
    /** Whether keys follow that did not fit this page. */
    2: bool more
    /** All commands up to this timestamp had been applied. */
    3: i64 timestamp
    /** The last entry that had been applied: two pages with the same one are of one state. */
    4: optional Position position
    /** If `counted` was asked for: how many keys the whole range has. */
    5: optional i64 keys
} (python.immutable = "")

/** Which keys a page is to have: those for which all of this is so. What is absent bounds nothing. */
struct Range {
    /** They begin with this. */
    1: optional string prefix
    /** They are not below this. */
    2: optional string start
    /** They are below this. */
    3: optional string below
    /** They come after this one, in the order of the page: the last key of the page before. */
    4: optional string after
    /** Whether the order is the descending one. */
    5: optional bool reverse
    /** At most this many items, up to 1,000; absent: 1,000. */
    6: optional i32 limit
    /** Whether the values are left out: they are empty then. */
    7: optional bool keys_only
    /** Whether the page says how many keys the range has, and holds none of them. */
    8: optional bool counted
} (python.immutable = "")

/** A place in the order of all changes of keys; the same at every node. */
struct Place {
    /** Timestamp of the entry that changes the key. */
    1: i64 timestamp
    /** The log that the entry stands in. */
    2: i32 owner
    /** Which change of the entry, from 0; absent: the last one. */
    3: optional i32 change
} (python.immutable = "")

/** One change of a key. */
struct Change {
    /** The key. */
    1: string key
    /** Its place in the order. */
    2: Place place
    /** Its new value; absent: the key was removed. */
    3: optional string value
} (python.immutable = "")

/** What a watch has seen. */
struct Watched {
    /** Changes in their order, perhaps none. */
    1: list<Change> changes
    /** There are no others up to here: where to go on, at any node. */
    2: Place upto
} (python.immutable = "")

/** What a node has recorded of itself. */
struct Traced {
    /** Whether it records now. */
    1: bool on
    /** Events, a JSON object in each line; docs/trace.md has the format. */
    2: string events
    /** The id of the last one. */
    3: i64 last
    /** Whether there are more. */
    4: bool more
} (python.immutable = "")

/** A piece of a checkpoint's file. */
struct Chunk {
    /** Which checkpoint of the node that sends it; 0: it has none, or this one no longer. */
    1: i64 number
    /** Bytes of the whole file. */
    2: i64 size
    /** CRC-32 of the whole file. */
    3: i64 check
    /** Where in the file the data begins. */
    4: i64 offset
    /** At most 1 MiB; empty only at the end of the file. */
    5: binary data
} (python.immutable = "")

/** What one node knows of one log. */
struct LogStatus {
    /** The log, named by its owner. */
    1: i32 log
    /** The node that leads the log, as far as this node knows: that of the highest ballot it promised. */
    2: i32 leader
    /** The highest ballot promised. */
    3: Ballot promised
    /** The ballot of the entries held. */
    4: Ballot accepted
    /** How many entries are held, from slot 0. */
    5: i64 length
    /** How many of them are known to be chosen. */
    6: i64 chosen
    /** How many have been applied or passed over. */
    7: i64 executed
    /** Every command of the log with a timestamp up to this one is among the chosen entries. */
    8: i64 frontier
} (python.immutable = "")

/** One node, as it sees itself. */
struct Status {
    /** The node's id; 0 for the standalone server. */
    1: i32 node
    /** The cluster's name. */
    2: string cluster
    /** Version of the software. */
    3: string version
    /** Whether it takes commands now: its state is serving. */
    4: bool ready
    /** Its Lamport clock. */
    5: i64 clock
    /** The last entry applied. */
    6: Position applied
    /** Keys in the store. */
    7: i64 keys
    /** SHA-256 of the store's content (keys and values in order), in hexadecimal; only when asked for. */
    8: optional string digest
    /** All logs; empty for the standalone server. */
    9: list<LogStatus> logs
    /** Nodes that it has a working connection to. */
    10: list<i32> connected
    /** Client operations that wait for an answer. */
    11: i64 pending
    /** Bytes in the journal. */
    12: i64 journal_bytes
    /** Resident memory, bytes. */
    13: i64 memory_bytes
    /** Seconds since it started. */
    14: double uptime_s
    /** Counters since the start, by name. */
    15: map<string, i64> counters
    /** Rolling hash of all that was applied up to `applied`: nodes that applied the same have the same. */
    16: i64 hash
    /** Seconds since the newest checkpoint was made; absent: there is none. */
    17: optional double checkpoint_age_s
    /** Which disk the node has: raised by a rejoin. */
    18: i64 incarnation
    /** Which start of this disk: the count in the upper bits, random in the lower 20. */
    19: i64 life
    /** Entries of its own log that are not applied yet. */
    20: i64 in_flight
    /** serving, starting, no-majority, rejoining, stopping, or disk-full. */
    21: string state
    /** Who refuses this node, or is refused by it, and why: at this time, a line for each. */
    22: list<string> problems
    /** Seconds until its certificate expires; absent: it has none, or none that is valid. */
    23: optional double certificate_s
} (python.immutable = "")

/** A node that was replaced. */
struct Moved {
    /** Its id. */
    1: i32 node
    /** Where it is now: HOST:PORT. */
    2: string address
    /** Timestamp of the entry by which that was agreed: of two that nodes tell, the later one holds. */
    3: i64 since
} (python.immutable = "")

/** Which node this is, and of which cluster. */
struct Membership {
    /** The cluster's name. */
    1: string cluster
    /** Digest of the membership, as in Identity; empty for the standalone server. */
    2: string digest
    /** The node's id; 0 for the standalone server. */
    3: i32 node
    /** Nodes that are no longer where the cluster's file says; absent: all are. */
    4: optional list<Moved> moved
} (python.immutable = "")

// ------------------------------------------------------------------------------------------------------------ errors

/** This attempt was not proposed and will not be. */
exception NotDone {
    /** Why, in one line. */
    1: string reason
    /** Whether every node would refuse it (the command itself is at fault). If not, try the next node. */
    2: bool permanent
}

/** This attempt may have been done, or may still be. */
exception Unknown {
    /** Why, in one line. */
    1: string reason
}

/** This attempt was not applied: its session is not known (any more). Whether an earlier attempt was, nobody knows. */
exception Expired {
    /** Why, in one line. */
    1: string reason
}

/** This attempt was not applied: its result has been given up by the client. Whether an earlier one was, nobody knows. */
exception Forgotten {
    /** Why, in one line. */
    1: string reason
}

/** The node no longer has all changes from there on. Another node may; else whoever watches has to read anew. */
exception Compacted {
    /** Why, in one line. */
    1: string reason
    /** The oldest place from which it can go on. */
    2: Place oldest
}

/** The nodes do not belong together, or one of them is a copy of another. */
exception Refused {
    /** Which field differs, and both values. */
    1: string reason
}

// ---------------------------------------------------------------------------------------------------- client service

/** What clients call, at any node: the node that receives a command proposes it. */
service KeyValue {
    /** First on a connection: a client that knows its cluster compares, and sends nothing more to a node of another. */
    Membership membership()

    /** Open a session, for commands that are applied once however often they are repeated. */
    Session open_session() throws (1: NotDone not_done, 2: Unknown unknown)

    /** Set a key. `request` makes it repeatable. */
    Result put(1: string key, 2: string value, 3: RequestId request)
        throws (1: NotDone not_done, 2: Unknown unknown, 3: Expired expired, 4: Forgotten forgotten)

    /** Read a key. Absent `mode`: linearizable. */
    Result get(1: string key, 2: ReadMode mode)
        throws (1: NotDone not_done, 2: Unknown unknown)

    /** Remove a key. */
    Result delete(1: string key, 2: RequestId request)
        throws (1: NotDone not_done, 2: Unknown unknown, 3: Expired expired, 4: Forgotten forgotten)

    /** Set a key to `value` if it holds `expected` (absent: if it does not exist). */
    Result compare_and_set(1: string key, 2: string expected, 3: string value, 4: RequestId request)
        throws (1: NotDone not_done, 2: Unknown unknown, 3: Expired expired, 4: Forgotten forgotten)

    /** Add `delta` to a decimal integer. */
    Result increment(1: string key, 2: i64 delta, 3: RequestId request)
        throws (1: NotDone not_done, 2: Unknown unknown, 3: Expired expired, 4: Forgotten forgotten)

    /** Do up to 10,000 commands in order, one after the other with nothing in between; a result for each. */
    list<Result> execute(1: list<Command> commands)
        throws (1: NotDone not_done, 2: Unknown unknown)

    /**
     * Compare keys, then do one of two lists of actions: OK says that it was `then_do`, MISMATCH that it was `else_do`.
     * Refused as long as not all nodes are known to understand it.
     */
    Result transaction(1: Transaction transaction, 2: RequestId request)
        throws (1: NotDone not_done, 2: Unknown unknown, 3: Expired expired, 4: Forgotten forgotten)

    /** Up to `limit` items (at most 1,000) whose keys begin with `prefix` and come after `start_after`. */
    Page scan(1: string prefix, 2: string start_after, 3: i32 limit, 4: ReadMode mode)
        throws (1: NotDone not_done, 2: Unknown unknown)

    /** The keys of a range, in order, or how many there are. */
    Page scan_range(1: Range wanted, 2: ReadMode mode)
        throws (1: NotDone not_done, 2: Unknown unknown)

    /**
     * Changes of the keys that begin with `prefix`, after this place, at most `limit` of them (and of 256). If there are
     * none yet, the node waits for one, at most this many milliseconds (and a minute). Absent `after`: answers at once with
     * the place of all that was answered before the call.
     */
    Watched watch(1: string prefix, 2: Place after, 3: i32 limit, 4: i32 wait_ms)
        throws (1: NotDone not_done, 2: Compacted compacted)

    /**
     * The node with this id is at another address (HOST:PORT) from now on; its process there starts with its data, or
     * with --rejoin. Refused as long as not all nodes are known to understand it.
     */
    Result replace_node(1: i32 node, 2: string address, 3: RequestId request)
        throws (1: NotDone not_done, 2: Unknown unknown, 3: Expired expired, 4: Forgotten forgotten)

    /** Make a checkpoint now, and answer with its number when it is durable. */
    i64 checkpoint() throws (1: NotDone not_done)

    /** A piece of a checkpoint; number 0: of the newest. For backups. */
    Chunk read_checkpoint(1: i64 number, 2: i64 offset) throws (1: NotDone not_done)

    /**
     * Record what happens at the node, in memory, or stop (absent: as it is), and answer with events after this one.
     * A negative number asks for what the node's journal has of the last entries, recorded or not: -1 for the first of them, and then what `last` says.
     */
    Traced trace(1: bool on, 2: i64 after) throws (1: NotDone not_done)

    /** The node's own view of itself; `digest` asks for the hash of the whole store as well. */
    Status status(1: bool digest)
}

// ------------------------------------------------------------------------------------------------------ node service

/** What Paxos decides for one slot of one log. */
struct Entry {
    /** Its place in the order of all commands; strictly increasing along a log. */
    1: i64 timestamp
    /** The encoded commands (a Batch); empty: a no-op. */
    2: binary payload
} (python.immutable = "")

/** What a node knows its own entry by, where all nodes propose for one log: no two entries have the same. */
struct Origin {
    /** The node whose clients sent the commands. */
    1: i32 node
    /** Which start of it. */
    2: i64 life
    /** Counted from 1 in that life. */
    3: i64 number
} (python.immutable = "")

/** The payload of an entry. */
struct Batch {
    /** Applied in this order. */
    1: list<Command> commands
    /** Whose they are; absent where the log says it, because each node has its own. */
    2: optional Origin origin
} (python.immutable = "")

/**
 * An eternal truth about one log: its first `chosen` entries are chosen, in the established ballot `evidence`, and
 * every command of the log with a timestamp <= `frontier` is among them.
 */
struct Fact {
    /** The log that it is about. */
    1: i32 log
    /** How many entries are chosen, at least. */
    2: i64 chosen
    /** The ballot that they were counted in: always established. */
    3: Ballot evidence
    /** Nothing but no-ops can join the log at or below this timestamp. */
    4: i64 frontier
} (python.immutable = "")

/** Phase 1a: a candidate asks to lead a log. */
struct Prepare {
    /** The log. */
    1: i32 log
    /** The candidate's ballot. */
    2: Ballot ballot
    /** The candidate's chosen length: it wants the entries from here on. */
    3: i64 from_slot
    /** A revoker waits for this frontier, and wants no promise where it is known already. 0: unconditional. */
    4: i64 wanted
} (python.immutable = "")

/** What an acceptor says to a Prepare. */
enum Verdict {
    /** It will accept nothing below this ballot. */
    PROMISED = 0,
    /** It has promised a higher ballot, `promised`. */
    NACK = 1,
    /** It holds the entries from from_slot on no longer: the candidate must catch up first. */
    BEHIND = 2,
    /** The frontier that the candidate waits for is in `fact`. Nothing was promised. */
    COVERED = 3,
}

/** Phase 1b: the answer to a Prepare. */
struct Promise {
    /** The log. */
    1: i32 log
    /** The ballot asked for. */
    2: Ballot ballot
    /** As in the Prepare. */
    3: i64 from_slot
    /** Which answer it is. */
    4: Verdict verdict
    /** The highest ballot promised. */
    5: Ballot promised
    /** PROMISED: the ballot of the entries. */
    6: Ballot accepted
    /** PROMISED: all entries held from from_slot on. */
    7: list<Entry> entries
    /** What the node knows of the log. */
    8: Fact fact
} (python.immutable = "")

/** Phase 2a: the leader of a log sends entries. */
struct Accept {
    /** The log. */
    1: i32 log
    /** The leader's ballot. */
    2: Ballot ballot
    /** The slot of the first entry. */
    3: i64 start
    /** The entries, perhaps none. */
    4: list<Entry> entries
    /** Whether this is the leader's whole log from its chosen length on. */
    5: bool sync
    /** What the leader knows of the log. */
    6: Fact fact
    /** Nodes whose votes can wait: they answer at once with what they hold durably by then. */
    7: list<i32> lazy
} (python.immutable = "")

/** What an acceptor says to an Accept. */
enum Vote {
    /** `length` entries of this ballot's log are held, durably. (Less than was sent: there was a gap.) */
    ACCEPTED = 0,
    /** A higher ballot has been promised. */
    REFUSED = 1,
    /** This acceptor has not taken the ballot's sync, or must first fetch chosen entries below it. */
    NEEDS_SYNC = 2,
    /** No vote: the acceptor fails on purpose. The fact still counts. */
    WITHHELD = 3,
}

/** Phase 2b: the answer to an Accept. */
struct Accepted {
    /** The log. */
    1: i32 log
    /** The ballot of the Accept. */
    2: Ballot ballot
    /** The highest ballot promised. */
    3: Ballot promised
    /** Which answer it is. */
    4: Vote vote
    /** ACCEPTED: entries held of this ballot's log, counted from slot 0, all of them durably. */
    5: i64 length
    /** What the node knows of its own log. */
    6: Fact fact
} (python.immutable = "")

/** Gossip: the sender's clock, and what it knows. Unanswered. */
struct Learn {
    /** The sender's clock. */
    1: i64 clock
    /** What it knows, of some or all logs. */
    2: list<Fact> facts
    /** How many chosen entries of each log the sender would know after a restart, in the order of the logs' numbers. */
    3: list<i64> held
    /** The last entry that it has applied. */
    4: Position applied
    /** The rolling hash of what it has applied up to there. */
    5: i64 hash
} (python.immutable = "")

/** Ask for chosen entries. */
struct Fetch {
    /** The log. */
    1: i32 log
    /** The first slot wanted. */
    2: i64 from_slot
} (python.immutable = "")

/** Chosen entries; none where the node does not hold them. */
struct Fetched {
    /** The log. */
    1: i32 log
    /** The slot of the first entry. */
    2: i64 from_slot
    /** Chosen entries, as many as fit. */
    3: list<Entry> entries
    /** The established ballot that they were counted in. */
    4: Ballot evidence
    /** The first slot that the node still holds: whoever needs one below it takes a checkpoint. */
    5: i64 base
} (python.immutable = "")

/** Ask for a piece of a checkpoint. */
struct FetchCheckpoint {
    /** Which one; 0: the newest. */
    1: i64 number
    /** Where the piece begins, in bytes. */
    2: i64 offset
} (python.immutable = "")

/** A node whose disk was wiped asks for what it must know before it may vote again, one log at a time. */
struct Rejoin {
    /** The log. */
    1: i32 log
    /** Its new incarnation, for the peer to note durably; 0: it has none yet, and asks which ones are noted. */
    2: i64 incarnation
} (python.immutable = "")

/** Which disk and which start of a peer were heard of: older ones are refused. */
struct Noted {
    /** The peer. */
    1: i32 node
    /** Its highest incarnation. */
    2: i64 incarnation
    /** The highest life of that incarnation. */
    3: i64 life
} (python.immutable = "")

/** The answer to a Rejoin. It leaves when the incarnation is noted durably. */
struct Rejoined {
    /** The log. */
    1: i32 log
    /** As in the Rejoin. */
    2: i64 incarnation
    /** The highest incarnation of the asking node that this node has noted. */
    3: i64 noted
    /** The peer is rejoining itself: it counts as having answered, but has nothing to tell. */
    4: bool rejoining
    /** The highest ballot promised. */
    5: Ballot promised
    /** The ballot of the entries. */
    6: Ballot accepted
    /** The slot of the first of them: the peer's chosen length. */
    7: i64 start
    /** All entries held from there on; of a log that it leads, also those proposed and not yet voted for. */
    8: list<Entry> entries
    /** What the peer knows of the log. */
    9: Fact fact
    /** The peer's clock. */
    10: i64 clock
    /** The peer's own disk and start, and those that it has noted of all others; absent: a version that does not tell. */
    11: optional list<Noted> lives
} (python.immutable = "")

/** A reader asks for a node's clock, and tells the timestamp that it waits for. */
struct Barrier {
    /** Number of the round, from the reader's process; 0: not a round, but a waiting node that asks for all facts. */
    1: i64 round
    /** The reader's clock, or the timestamp that it waits for. */
    2: i64 clock
} (python.immutable = "")

/** The answer to a Barrier. */
struct Reading {
    /** As in the Barrier. */
    1: i64 round
    /** The node's clock. */
    2: i64 clock
    /** What the node knows of its own log, and of those that it knows to have reached the asker's clock; in answer to
     * round 0, of all logs. */
    3: list<Fact> facts
    /** Where one node leads the one log: the ballot that this node has promised, */
    4: optional Ballot promised
    /** and the one at which it leads, established; 0: it does not. */
    5: optional Ballot leads
} (python.immutable = "")

/** A node hands its clients' commands to the leader of the one log. */
struct Forward {
    /** The ballot at which the receiver leads: it takes nothing at another one. */
    1: Ballot ballot
    /** As in the payload. */
    2: Origin origin
    /** A Batch, for one entry. */
    3: binary payload
    /** So many entries of this ballot's log does the sender hold: the payload is none of them. */
    4: i64 held
} (python.immutable = "")

/** The answer to a Forward; none where it may be taken later. */
struct Forwarded {
    /** As in the Forward. */
    1: Ballot ballot
    /** As in the Forward. */
    2: Origin origin
    /** Whether the payload stands in the log of this ballot; if not, the node does not lead at it. */
    3: bool taken
} (python.immutable = "")

/** What a start of a node has found on its disk of one log. */
struct Recovered {
    /** The log's owner. */
    1: i32 log
    /** The ballot below which it accepts nothing. */
    2: i64 promised
    /** The ballot of the entries that it holds, */
    3: i64 accepted
    /** how many they are, with all before them, */
    4: i64 length
    /** and how many of these it knows to be chosen. */
    5: i64 chosen
    /** The highest ballot with which it has stood for the log. */
    6: i64 candidate
} (python.immutable = "")

/** Who a node is. */
struct Identity {
    /** The cluster's name. */
    1: string cluster
    /** Digest of the membership: cluster name, ids and addresses. */
    2: string digest
    /** The node's id. */
    3: i32 node
    /** Which disk: raised by a rejoin. */
    4: i64 incarnation
    /** Which start of this disk: the count in the upper bits, random in the lower 20. A copy of an older state has less. */
    5: i64 life
    /** What this start has found of each log: less than its peers were told is a copy of an older state. */
    6: optional list<Recovered> recovered
    /** The clock's reservation that this start has found: no frontier was made from the clock above it. */
    7: optional i64 reserved
    /** Where the nodes share a secret: the number that this side has drawn for this connection. */
    8: optional binary nonce
    /** Where the nodes share a secret: proves that its sender knows it; made of both sides' ids and nonces. */
    9: optional binary proof
    /** How its cluster proposes, as cluster.json says; absent: "own-logs". */
    10: optional string proposing
    /** Which commands it knows: those of a version (1: TRANSACTION), and all before; absent: none of these. */
    11: optional i32 format
    /** Where it listens: HOST:PORT. */
    12: optional string address
} (python.immutable = "")

/** What nodes say to one another. Answers may overtake one another. */
service Node {
    /**
     * First on every connection: who calls. Nothing else is served before it. Answers who is called. Where the nodes share
     * a secret, the first answer holds a nonce and a proof, and the caller calls once more, with its own proof.
     */
    Identity hello(1: Identity identity) throws (1: Refused refused)

    /** Phase 1. */
    Promise prepare(1: Prepare message)

    /** Phase 2. */
    Accepted accept(1: Accept message)

    /** Gossip. */
    oneway void learn(1: Learn message)

    /** Hand out chosen entries. */
    Fetched fetch(1: Fetch message)

    /** Clock and fact, for a read. */
    Reading barrier(1: Barrier message)

    /** Take another node's commands into the log. */
    Forwarded forward(1: Forward message)

    /** Hand out a checkpoint, piece by piece. */
    Chunk fetch_checkpoint(1: FetchCheckpoint message)

    /** Tell a node that lost its disk what it must know. */
    Rejoined rejoin(1: Rejoin message)
}

// ----------------------------------------------------------------------------------------------------------- journal

/** A ballot of one log. */
struct LogBallot {
    /** The log. */
    1: i32 log
    /** The ballot. */
    2: Ballot ballot
} (python.immutable = "")

/** Entries of one log, held at one ballot: what was held from `start` on is replaced. */
struct Held {
    /** The log. */
    1: i32 log
    /** The ballot of the log that they belong to; it is promised as well. */
    2: Ballot ballot
    /** The slot of the first entry. */
    3: i64 start
    /** The entries, perhaps none. */
    4: list<Entry> entries
} (python.immutable = "")

/** How much of one log is chosen. */
struct Chosen {
    /** The log. */
    1: i32 log
    /** How many entries. */
    2: i64 chosen
    /** The established ballot that they were counted in. */
    3: Ballot evidence
} (python.immutable = "")

/** What a node must not forget. Exactly one field is set. */
struct Record {
    /** The acceptor of this log promised this ballot. */
    1: optional LogBallot promised
    /** The acceptor of this log took these entries. */
    2: optional Held held
    /** This node stood, or is about to stand, as candidate with this ballot. */
    3: optional LogBallot candidate
    /** No frontier of this node exceeds this; a restart begins its clock here. */
    4: optional i64 reservation
    /** Known to be chosen. */
    5: optional Chosen chosen
    /** Everything up to here was applied. */
    6: optional Position applied
    /** A peer's incarnation and life. */
    7: optional Noted noted
    /** The checkpoint of this number, which another node made, was installed: it is merged into what stands before. */
    8: optional i64 installed
    /** This node's own incarnation, taken by a rejoin that has begun. */
    9: optional i64 incarnation
    /** The rejoin is over: this node votes again. */
    10: optional bool rejoined
    /** This node was started once more. */
    11: optional i64 life
} (python.immutable = "")

/** The records of one turn of the event loop: they become durable together or not at all. */
struct Frame {
    /** In this order. */
    1: list<Record> records
} (python.immutable = "")
