package pacenote

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	pb "pacenote.dev/go/pacenotev1"
)

const (
	// How long one call waits for work: the server's own default.
	leaseWait = 30 * time.Second
	// What a drain takes beyond its grace where the server does not answer. Chosen.
	handBackTimeout = 5 * time.Second
	// How long a drain waits for work that may be on its way. Chosen: where work waits, it comes in milliseconds.
	onItsWay = 500 * time.Millisecond
)

// The causes of the end of a handler's context: see [context.Cause].
var (
	// ErrCancelled is for a job that somebody asked to stop; the error that wraps it says why.
	ErrCancelled = errors.New("the job is to stop")
	// ErrLeaseLost is for a job that is not this worker's any more: its lease ran out, went to another worker, or was
	// handed back. What an attempt tells then returns it as well.
	ErrLeaseLost = errors.New("the lease is lost")
)

// Handler does one attempt of a job. What it returns is the job's result, as [ToPayload] takes it.
//
// With an error the attempt ends otherwise: [*Fail] and [*Snooze], also wrapped, say how; any other, and a panic, is
// HANDLER_ERROR and may be tried again. ctx is done where somebody asked the job to stop, which is then cancelled,
// however the handler ends, and where the lease is lost: then nothing is told of it. No goroutine can be stopped
// from outside: heed ctx in whatever takes long.
type Handler func(ctx context.Context, attempt *Attempt) (any, error)

// Fail is what a handler returns where the attempt has failed.
type Fail struct {
	// UPPER_SNAKE_CASE and stable. Default HANDLER_ERROR.
	Reason string
	// For people; longer ones than 1 KiB are cut.
	Message string
	// Whether another attempt could help.
	Retryable bool
	// When the next attempt is due, in place of the backoff of the job's policy. Up to a year; 0 for that backoff.
	Delay time.Duration
}

func (f *Fail) Error() string { return f.Reason + ": " + f.Message }

// Snooze is what a handler returns where the job goes on after Delay, 0 to a year, in another attempt. Charges
// nothing.
type Snooze struct{ Delay time.Duration }

func (s *Snooze) Error() string { return "snoozed for " + s.Delay.String() }

// Worker leases jobs of the types of Handlers, and runs a handler for each. Client and Handlers are required.
//
// It tells nothing of a job that has gone to somebody else, and ends its own attempt before that may happen: when
// no renewal was answered that was sent within the lease, less a fifth of it or 2 s. An attempt may run twice all
// the same: the job id is the key for side effects.
type Worker struct {
	// pacenotev1.NewWorkerServiceClient(channel).
	Client pb.WorkerServiceClient
	// By the type of the job. 1 to 100.
	Handlers map[string]Handler
	// Shown as Job.worker_id. Best unique for a process, as the default is.
	ID string
	// Where its jobs may wait. Default: every queue.
	Queues []string
	// How many jobs run at once. 1 to 1,000; default 1.
	Concurrency int
	// How long a job stays with a worker that fell silent. 5 s to 5 min, default 15 s. A heartbeat goes out after a
	// third of it.
	Lease time.Duration
	// How long a drain waits for what runs. Default 20 s; a negative one does not wait.
	Grace time.Duration
}

// A worker that runs.
type run struct {
	Worker
	beat    time.Duration   // From heartbeat to heartbeat.
	quiet   time.Duration   // After so long without a renewal an attempt is stopped.
	leasing context.Context // Done when it drains.
	open    context.Context // Done when all is told, or cannot be.
	running sync.Map        // Of *Attempt, until their end was told.
	ends    sync.WaitGroup  // Of those.
	ended   chan struct{}   // One of them has made room.
}

// Run works until ctx is done, and then drains: it leases no more, waits up to Grace for what runs, hands back the
// rest and returns nil. Handlers that were handed back and do not heed their context may still be running then.
//
// The error is the server's, with its status, where it refuses to give work for good (INVALID_ARGUMENT, …).
func (w *Worker) Run(ctx context.Context) error {
	r := &run{Worker: *w, ended: make(chan struct{}, 1)}
	host, _ := os.Hostname() // Without one, the rest is unique.
	r.ID = cmp.Or(r.ID, fmt.Sprintf("%s-%d-%.8s", host, os.Getpid(), rand.Text()))
	r.Lease, r.Grace = cmp.Or(r.Lease, 15*time.Second), cmp.Or(r.Grace, 20*time.Second)
	r.Concurrency = cmp.Or(r.Concurrency, 1)
	r.beat, r.quiet = max(r.Lease/3, time.Second), r.Lease-min(2*time.Second, r.Lease/5)
	leasing, drain := context.WithCancel(ctx)
	open, closeAll := context.WithCancel(context.WithoutCancel(ctx))
	r.leasing, r.open = leasing, open
	go r.keepLeases()
	err := r.lease()
	drain()

	done := make(chan struct{})
	go func() { r.ends.Wait(); close(done) }()
	waitFor(done, r.Grace)
	for _, attempt := range r.attempts() {
		go r.end(attempt, handBack())
	}
	waitFor(done, handBackTimeout)
	closeAll()
	<-done
	return err
}

// Leases jobs until it drains, or is refused for good.
func (r *run) lease() error {
	var tries tries
	types := slices.Collect(maps.Keys(r.Handlers))
	request := &pb.LeaseRequest{WorkerId: r.ID, Types: types, Queues: r.Queues}
	request.Lease, request.Wait = durationpb.New(r.Lease), durationpb.New(leaseWait)
	for r.leasing.Err() == nil {
		request.MaxJobs = int32(r.Concurrency - len(r.attempts()))
		if request.MaxJobs == 0 {
			select {
			case <-r.ended:
			case <-r.leasing.Done():
			}
			continue
		}
		sent := time.Now()
		answer, err := r.poll(request)
		for _, leased := range answer.GetLeasedJobs() {
			r.begin(leased, sent.Add(answer.GetWaited().AsDuration()))
		}
		if answer.GetDrain() { // The server's, not ours: it says so at once, as long as it is there.
			err = status.Error(codes.Unavailable, "the server drains")
		}
		if err == nil {
			tries = 0
			continue
		}
		if r.leasing.Err() == nil {
			slog.Warn("the server gives no work", "error", err)
		}
		if err = tries.next(r.leasing, request, err); err != nil && r.leasing.Err() == nil {
			return fmt.Errorf("lease: %w", err)
		}
	}
	return nil
}

func (r *run) poll(request *pb.LeaseRequest) (*pb.LeaseResponse, error) {
	ctx, cancel := context.WithTimeout(r.open, leaseWait+callTimeout)
	defer cancel()
	// An answer that a cancel crosses on its way is heard by nobody: its jobs would be held, and charged, until their
	// leases end. What comes in time is handed back.
	defer context.AfterFunc(r.leasing, func() { time.AfterFunc(onItsWay, cancel) })()
	return r.Client.Lease(ctx, request)
}

// The lease began no earlier than claimed, by our own clock.
func (r *run) begin(leased *pb.LeasedJob, claimed time.Time) {
	attempt := &Attempt{Job: leased.GetJob(), worker: r, token: leased.GetLeaseToken()}
	attempt.held, attempt.lose = context.WithCancelCause(r.open)
	attempt.context, attempt.stop = context.WithCancelCause(attempt.held)
	attempt.term = time.AfterFunc(r.quiet, func() { attempt.lose(ErrLeaseLost) })
	r.running.Store(attempt, nil)
	r.ends.Add(1)
	// Not begun: it came in the moment in which the drain began, or so late that it may be another's by now.
	if r.leasing.Err() != nil || time.Since(claimed) >= r.quiet {
		go r.end(attempt, handBack())
		return
	}
	attempt.hear(false, "", claimed)
	go func() {
		request := failure(&Fail{Message: "the handler ended its goroutine", Retryable: true})
		// Told also where the handler leaves by runtime.Goexit.
		defer func() { r.end(attempt, request) }()
		request = attempt.outcome(r.Handlers[attempt.Job.GetType()])
	}()
}

// Tells the end of an attempt, the first one that comes. It goes on being renewed until that is answered.
func (r *run) end(attempt *Attempt, request *pb.FinishRequest) {
	if attempt.ended.Swap(true) {
		return
	}
	isLost := attempt.held.Err() != nil
	attempt.lose(ErrLeaseLost) // Goroutines that the handler left behind have nothing to tell any more.
	if !isLost {
		if err := r.finish(attempt.token, request); err != nil {
			slog.Warn("the end of an attempt was not taken in", "job_id", attempt.Job.GetJobId(), "error", err)
		}
	}
	attempt.term.Stop()
	r.running.Delete(attempt)
	r.ends.Done()
	select {
	case r.ended <- struct{}{}:
	default: // It is known that there is room.
	}
}

// Not bound to the term: nothing runs any more, and a server that comes back after it may still hold the lease.
func (r *run) finish(token string, request *pb.FinishRequest) error {
	request.LeaseToken = token
	_, err := call(r.open, r.Client.Finish, request)
	if status.Code(err) == codes.InvalidArgument {
		// A result that is too large, a reason that is none: said as an error, so that the job does not hang.
		refused := &Fail{Message: status.Convert(err).Message()}
		if request.GetResult() != nil {
			refused.Reason = "RESULT_INVALID"
		}
		request = failure(refused)
		request.LeaseToken = token
		_, err = call(r.open, r.Client.Finish, request)
	}
	return err
}

// Renews all leases at once, and hears which are lost and which jobs are to stop.
func (r *run) keepLeases() {
	var tries tries
	for pause := r.beat; !waitFor(r.open.Done(), pause); {
		// One that is lost is not renewed, lest it keep the job from others.
		attempts := slices.DeleteFunc(r.attempts(), func(attempt *Attempt) bool {
			return attempt.held.Err() != nil && !attempt.ended.Load()
		})
		pause = r.beat
		if err := r.renew(attempts); err != nil {
			pause = min(pause, tries.pause(err))
		} else {
			tries = 0
		}
	}
}

// The error is one that may heal.
func (r *run) renew(attempts []*Attempt) error {
	if len(attempts) == 0 {
		return nil
	}
	request := &pb.ExtendLeasesRequest{}
	for _, attempt := range attempts {
		request.LeaseTokens = append(request.LeaseTokens, attempt.token)
	}
	// Short, so that there is time for a second try before the attempts have to stop.
	ctx, cancel := context.WithTimeout(r.open, min(callTimeout, r.beat/2))
	defer cancel()
	sent := time.Now()
	answer, err := r.Client.ExtendLeases(ctx, request)
	if err != nil && !slices.Contains(transient, status.Code(err)) {
		// One token that the server does not know, as after its store was replaced, must not take the others along.
		half := len(attempts) / 2
		if half == 0 {
			attempts[0].lose(ErrLeaseLost)
			return nil
		}
		return errors.Join(r.renew(attempts[:half]), r.renew(attempts[half:]))
	}
	for i, lease := range answer.GetLeases() {
		if lease.GetLost() {
			attempts[i].lose(ErrLeaseLost)
		} else if lease.GetLeaseExpireTime() != nil { // Without one, the server cannot say how it stands.
			attempts[i].hear(lease.GetCancelRequested(), lease.GetCancelReason(), sent)
		}
	}
	return err
}

func (r *run) attempts() (attempts []*Attempt) {
	for attempt := range r.running.Range {
		attempts = append(attempts, attempt.(*Attempt))
	}
	return attempts
}

// Attempt is what a handler gets. Whatever it tells returns once the server has taken it in, and waits for one that
// is away: until the lease is lost, and then with [ErrLeaseLost]. It takes no context, so that a handler that was
// asked to stop can still tell how far it came. Safe for use by several goroutines: what they tell is stored one
// after the other.
type Attempt struct {
	// With its id, the key for side effects; and input and checkpoint, that Input and LastCheckpoint decode.
	Job *pb.Job

	worker  *run
	token   string
	held    context.Context // Done once the lease is lost or the end is being told: nothing is told any more.
	lose    context.CancelCauseFunc
	context context.Context // The handler's: held, and done where the job is to stop.
	stop    context.CancelCauseFunc
	ended   atomic.Bool // Its end is being told.

	inOrder sync.Mutex
	number  int64

	mutex   sync.Mutex
	renewed time.Time   // When the newest answered renewal was sent.
	term    *time.Timer // Loses the lease.
}

// Input decodes the job's input into a variable, as [FromPayload].
func (a *Attempt) Input(into any) error { return FromPayload(a.Job.GetInput(), into) }

// LastCheckpoint decodes the newest checkpoint of the attempts before into a variable, as [FromPayload]: where there
// is none it changes nothing.
func (a *Attempt) LastCheckpoint(into any) error { return FromPayload(a.Job.GetCheckpoint(), into) }

// Draining is closed when the worker stops: what does not end within its grace is handed back.
func (a *Attempt) Draining() <-chan struct{} { return a.worker.leasing.Done() }

// Progress tells how far it has come.
func (a *Attempt) Progress(progress *pb.Progress) error {
	return a.tell(nil, &pb.WorkerEvent{Event: &pb.WorkerEvent_Progress{Progress: progress}})
}

// Output tells partial output: text, in UTF-8, of at most 1 MiB. The stream is "stdout", "tokens", any name.
func (a *Attempt) Output(stream, text string) error {
	output := &pb.OutputChunk{Stream: stream, Chunk: &pb.Payload{Content: &pb.Payload_Text{Text: text}}}
	return a.tell(nil, &pb.WorkerEvent{Event: &pb.WorkerEvent_Output{Output: output}})
}

// Log tells a line for people. Fields are more by name, as [structpb.NewStruct] takes them; nil for none.
func (a *Attempt) Log(level slog.Level, message string, fields map[string]any) error {
	more, err := structpb.NewStruct(fields)
	if err != nil {
		return err
	}
	line := &pb.LogLine{Message: message, Fields: more}
	line.Level = pb.LogLine_Level(min(max(level+4, 0), 12)/4 + 1) // -4, 0, 4 and 8: DEBUG, INFO, WARN and ERROR.
	return a.tell(nil, &pb.WorkerEvent{Event: &pb.WorkerEvent_Log{Log: line}})
}

// Checkpoint tells where the next attempt could go on, as [ToPayload] takes it; kept once this returns.
func (a *Attempt) Checkpoint(value any) error {
	checkpoint, err := ToPayload(value)
	if err != nil {
		return err
	}
	return a.tell(checkpoint)
}

// Sends a report until it is answered or the lease is lost.
func (a *Attempt) tell(checkpoint *pb.Payload, events ...*pb.WorkerEvent) error {
	// One at a time: a number that comes after a higher one is taken for one that came before.
	a.inOrder.Lock()
	defer a.inOrder.Unlock()
	a.number++
	sent := time.Now()
	answer, err := call(a.held, a.worker.Client.Report, &pb.ReportRequest{
		LeaseToken: a.token, Events: events, ReportNumber: a.number, Checkpoint: checkpoint,
	})
	if err == nil {
		a.hear(answer.GetCancelRequested(), answer.GetCancelReason(), sent)
		return nil
	}
	if code := status.Code(err); code == codes.FailedPrecondition || code == codes.NotFound {
		a.lose(ErrLeaseLost)
	}
	if a.held.Err() != nil && !errors.Is(err, ErrLeaseLost) {
		err = fmt.Errorf("%w: %w", ErrLeaseLost, err)
	}
	return err
}

// Takes note of how the lease stands, by the answer to what was sent then.
func (a *Attempt) hear(isToStop bool, reason string, sent time.Time) {
	a.mutex.Lock()
	if sent.After(a.renewed) {
		a.renewed = sent
		a.term.Reset(time.Until(sent.Add(a.worker.quiet)))
	}
	a.mutex.Unlock()
	if isToStop {
		a.stop(fmt.Errorf("%w: %s", ErrCancelled, reason))
	}
}

// Runs the handler, and says how it ended.
func (a *Attempt) outcome(handler Handler) (request *pb.FinishRequest) {
	defer func() {
		if cause := recover(); cause != nil {
			request = failure(&Fail{Message: fmt.Sprint(cause), Retryable: true})
			request.GetError().Detail = strings.ToValidUTF8(string(debug.Stack()), "?")
		}
		if errors.Is(context.Cause(a.context), ErrCancelled) {
			request = &pb.FinishRequest{Outcome: &pb.FinishRequest_Cancelled{Cancelled: &pb.Cancelled{}}}
		}
	}()
	value, err := handler(a.context, a)
	if err == nil {
		result, err := ToPayload(value)
		if err != nil {
			return failure(&Fail{Reason: "RESULT_INVALID", Message: err.Error()})
		}
		return &pb.FinishRequest{Outcome: &pb.FinishRequest_Result{Result: result}}
	}
	if snooze, ok := errors.AsType[*Snooze](err); ok {
		later := &pb.Snooze{Delay: durationpb.New(snooze.Delay)}
		return &pb.FinishRequest{Outcome: &pb.FinishRequest_Snooze{Snooze: later}}
	}
	if fail, ok := errors.AsType[*Fail](err); ok {
		return failure(fail)
	}
	return failure(&Fail{Message: err.Error(), Retryable: true})
}

func failure(fail *Fail) *pb.FinishRequest {
	reason, message := cmp.Or(fail.Reason, "HANDLER_ERROR"), strings.ToValidUTF8(fail.Message, "?")
	failed := &pb.JobError{Reason: reason, Message: message, Retryable: fail.Retryable}
	request := &pb.FinishRequest{Outcome: &pb.FinishRequest_Error{Error: failed}}
	if fail.Delay > 0 {
		request.RetryDelay = durationpb.New(fail.Delay)
	}
	return request
}

func handBack() *pb.FinishRequest {
	return &pb.FinishRequest{Outcome: &pb.FinishRequest_HandBack{HandBack: &pb.HandBack{}}}
}

// Whether it is done in time.
func waitFor(done <-chan struct{}, limit time.Duration) bool {
	select {
	case <-done:
		return true
	case <-time.After(limit):
		return false
	}
}
