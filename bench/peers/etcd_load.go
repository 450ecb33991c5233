// Command etcd_load runs a file of operations (PUT, GET, DELETE; see workload.py) against etcd, in the way in which
// `client.py run` runs it against our cluster: the rows are split into contiguous parts, one for each client; a client
// has one connection per node, visits the nodes in turn, and keeps some operations under way.
//
// It prints one JSON object: the seconds that the run took, the latency of each operation that was answered, in
// seconds, and how many failed, with the first reason. Gets are linearizable, as is etcd's default.
package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/clientv3"
)

// answer is what is printed.
type answer struct {
	Seconds   float64   `json:"seconds"`
	Latencies []float64 `json:"latencies_s"`
	Failed    int       `json:"failed"`
	Reason    string    `json:"reason"`
}

// part is the work of one client.
type part struct {
	rows  [][]string
	nodes []*clientv3.Client
	first int   // the node to begin with
	next  int64 // the row that comes next
}

func main() {
	endpoints := flag.String("endpoints", "127.0.0.1:2379", "the nodes, HOST:PORT, separated by commas")
	file := flag.String("file", "", "the operations")
	clients := flag.Int("clients", 2, "how many clients the rows are split among")
	inFlight := flag.Int("in-flight", 1, "operations that each client keeps under way")
	flag.Parse()

	rows, err := read(*file)
	if err != nil {
		fail(err)
	}
	if *clients > len(rows) {
		*clients = len(rows)
	}
	parts := make([]*part, *clients)
	for i := range parts {
		mine := rows[len(rows)*i / *clients : len(rows)*(i+1) / *clients]
		nodes, err := connect(strings.Split(*endpoints, ","))
		if err != nil {
			fail(err)
		}
		parts[i] = &part{rows: mine, nodes: nodes, first: i}
	}
	json.NewEncoder(os.Stdout).Encode(run(parts, *inFlight))
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "etcd_load:", err)
	os.Exit(1)
}

func read(name string) ([][]string, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	reader := csv.NewReader(file)
	reader.FieldsPerRecord = -1
	rows, err := reader.ReadAll()
	if err == nil && len(rows) == 0 {
		err = fmt.Errorf("%s: no operations in it", name)
	}
	return rows, err
}

// connect opens one connection to each node, and uses it once, so that nothing is set up while the clock runs.
func connect(endpoints []string) ([]*clientv3.Client, error) {
	var nodes []*clientv3.Client
	for _, endpoint := range endpoints {
		node, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, DialTimeout: 5 * time.Second})
		if err != nil {
			return nil, err
		}
		if _, err := node.Get(context.Background(), "nothing"); err != nil {
			return nil, err
		}
		nodes = append(nodes, node)
	}
	return nodes, nil
}

// run carries all parts out at once. Each lane writes to a slice of its own, so that none waits for another.
func run(parts []*part, inFlight int) answer {
	lanes := make([]answer, len(parts)*inFlight)
	var all sync.WaitGroup
	start := time.Now()
	for i := range lanes {
		all.Add(1)
		go func(lane *answer, work *part) {
			defer all.Done()
			work.lane(lane)
		}(&lanes[i], parts[i%len(parts)])
	}
	all.Wait()
	total := answer{Seconds: time.Since(start).Seconds(), Latencies: []float64{}}
	for _, lane := range lanes {
		total.Latencies = append(total.Latencies, lane.Latencies...)
		total.Failed += lane.Failed
		if total.Reason == "" {
			total.Reason = lane.Reason
		}
	}
	return total
}

// lane takes one row of the part after the other until there is none left.
func (work *part) lane(done *answer) {
	for {
		i := int(atomic.AddInt64(&work.next, 1)) - 1
		if i >= len(work.rows) {
			return
		}
		begin := time.Now()
		err := do(work.nodes[(i+work.first)%len(work.nodes)], work.rows[i])
		if err == nil {
			done.Latencies = append(done.Latencies, time.Since(begin).Seconds())
			continue
		}
		done.Failed++
		if done.Reason == "" {
			done.Reason = err.Error()
		}
	}
}

func do(node *clientv3.Client, row []string) (err error) {
	switch row[0] {
	case "PUT":
		_, err = node.Put(context.Background(), row[1], row[2])
	case "GET":
		_, err = node.Get(context.Background(), row[1])
	case "DELETE":
		_, err = node.Delete(context.Background(), row[1])
	default:
		err = fmt.Errorf("unknown verb %q", row[0])
	}
	return err
}
