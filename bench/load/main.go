// The gRPC load, compiled, so that it costs little beside what it measures: `load MODE JSON` prints one
// JSON line. Messages are bytes put together by hand; bench/wire.py has the same in Python.
//
// It exits with an error if anything it sent was refused: a figure of failures is no figure.
package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log"
	"math"
	mathrand "math/rand"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protowire"
)

const service = "/tcqueue.v1.Queue/"

// Options of a mode, as the Python side passes them. Seconds is how long to measure, after two more of
// warming up; Definition is a serialized TaskDefinition without a group; WorkMs is how long a worker keeps
// a run between accepting and resolving it, 0 for not at all.
type Options struct {
	Address       string  `json:"address"`
	Queue         string  `json:"queue"`
	Authorization string  `json:"authorization"`
	Definition    []byte  `json:"definition"`
	Workers       int     `json:"workers"`
	Slots         int     `json:"slots"`
	Batch         int     `json:"batch"`
	Callers       int     `json:"callers"`
	Seconds       float64 `json:"seconds"`
	Count         int     `json:"count"`
	WorkMs        float64 `json:"work_ms"`
}

// raw passes messages through as bytes.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)   { return *v.(*[]byte), nil }
func (raw) Unmarshal(b []byte, v any) error { *v.(*[]byte) = append([]byte(nil), b...); return nil }
func (raw) Name() string                    { return "proto" }

type driver struct {
	Options
	ctx context.Context
}

func (d *driver) connect() *grpc.ClientConn {
	connection, err := grpc.NewClient(
		d.Address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{}), grpc.MaxCallRecvMsgSize(64<<20)),
	)
	must(err)
	return connection
}

func (d *driver) invoke(connection *grpc.ClientConn, method string, request []byte) {
	var answer []byte
	must(connection.Invoke(d.ctx, service+method, &request, &answer))
}

// stream opens a claim stream on a connection of its own.
func (d *driver) stream(worker string, slots int) grpc.ClientStream {
	stream, err := d.connect().NewStream(
		d.ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, service+"ClaimWork",
	)
	must(err)
	opening := field(1, []byte(d.Queue))
	opening = append(opening, field(2, []byte("bench"))...)
	opening = append(opening, field(3, []byte(worker))...)
	opening = protowire.AppendTag(opening, 4, protowire.VarintType)
	opening = protowire.AppendVarint(opening, uint64(slots))
	send(stream, field(1, opening))
	return stream
}

func send(stream grpc.ClientStream, message []byte) { must(stream.SendMsg(&message)) }

// next reads one message of a stream: its kind (1 claims, 4 resolved, others) and the ids in it.
func next(stream grpc.ClientStream) (protowire.Number, [][]byte) {
	var message []byte
	must(stream.RecvMsg(&message))
	kind, body := first(message)
	var ids [][]byte
	switch kind {
	case 1: // repeated Claim claims = 1, TaskStatus status = 1, string task_id = 1
		each(body, 1, func(claim []byte) { ids = append(ids, find(find(claim, 1), 1)) })
	case 4: // repeated ResolutionResult results = 1
		each(body, 1, func(result []byte) {
			if refused := find(result, 4); refused != nil {
				log.Fatalf("a resolution was refused: %s", find(refused, 2))
			}
			ids = append(ids, find(result, 1))
		})
	case 3, 6:
		log.Fatalf("unexpected message %d on a stream", kind)
	}
	return kind, ids
}

// accept takes on run 0 of each task.
func accept(stream grpc.ClientStream, ids [][]byte) {
	var accepts []byte
	for _, id := range ids {
		accepts = append(accepts, field(1, field(1, id))...)
	}
	send(stream, field(2, accepts))
}

// resolve completes run 0 of each task.
func resolve(stream grpc.ClientStream, ids [][]byte) {
	var resolutions []byte
	for _, id := range ids {
		resolutions = append(resolutions, field(1, append(field(1, id), 0x18, 0x01))...)
	}
	send(stream, field(4, resolutions))
}

// finish accepts and completes run 0 of each task.
func finish(stream grpc.ClientStream, ids [][]byte) {
	accept(stream, ids)
	resolve(stream, ids)
}

// lives measures whole lives per second: created (one by one, or as graphs of Batch), claimed on
// streams, accepted, completed. Creation is held to what keeps the workers busy.
func (d *driver) lives() any {
	var resolved atomic.Int64
	room := make(chan struct{}, max(2*d.Workers*d.Slots, 4*d.Batch, d.Callers))
	for range cap(room) {
		room <- struct{}{}
	}
	for worker := range d.Workers {
		go func() {
			stream := d.stream(fmt.Sprintf("w%d", worker), d.Slots)
			var sending sync.Mutex // resolutions that come after some work are sent from timers
			for {
				kind, ids := next(stream)
				if kind == 1 && d.WorkMs == 0 {
					finish(stream, ids)
				} else if kind == 1 {
					sending.Lock()
					accept(stream, ids)
					sending.Unlock()
					time.AfterFunc(time.Duration(d.WorkMs*float64(time.Millisecond)), func() {
						sending.Lock()
						defer sending.Unlock()
						resolve(stream, ids)
					})
				} else if kind == 4 {
					resolved.Add(int64(len(ids)))
					for range ids {
						room <- struct{}{}
					}
				}
			}
		}()
	}
	connections := make([]*grpc.ClientConn, min(d.Callers, 4))
	for i := range connections {
		connections[i] = d.connect()
	}
	for caller := range d.Callers {
		go func() {
			connection := connections[caller%len(connections)]
			for made := 0; ; made++ {
				task := d.Definition
				if made%32 == 0 || d.Batch > 1 {
					task = append(append([]byte(nil), d.Definition...), field(6, slugid())...)
				}
				for range d.Batch {
					<-room
				}
				if d.Batch == 1 {
					d.invoke(connection, "CreateTask", newTask(slugid(), task))
					continue
				}
				var request []byte
				for range d.Batch {
					request = append(request, field(1, newTask(slugid(), task))...)
				}
				d.invoke(connection, "CreateTasks", request)
			}
		}()
	}
	return d.rate(&resolved)
}

// creates measures unary creations per second.
func (d *driver) creates() any {
	var made atomic.Int64
	connections := make([]*grpc.ClientConn, min(d.Callers, 4))
	for i := range connections {
		connections[i] = d.connect()
	}
	task := append(append([]byte(nil), d.Definition...), field(6, slugid())...)
	for caller := range d.Callers {
		go func() {
			for {
				d.invoke(connections[caller%len(connections)], "CreateTask", newTask(slugid(), task))
				made.Add(1)
			}
		}()
	}
	return d.rate(&made)
}

// pickup measures milliseconds from CreateTask's call and from its return to the claim's arrival, on an
// idle queue with eight waiting streams.
func (d *driver) pickup() any {
	arrived := make(chan time.Time, 1)
	for worker := range 8 {
		stream := d.stream(fmt.Sprintf("p%d", worker), 1)
		go func() {
			for {
				kind, ids := next(stream)
				if kind == 1 {
					arrived <- time.Now()
					finish(stream, ids)
				}
			}
		}()
	}
	connection := d.connect()
	var fromCall, fromReturn []float64
	for i := range d.Count + 20 {
		time.Sleep(time.Duration(10+mathrand.Intn(20)) * time.Millisecond)
		request := newTask(slugid(), d.Definition)
		begin := time.Now()
		d.invoke(connection, "CreateTask", request)
		returned := time.Now()
		came := <-arrived
		if i >= 20 {
			fromCall = append(fromCall, came.Sub(begin).Seconds()*1000)
			fromReturn = append(fromReturn, math.Max(0, came.Sub(returned).Seconds()*1000))
		}
	}
	return map[string]any{"from_call": fromCall, "from_return": fromReturn}
}

func (d *driver) rate(count *atomic.Int64) float64 {
	time.Sleep(2 * time.Second)
	begin, start := time.Now(), count.Load()
	time.Sleep(time.Duration(d.Seconds * float64(time.Second)))
	return float64(count.Load()-start) / time.Since(begin).Seconds()
}

func newTask(id, task []byte) []byte { return append(field(1, id), field(2, task)...) }

// slugid is a fresh nice one.
func slugid() []byte {
	var b [16]byte
	_, err := rand.Read(b[:])
	must(err)
	b[0] &= 0x7f
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return []byte(base64.RawURLEncoding.EncodeToString(b[:]))
}

func field(number protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
}

// each calls do with every value of a length-delimited field.
func each(message []byte, number protowire.Number, do func([]byte)) {
	for len(message) > 0 {
		found, kind, n := protowire.ConsumeTag(message)
		message = message[n:]
		if kind == protowire.BytesType {
			value, n := protowire.ConsumeBytes(message)
			message = message[n:]
			if found == number {
				do(value)
			}
			continue
		}
		message = message[protowire.ConsumeFieldValue(found, kind, message):]
	}
}

// find is the last value of a length-delimited field; nil without one.
func find(message []byte, number protowire.Number) (last []byte) {
	each(message, number, func(value []byte) { last = value })
	return last
}

// first is the only field of a message that is one of several.
func first(message []byte) (protowire.Number, []byte) {
	number, _, n := protowire.ConsumeTag(message)
	value, _ := protowire.ConsumeBytes(message[n:])
	return number, value
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func main() {
	d := &driver{}
	must(json.Unmarshal([]byte(os.Args[2]), &d.Options))
	d.ctx = metadata.AppendToOutgoingContext(context.Background(), "authorization", d.Authorization)
	modes := map[string]func() any{"lives": d.lives, "creates": d.creates, "pickup": d.pickup}
	must(json.NewEncoder(os.Stdout).Encode(modes[os.Args[1]]()))
}
