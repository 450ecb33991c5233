/* The floor: what the frames, wake-ups and fsyncs of our operations cost if nothing else is done.
 *
 * NODES processes with an event loop each, and CLIENTS processes that keep IN_FLIGHT operations under way each and go
 * to one node after the other, over loopback TCP. There is no protocol, no state and no recovery. The operations:
 *
 *   PUT  The node that receives it syncs its file and sends a frame to every other node. The first of them, one less
 *        than a majority, sync before they answer; the others answer at once and sync when they next do so, or soon.
 *        The client gets its answer when all have answered and a majority has synced.
 *   GET  The node asks one node less than a majority, and answers when these have answered.
 *
 * All that arrives in one wake-up shares one fdatasync. No two operations share a frame.
 *
 *   cc -O2 -o floor floor.c && ./floor NODES CLIENTS IN_FLIGHT OPERATIONS PERCENT_OF_GETS DIRECTORY
 *
 * Prints a line of JSON: the seconds that it took, the latency of each operation, in seconds, and the processor time of
 * the nodes per operation, in microseconds. Ends with 1 and a reason on stderr if something fails.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_NODES = 31, MAX_CLIENTS = 256, MAX_SOCKETS = 1024, EVENTS = 64,
    FRAME = 192,           /* bytes: about the average of ours */
    RECORD = 256,          /* bytes that a node writes for one sync */
    FILE_BYTES = 8 << 20,  /* of a node's file: full of zeros, and then overwritten again and again */
    UNDER_WAY = 1 << 16,   /* operations that a node remembers */
    DEFER_MS = 15,         /* how long a deferred sync may wait for another one */
};

enum kind { PUT = 1, GET, DONE, ACCEPT_NOW, ACCEPT_DEFERRED, ACCEPTED, READ, READING };

/* The answer repeats the number that the asker gave the operation, and says whether the node has synced. */
struct frame { enum kind kind; unsigned operation, synced; char rest[FRAME - 12]; };

/* A client's operation, at the node that received it: where it came from, its number there, what has been answered. */
struct operation { enum kind kind; int client; unsigned number; int answers, syncs; };

struct input { char bytes[64 * FRAME]; size_t length; };  /* what has come from a socket and is no whole frame yet */

static int nodes, majority;
static struct sockaddr_in addresses[MAX_NODES];
static struct input inputs[MAX_SOCKETS];

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void watch(int epoll, int socket) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = socket};
    int one = 1;
    if (socket >= MAX_SOCKETS) exit(1);
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, socket, &event)) fail("epoll_ctl");
}

static int join(int epoll, int id) {
    int found = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(found, (void *)&addresses[id], sizeof addresses[id])) fail("connect");
    watch(epoll, found);
    return found;
}

static void send_frame(int socket, enum kind kind, unsigned operation, unsigned synced) {
    struct frame frame = {.kind = kind, .operation = operation, .synced = synced};
    if (write(socket, &frame, FRAME) != FRAME) exit(1);
}

/* Read what a socket has, and handle each whole frame of it. 0: the other side has closed it. */
static int receive(int socket, void (*handle)(int, struct frame *)) {
    struct input *input = &inputs[socket];
    ssize_t got = read(socket, input->bytes + input->length, sizeof input->bytes - input->length);
    size_t used = 0;
    if (got <= 0) return 0;
    input->length += got;
    for (; input->length - used >= FRAME; used += FRAME) {
        struct frame frame;
        memcpy(&frame, input->bytes + used, FRAME);
        handle(socket, &frame);
    }
    input->length -= used;
    memmove(input->bytes, input->bytes + used, input->length);
    return 1;
}

/* ------------------------------------------------------------------------------------------------------- a node */

static struct node {
    int id, epoll, file, deferred;
    off_t at;
    int peers[MAX_NODES];  /* sockets; none for the node itself */
    unsigned next;
    struct operation operations[UNDER_WAY];
} node;

/* What waits for this wake-up's sync: the votes that the node owes others, and itself (socket 0). */
static struct vote { int socket; unsigned operation; } votes[EVENTS * 64];
static int voting;

static void sync_file(void) {
    static const char record[RECORD] = {1};
    if (pwrite(node.file, record, RECORD, node.at) != RECORD) fail("pwrite");
    if (fdatasync(node.file)) fail("fdatasync");
    node.at = (node.at + RECORD) % FILE_BYTES;
    node.deferred = 0;
}

static void answer_if_done(struct operation *operation) {
    int enough = operation->kind == GET ? operation->answers == majority - 1
                                        : operation->answers == nodes - 1 && operation->syncs >= majority;
    if (enough) send_frame(operation->client, DONE, operation->number, 0);
}

static void begin(int client, struct frame *frame) {
    unsigned number = node.next++ % UNDER_WAY;
    node.operations[number] = (struct operation){frame->kind, client, frame->operation, 0, 0};
    for (int i = 1; i < (frame->kind == GET ? majority : nodes); i++) {
        enum kind kind = frame->kind == GET ? READ : i < majority ? ACCEPT_NOW : ACCEPT_DEFERRED;
        send_frame(node.peers[(node.id + i) % nodes], kind, number, 0);
    }
    if (frame->kind == PUT) votes[voting++] = (struct vote){0, number};
    else answer_if_done(&node.operations[number]);  /* one node alone asks nobody */
}

static void at_node(int socket, struct frame *frame) {
    struct operation *operation = &node.operations[frame->operation % UNDER_WAY];
    if (frame->kind == ACCEPTED || frame->kind == READING) {
        operation->answers++;
        operation->syncs += frame->synced;
        answer_if_done(operation);
    }
    if (frame->kind == PUT || frame->kind == GET) begin(socket, frame);
    if (frame->kind == ACCEPT_NOW) votes[voting++] = (struct vote){socket, frame->operation};
    if (frame->kind == ACCEPT_DEFERRED) node.deferred = 1, send_frame(socket, ACCEPTED, frame->operation, 0);
    if (frame->kind == READ) send_frame(socket, READING, frame->operation, 0);
}

static void run_node(int id, int listener, int ready, const char *directory) {
    static char zeros[FILE_BYTES];
    char path[4096];
    node.id = id;
    node.epoll = epoll_create1(0);
    snprintf(path, sizeof path, "%s/floor.%d", directory, id);
    node.file = open(path, O_CREAT | O_RDWR | O_TRUNC, 0600);
    if (node.file < 0 || write(node.file, zeros, FILE_BYTES) != FILE_BYTES || fsync(node.file)) fail(path);
    watch(node.epoll, listener);
    for (int i = 0; i < nodes; i++) if (i != id) node.peers[i] = join(node.epoll, i);
    if (write(ready, "", 1) != 1) exit(1);
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(node.epoll, events, EVENTS, node.deferred ? DEFER_MS : -1);
        if (!count) sync_file();
        voting = 0;
        for (int i = 0; i < count; i++) {
            int socket = events[i].data.fd;
            if (socket == listener) watch(node.epoll, accept(listener, 0, 0));
            else if (!receive(socket, at_node)) close(socket);
        }
        if (voting) sync_file();
        for (int i = 0; i < voting; i++) {
            struct operation *operation = &node.operations[votes[i].operation];
            if (votes[i].socket) send_frame(votes[i].socket, ACCEPTED, votes[i].operation, 1);
            else operation->syncs++, answer_if_done(operation);
        }
    }
}

/* ----------------------------------------------------------------------------------------------------- a client */

static struct client {
    int id, gets, operations, sent, done;
    int sockets[MAX_NODES];
    double *latencies;  /* shared with the parent; first, each operation's start */
} client;

static void send_next(void) {
    int number = client.sent++;
    client.latencies[number] = now();
    send_frame(client.sockets[(client.id + number) % nodes], rand() % 100 < client.gets ? GET : PUT, number, 0);
}

static void at_client(int socket, struct frame *frame) {
    (void)socket;
    client.latencies[frame->operation] = now() - client.latencies[frame->operation];
    client.done++;
    if (client.sent < client.operations) send_next();
}

static void run_client(int in_flight, int ready, int go) {
    int epoll = epoll_create1(0);
    char byte;
    srand(client.id);
    for (int i = 0; i < nodes; i++) client.sockets[i] = join(epoll, i);
    if (write(ready, "", 1) != 1 || read(go, &byte, 1) != 1) exit(1);
    while (client.sent < client.operations && client.sent < in_flight) send_next();
    while (client.done < client.operations) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < count; i++) if (!receive(events[i].data.fd, at_client)) exit(1);
    }
    exit(0);
}

int main(int words, char **word) {
    int number[5], listeners[MAX_NODES], ready[2], go[2], failed = 0;
    pid_t servers[MAX_NODES], players[MAX_CLIENTS];
    for (int i = 0; i < 5; i++) number[i] = words == 7 ? atoi(word[i + 1]) : 0;
    int clients = number[1], in_flight = number[2], operations = number[3], gets = number[4];
    nodes = number[0];
    majority = nodes / 2 + 1;
    if (nodes < 1 || nodes > MAX_NODES || clients < 1 || clients > MAX_CLIENTS || in_flight < 1 || operations < 1)
        return fprintf(stderr, "usage: floor NODES CLIENTS IN_FLIGHT OPERATIONS PERCENT_OF_GETS DIRECTORY\n"), 2;
    double *latencies = mmap(0, operations * sizeof *latencies, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (latencies == MAP_FAILED || pipe(ready) || pipe(go)) fail("mmap, pipe");
    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i < nodes; i++) {
        socklen_t length = sizeof addresses[i];
        addresses[i] = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        listeners[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (bind(listeners[i], (void *)&addresses[i], length) || listen(listeners[i], 512)) fail("listen");
        getsockname(listeners[i], (void *)&addresses[i], &length);
    }
    for (int i = 0; i < nodes; i++) if (!(servers[i] = fork())) run_node(i, listeners[i], ready[1], word[6]);
    for (int i = 0; i < clients; i++) {
        int first = (long)operations * i / clients, next = (long)operations * (i + 1) / clients;
        client = (struct client){.id = i, .gets = gets, .operations = next - first, .latencies = latencies + first};
        if (!(players[i] = fork())) run_client(in_flight, ready[1], go[0]);
    }
    close(ready[1]);
    char byte;
    for (int i = 0; i < nodes + clients; i++) if (read(ready[0], &byte, 1) != 1) failed = 1;
    double began = now();
    for (int i = 0; i < clients; i++) if (write(go[1], "", 1) != 1) failed = 1;
    for (int i = 0, status; i < clients; i++) if (waitpid(players[i], &status, 0) < 0 || status) failed = 1;
    double seconds = now() - began, busy = 0;
    for (int i = 0; i < nodes; i++) {
        struct rusage usage;
        kill(servers[i], SIGKILL);
        wait4(servers[i], 0, 0, &usage);
        busy += usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    }
    if (failed) return fprintf(stderr, "floor: a client was not done\n"), 1;
    printf("{\"seconds\": %.6f, \"cpu_us\": %.1f, \"latencies_s\": [", seconds, busy * 1e6 / operations);
    for (int i = 0; i < operations; i++) printf("%s%.6f", i ? ", " : "", latencies[i]);
    printf("]}\n");
    return 0;
}
