package pacenote_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"pacenote.dev/go"
	pb "pacenote.dev/go/pacenotev1"
)

// How long anything may take that a test waits for.
const limit = 20 * time.Second

var binary, _ = filepath.Abs(os.Getenv("PACENOTE"))

func TestMain(m *testing.M) {
	if _, err := exec.LookPath(binary); err != nil {
		fmt.Fprintf(os.Stderr, "NOTHING WAS CHECKED: PACENOTE=%q is no program\n", os.Getenv("PACENOTE"))
		if os.Getenv("CI") == "true" {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A server on a free port, with a store of its own, that can be killed and started again on both.
type server struct {
	t       *testing.T
	folder  string
	address string
	process *os.Process
}

func start(t *testing.T) *server {
	t.Parallel()
	s := &server{t: t, folder: t.TempDir(), address: "127.0.0.1:0"}
	s.start()
	t.Cleanup(s.kill)
	return s
}

func (s *server) start() {
	path := filepath.Join(s.folder, "server.log")
	log, err := os.Create(path)
	must(s.t, err)
	defer log.Close()
	command := exec.Command(binary, "serve", "--listen", s.address)
	command.Dir, command.Stderr = s.folder, log
	command.Env = slices.DeleteFunc(os.Environ(), func(setting string) bool {
		return strings.HasPrefix(setting, "PACENOTE")
	})
	must(s.t, command.Start())
	s.process = command.Process
	listening := regexp.MustCompile(`(?m)^listening on (\S+)$`)
	eventually(s.t, func() bool {
		text, err := os.ReadFile(path)
		found := listening.FindSubmatch(text)
		if found != nil {
			s.address = string(found[1])
		}
		return err == nil && found != nil
	})
}

func (s *server) kill() {
	_ = s.process.Kill() // It may be dead already.
	_, _ = s.process.Wait()
}

func (s *server) signal(signal os.Signal) { must(s.t, s.process.Signal(signal)) }

func (s *server) stopAndContinue() (goOn func()) {
	s.signal(syscall.SIGSTOP)
	return func() { s.signal(syscall.SIGCONT) }
}

func (s *server) connect(options ...grpc.DialOption) *grpc.ClientConn {
	channel, err := pacenote.Connect(s.address, options...)
	must(s.t, err)
	s.t.Cleanup(func() { _ = channel.Close() })
	return channel
}

func (s *server) jobs(options ...grpc.DialOption) pb.JobServiceClient {
	return pb.NewJobServiceClient(s.connect(options...))
}

func (s *server) workers(options ...grpc.DialOption) pb.WorkerServiceClient {
	return pb.NewWorkerServiceClient(s.connect(options...))
}

func (s *server) submit(jobType string, input any) *pb.Job {
	return s.submitted(&pb.SubmitRequest{Type: jobType, Input: payload(s.t, input)})
}

func (s *server) submitted(request *pb.SubmitRequest) *pb.Job {
	answer, err := pacenote.Submit(timely(s.t), s.jobs(), request)
	must(s.t, err)
	return answer.GetJob()
}

func (s *server) get(jobID string) *pb.Job {
	answer, err := s.jobs().Get(timely(s.t), &pb.GetRequest{JobId: jobID})
	must(s.t, err)
	return answer.GetJob()
}

func (s *server) cancel(jobID, reason string) {
	_, err := s.jobs().Cancel(timely(s.t), &pb.CancelRequest{JobId: jobID, Reason: reason})
	must(s.t, err)
}

func (s *server) list(states ...pb.Job_State) []*pb.Job {
	answer, err := s.jobs().List(timely(s.t), &pb.ListRequest{States: states, PageSize: 1000})
	must(s.t, err)
	return answer.GetJobs()
}

// Every message of a job's watch from its beginning.
func (s *server) watch(jobID string) iter.Seq2[*pb.WatchJobResponse, error] {
	return pacenote.Watch(timely(s.t), s.jobs(), &pb.WatchJobRequest{JobId: jobID, AfterSequence: new(int64(0))})
}

// All events of a job, and the job at its end.
func (s *server) end(jobID string) ([]*pb.JobEvent, *pb.Job) {
	s.t.Helper()
	return gathered(s.t, s.watch(jobID))
}

func (s *server) knows(jobType string) bool {
	_, err := s.jobs().Submit(timely(s.t), &pb.SubmitRequest{Type: jobType, ValidateOnly: true})
	return err == nil
}

// From here on jobs of the type work may be submitted.
func (s *server) makeKnown() {
	if leased := s.lease("the first one", 0); len(leased) > 0 {
		s.t.Fatal("there was work already")
	}
}

func (s *server) lease(workerID string, wait time.Duration) []*pb.LeasedJob {
	answer, err := s.workers().Lease(timely(s.t), &pb.LeaseRequest{
		WorkerId: workerID, Types: []string{"work"},
		Lease: durationpb.New(5 * time.Second), Wait: durationpb.New(wait),
	})
	must(s.t, err)
	return answer.GetLeasedJobs()
}

func (s *server) finish(token, result string) error {
	outcome := &pb.FinishRequest_Result{Result: payload(s.t, result)}
	_, err := s.workers().Finish(timely(s.t), &pb.FinishRequest{LeaseToken: token, Outcome: outcome})
	return err
}

// Runs a worker for the type work, known to the server, until it is drained: by the answer, or by the test's end.
func (s *server) working(handler pacenote.Handler, settings pacenote.Worker) (drain func()) {
	if settings.Client == nil {
		settings.Client = s.workers()
	}
	if settings.Lease == 0 {
		settings.Lease = 5 * time.Second
	}
	if settings.Grace == 0 {
		settings.Grace = -1
	}
	settings.Handlers = map[string]pacenote.Handler{"work": handler}
	if !s.knows("work") {
		s.makeKnown()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- settings.Run(ctx) }()
	drain = sync.OnceFunc(func() {
		s.t.Helper()
		cancel()
		if err := received(s.t, done); err != nil {
			s.t.Error("run:", err)
		}
	})
	s.t.Cleanup(drain)
	return drain
}

// All events of a watch from the beginning, without a hole or a double, and the job at its end.
func gathered(t *testing.T, messages iter.Seq2[*pb.WatchJobResponse, error]) (events []*pb.JobEvent, end *pb.Job) {
	t.Helper()
	for message, err := range messages {
		must(t, err)
		for _, event := range message.GetEvents().GetEvents() {
			events = append(events, event)
			if event.GetSequence() != int64(len(events)) {
				t.Fatalf("event %d comes as number %d", event.GetSequence(), len(events))
			}
		}
		if end != nil {
			t.Fatal("something came after the final snapshot")
		}
		end = message.GetSnapshot()
	}
	if end.GetEndTime() == nil || end.GetLastSequence() != int64(len(events)) {
		t.Fatalf("the watch ended with %v after %d events", end, len(events))
	}
	return events, end
}

// What was written to a stream, whose offsets have no hole.
func outputs(t *testing.T, events []*pb.JobEvent, stream string) (text string) {
	t.Helper()
	for _, event := range events {
		if output := event.GetOutput(); output.GetStream() == stream && output != nil {
			same(t, output.GetOffset(), int64(len(text)))
			text += output.GetChunk().GetText()
		}
	}
	return text
}

func payload(t *testing.T, value any) *pb.Payload {
	t.Helper()
	payload, err := pacenote.ToPayload(value)
	must(t, err)
	return payload
}

func result(t *testing.T, job *pb.Job) (value any) {
	t.Helper()
	must(t, pacenote.FromPayload(job.GetResult(), &value))
	return value
}

// Code and reason of a refusal.
func refusal(err error) string {
	answer, _ := status.FromError(err)
	for _, detail := range answer.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return answer.Code().String() + " " + info.GetReason()
		}
	}
	return answer.Code().String()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func same[T any](t *testing.T, found, expected T) {
	t.Helper()
	if fmt.Sprintf("%#v", found) != fmt.Sprintf("%#v", expected) {
		t.Fatalf("found %#v instead of %#v", found, expected)
	}
}

func eventually(t *testing.T, look func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !look(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it did not happen in time")
		}
	}
}

func received[T any](t *testing.T, channel <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-channel:
	case <-time.After(limit):
		t.Fatal("it did not happen in time")
	}
	return value
}

// For goroutines that are not the test's own, which must not call Fatal.
func happens[T any](channel <-chan T) error {
	select {
	case <-channel:
		return nil
	case <-time.After(limit):
		return errors.New("it did not happen in time")
	}
}

func timely(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func method(full string) string { return full[strings.LastIndex(full, "/")+1:] }

var errBroke = status.Error(codes.Unavailable, "the connection broke")

// Loses each different request of some methods once, or else the first answer to it.
type loses struct {
	methods  []string
	requests bool
	mutex    sync.Mutex
	lost     map[string]int
}

func (l *loses) option() grpc.DialOption {
	return grpc.WithUnaryInterceptor(func(
		ctx context.Context, full string, request, answer any, channel *grpc.ClientConn, invoke grpc.UnaryInvoker,
		options ...grpc.CallOption,
	) error {
		text, err := proto.MarshalOptions{Deterministic: true}.Marshal(request.(proto.Message))
		if err != nil {
			return err
		}
		key := method(full) + " " + string(text)
		l.mutex.Lock()
		if l.lost == nil {
			l.lost = map[string]int{}
		}
		isFirst := slices.Contains(l.methods, method(full)) && l.lost[key] == 0
		if isFirst {
			l.lost[key]++
		}
		l.mutex.Unlock()
		if isFirst && l.requests {
			return errBroke
		}
		err = invoke(ctx, full, request, answer, channel, options...)
		if isFirst && err == nil {
			return errBroke
		}
		return err
	})
}

func (l *loses) counts() map[string]int {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	counts := map[string]int{}
	for key := range maps.Keys(l.lost) {
		counts[strings.Fields(key)[0]]++
	}
	return counts
}

// Looks at each unary call of a method before it is made; an error is the call's.
func before(name string, look func(ctx context.Context, request any) error) grpc.DialOption {
	return around(name, func(ctx context.Context, request, _ any, invoke func() error) error {
		if err := look(ctx, request); err != nil {
			return err
		}
		return invoke()
	})
}

// Stands around each unary call of a method.
func around(
	name string, call func(ctx context.Context, request, answer any, invoke func() error) error,
) grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(func(
		ctx context.Context, full string, request, answer any, channel *grpc.ClientConn, invoke grpc.UnaryInvoker,
		options ...grpc.CallOption,
	) error {
		invoked := func() error { return invoke(ctx, full, request, answer, channel, options...) }
		if method(full) != name {
			return invoked()
		}
		return call(ctx, request, answer, invoked)
	})
}

// Counts the heartbeats that were answered.
func heartbeats(count *atomic.Int32) grpc.DialOption {
	return around("ExtendLeases", func(_ context.Context, _, _ any, invoke func() error) error {
		err := invoke()
		if err == nil {
			count.Add(1)
		}
		return err
	})
}

// Calls for each stream that is opened.
func streams(open func(ctx context.Context, stream grpc.ClientStream) grpc.ClientStream) grpc.DialOption {
	return grpc.WithStreamInterceptor(func(
		ctx context.Context, description *grpc.StreamDesc, channel *grpc.ClientConn, full string, streamer grpc.Streamer,
		options ...grpc.CallOption,
	) (grpc.ClientStream, error) {
		stream, err := streamer(ctx, description, channel, full, options...)
		return open(ctx, stream), err
	})
}
