package pacenote_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"pacenote.dev/go"
	pb "pacenote.dev/go/pacenotev1"
)

func TestAllThatAWorkerTellsIsSeenInTheWatch(t *testing.T) {
	s := start(t)
	type order struct {
		Rows int64
		Name string
	}
	s.working(func(_ context.Context, attempt *pacenote.Attempt) (any, error) {
		var input order
		err := attempt.Input(&input)
		err = errors.Join(
			err,
			attempt.Log(slog.LevelWarn, "begins", map[string]any{"of": input.Name}),
			attempt.Progress(&pb.Progress{
				CompletedUnits: new(int64(1)), TotalUnits: &input.Rows, Unit: "rows", Phase: "read",
			}),
			attempt.Output("stdout", "one "),
			attempt.Output("stdout", "zwölf"),
			attempt.Output("tokens", "other"),
			attempt.Checkpoint(map[string]int{"row": 1}),
			attempt.Progress(&pb.Progress{Fraction: new(0.75)}),
			attempt.Log(slog.LevelDebug-4, "ends", nil),
		)
		return map[string]any{"rows": input.Rows, "text": "fertig", "half": 0.5}, err
	}, pacenote.Worker{ID: "worker-1"})
	job := s.submit("work", order{Rows: 4, Name: "Ada"})
	events, end := s.end(job.GetJobId())
	same(t, end.GetState(), pb.Job_STATE_SUCCEEDED)
	same(t, end.GetWorkerId(), "worker-1")
	same(t, result(t, end), any(map[string]any{"rows": 4.0, "text": "fertig", "half": 0.5}))
	var checkpoint map[string]int
	must(t, pacenote.FromPayload(end.GetCheckpoint(), &checkpoint))
	same(t, checkpoint, map[string]int{"row": 1})
	same(t, outputs(t, events, "stdout"), "one zwölf")
	same(t, outputs(t, events, "tokens"), "other")
	var lines []string
	for _, event := range events {
		if line := event.GetLog(); line != nil {
			lines = append(lines, fmt.Sprint(line.GetLevel(), line.GetMessage(), line.GetFields().AsMap()))
		}
	}
	same(t, lines, []string{"LEVEL_WARN" + "begins" + "map[of:Ada]", "LEVEL_DEBUG" + "ends" + "map[]"})
	same(t, end.GetProgress().GetFraction(), 0.75)
}

func TestWhatIsSentAgainBecauseTheConnectionBrokeIsStoredOnce(t *testing.T) {
	for _, requests := range []bool{false, true} {
		t.Run(fmt.Sprintf("requests lost: %v", requests), func(t *testing.T) {
			s := start(t)
			lost := &loses{methods: []string{"Report", "Finish"}, requests: requests}
			s.working(func(_ context.Context, attempt *pacenote.Attempt) (any, error) {
				for number := range 4 {
					if err := attempt.Output("stdout", fmt.Sprintf("%d ", number)); err != nil {
						return nil, err
					}
				}
				return "done", nil
			}, pacenote.Worker{Client: s.workers(lost.option())})
			events, end := s.end(s.submit("work", nil).GetJobId())
			same(t, outputs(t, events, "stdout"), "0 1 2 3 ")
			same(t, result(t, end), any("done"))
			same(t, end.GetAttempt(), 1)
			same(t, lost.counts(), map[string]int{"Report": 4, "Finish": 1})
		})
	}
}

func TestWhatSeveralGoroutinesTellIsStoredOnce(t *testing.T) {
	s := start(t)
	lost := &loses{methods: []string{"Report"}}
	s.working(func(_ context.Context, attempt *pacenote.Attempt) (any, error) {
		var writers sync.WaitGroup
		for writer := range 8 {
			writers.Go(func() {
				for number := range 4 {
					_ = attempt.Output("stdout", fmt.Sprintf("%d/%d ", writer, number)) // Looked for below.
				}
			})
		}
		writers.Wait()
		return nil, nil
	}, pacenote.Worker{Client: s.workers(lost.option())})
	events, end := s.end(s.submit("work", nil).GetJobId())
	words := strings.Fields(outputs(t, events, "stdout"))
	same(t, len(words), 32)
	next := map[string]string{}
	for _, word := range words {
		writer, number, _ := strings.Cut(word, "/")
		same(t, number, fmt.Sprint(len(next[writer])))
		next[writer] += "."
	}
	same(t, end.GetResult().GetContent() == nil, true)
}

func TestAWorkerOutlivesARestartOfItsServer(t *testing.T) {
	s := start(t)
	told, goOn := make(chan struct{}, 2), make(chan struct{})
	s.working(func(_ context.Context, attempt *pacenote.Attempt) (any, error) {
		for number := range 10 {
			if err := attempt.Output("stdout", fmt.Sprintf("%d ", number)); err != nil {
				return nil, err
			}
			if number == 4 {
				told <- struct{}{}
				if err := happens(goOn); err != nil {
					return nil, err
				}
			}
		}
		return attempt.Job.GetAttempt(), nil
	}, pacenote.Worker{})
	job := s.submit("work", nil)
	ends := make(chan func(), 1)
	go func() {
		events, end := s.end(job.GetJobId())
		ends <- func() {
			same(t, outputs(t, events, "stdout"), "0 1 2 3 4 5 6 7 8 9 ")
			same(t, result(t, end), any(1.0))
		}
	}()
	received(t, told)
	s.kill()
	close(goOn) // It tells more while the server is away.
	s.start()
	received(t, ends)()
	// And it goes on leasing.
	_, end := s.end(s.submit("work", nil).GetJobId())
	same(t, end.GetState(), pb.Job_STATE_SUCCEEDED)
}

func TestAHeartbeatKeepsALeaseAndBringsACancel(t *testing.T) {
	s := start(t)
	begun, reason := make(chan struct{}, 1), make(chan error, 1)
	var answered atomic.Int32
	finished := make(chan any, 1)
	looks := before("Finish", func(_ context.Context, request any) error {
		finished <- request.(*pb.FinishRequest).GetOutcome()
		return nil
	})
	s.working(func(ctx context.Context, attempt *pacenote.Attempt) (any, error) {
		begun <- struct{}{}
		_ = happens(ctx.Done()) // It tells nothing meanwhile.
		// Who was asked to stop can still tell.
		reason <- errors.Join(attempt.Output("stdout", "stops"), context.Cause(ctx))
		return "too late", nil
	}, pacenote.Worker{Client: s.workers(heartbeats(&answered), looks)})
	job := s.submit("work", nil)
	received(t, begun)
	eventually(t, func() bool { return answered.Load() >= 5 }) // Of 5/3 s each: the lease of 5 s would be over.
	running := s.get(job.GetJobId())
	same(t, fmt.Sprint(running.GetState(), running.GetAttempt()), "STATE_RUNNING 1")
	s.cancel(job.GetJobId(), "enough")
	events, end := s.end(job.GetJobId())
	same(t, fmt.Sprint(end.GetState(), end.GetAttempt()), "STATE_CANCELLED 1")
	same(t, outputs(t, events, "stdout"), "stops")
	if err := received(t, reason); !errors.Is(err, pacenote.ErrCancelled) || !strings.HasSuffix(err.Error(), ": enough") {
		t.Error(err)
	}
	if _, ok := received(t, finished).(*pb.FinishRequest_Cancelled); !ok {
		t.Error("it did not end as cancelled")
	}
}

// The end of an attempt is not taken in for longer than the lease, and neither is what it told before. Heartbeats
// are: it is still the same attempt.
func TestHeartbeatsKeepALeaseWhateverElseIsNotAnswered(t *testing.T) {
	s := start(t)
	var answered atomic.Int32
	holdUp := func(count int32) func(context.Context, any) error {
		return func(context.Context, any) error {
			eventually(t, func() bool { return answered.Load() >= count })
			return nil
		}
	}
	client := s.workers(heartbeats(&answered), before("Report", holdUp(3)), before("Finish", holdUp(7)))
	s.working(func(ctx context.Context, attempt *pacenote.Attempt) (any, error) {
		return "done", errors.Join(attempt.Output("stdout", "late "), attempt.Output("stdout", "told"), ctx.Err())
	}, pacenote.Worker{Client: client})
	events, end := s.end(s.submit("work", nil).GetJobId())
	same(t, outputs(t, events, "stdout"), "late told")
	same(t, fmt.Sprint(end.GetState(), end.GetAttempt()), "STATE_SUCCEEDED 1")
}

func TestACancelIsHeardWithTheNextReport(t *testing.T) {
	s := start(t)
	begun := make(chan struct{}, 1)
	s.working(func(ctx context.Context, attempt *pacenote.Attempt) (any, error) {
		begun <- struct{}{}
		for ctx.Err() == nil {
			if err := attempt.Progress(&pb.Progress{}); err != nil {
				return nil, err
			}
		}
		return nil, &pacenote.Fail{Reason: "WHATEVER", Delay: time.Hour, Retryable: true}
	}, pacenote.Worker{Lease: 5 * time.Minute}) // No heartbeat comes in time.
	job := s.submit("work", nil)
	received(t, begun)
	s.cancel(job.GetJobId(), "")
	_, end := s.end(job.GetJobId())
	same(t, end.GetState(), pb.Job_STATE_CANCELLED)
}

// Heartbeats are lost until the worker stops by its own clock, which is before another one may get the job. The
// handler does not heed that; its job goes to the other one all the same, whose word is what holds.
func TestAWorkerThatIsCutOffIsQuietBeforeAnotherOneHasItsJob(t *testing.T) {
	s := start(t)
	var isStopped atomic.Bool
	cutOff := before("ExtendLeases", func(context.Context, any) error {
		if isStopped.Load() {
			return nil
		}
		return errBroke
	})
	begun, stopped := make(chan struct{}, 1), make(chan time.Time, 1)
	told, taken := make(chan error, 1), make(chan struct{})
	drain := s.working(func(ctx context.Context, attempt *pacenote.Attempt) (any, error) {
		begun <- struct{}{}
		_ = happens(ctx.Done())
		stopped <- time.Now()
		isStopped.Store(true)
		_ = happens(taken)
		told <- attempt.Output("stdout", "too late")
		return "first", context.Cause(ctx)
	}, pacenote.Worker{Client: s.workers(cutOff), Grace: limit})
	job := s.submit("work", nil)
	received(t, begun)
	began := time.Now()
	leased := s.lease("the other one", limit/2)
	late := time.Since(received(t, stopped))
	same(t, len(leased), 1)
	same(t, leased[0].GetJob().GetAttempt(), 2)
	if ran := time.Since(began) - late; late < 500*time.Millisecond || ran < 3*time.Second || ran > 4500*time.Millisecond {
		t.Errorf("stopped after %s, %s before another one had the job", ran, late)
	}
	close(taken)
	drain()
	if err := received(t, told); !errors.Is(err, pacenote.ErrLeaseLost) {
		t.Error("what it told last:", err)
	}
	must(t, s.finish(leased[0].GetLeaseToken(), "second"))
	events, end := s.end(job.GetJobId())
	same(t, result(t, end), any("second"))
	same(t, end.GetAttempt(), 2)
	same(t, outputs(t, events, "stdout"), "")
}

// A program is stopped for longer than its lease: another worker has the job, and what the first one tells when it
// goes on is refused.
func TestAWorkerThatWasStoppedLosesItsJobToAnotherOne(t *testing.T) {
	s := start(t)
	s.makeKnown()
	worker := exec.Command(os.Args[0], "-test.run=^TestToBeStopped$")
	worker.Env = append(os.Environ(), "STOPPED_WORKER_OF="+s.address)
	worker.Stderr = os.Stderr
	out, err := worker.StdoutPipe()
	must(t, err)
	must(t, worker.Start())
	t.Cleanup(func() { _ = worker.Process.Kill(); _ = worker.Wait() })
	lines := make(chan string, 10)
	go func() {
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			lines <- scanner.Text()
		}
	}()
	job := s.submit("work", nil)
	same(t, received(t, lines), "attempt 1")
	must(t, worker.Process.Signal(syscall.SIGSTOP))
	leased := s.lease("the other one", limit/2)
	same(t, len(leased), 1)
	same(t, leased[0].GetJob().GetAttempt(), 2)
	must(t, worker.Process.Signal(syscall.SIGCONT))
	same(t, received(t, lines), "lost true")
	must(t, worker.Process.Signal(syscall.SIGTERM))
	same(t, received(t, lines), "drained <nil>")
	must(t, s.finish(leased[0].GetLeaseToken(), "second"))
	events, end := s.end(job.GetJobId())
	same(t, result(t, end), any("second"))
	same(t, outputs(t, events, "stdout"), "")
}

// No test, but the program of the one above.
func TestToBeStopped(t *testing.T) {
	address := os.Getenv("STOPPED_WORKER_OF")
	if address == "" {
		t.SkipNow()
	}
	channel, err := pacenote.Connect(address)
	must(t, err)
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-terminated; cancel() }()
	worker := pacenote.Worker{Client: pb.NewWorkerServiceClient(channel), Lease: 5 * time.Second}
	worker.Handlers = map[string]pacenote.Handler{
		"work": func(ctx context.Context, attempt *pacenote.Attempt) (any, error) {
			fmt.Println("attempt", attempt.Job.GetAttempt())
			<-ctx.Done()
			err := attempt.Output("stdout", "too late")
			fmt.Println("lost", errors.Is(err, pacenote.ErrLeaseLost))
			return "first", nil
		},
	}
	fmt.Println("drained", worker.Run(ctx))
}

func TestAWorkerThatWaitedForLongerThanALeaseBeginsWhatComesAndKeepsIt(t *testing.T) {
	s := start(t)
	begun := make(chan int32, 2)
	var answered atomic.Int32
	s.working(func(ctx context.Context, attempt *pacenote.Attempt) (any, error) {
		begun <- attempt.Job.GetAttempt()
		// Of 5/3 s each: a lease is over then.
		eventually(t, func() bool { return answered.Load() >= 4 || ctx.Err() != nil })
		return "done", ctx.Err()
	}, pacenote.Worker{Client: s.workers(heartbeats(&answered))})
	time.Sleep(5500 * time.Millisecond) // Here it is the time itself that counts.
	_, end := s.end(s.submit("work", nil).GetJobId())
	same(t, fmt.Sprint(end.GetState(), end.GetAttempt()), "STATE_SUCCEEDED 1")
	same(t, received(t, begun), 1)
}

// The answer to a Lease is held up until another worker has the job.
func TestALeaseWhoseAnswerCameTooLateIsHandedBackAndNotBegun(t *testing.T) {
	s := start(t)
	taken, begun, ends := make(chan string, 1), make(chan string, 2), make(chan *pb.FinishRequest, 2)
	var isSecond atomic.Bool
	late := around("Lease", func(_ context.Context, _, answer any, invoke func() error) error {
		err := invoke()
		if len(answer.(*pb.LeaseResponse).GetLeasedJobs()) > 0 && !isSecond.Swap(true) {
			taken <- s.lease("the other one", limit/2)[0].GetLeaseToken()
		}
		return err
	})
	looks := before("Finish", func(_ context.Context, request any) error {
		ends <- request.(*pb.FinishRequest)
		return nil
	})
	s.working(func(_ context.Context, attempt *pacenote.Attempt) (any, error) {
		begun <- attempt.Job.GetJobId()
		return "first", nil
	}, pacenote.Worker{Client: s.workers(late, looks)})
	job := s.submit("work", nil)
	token := received(t, taken)
	same(t, received(t, ends).GetHandBack() != nil, true)
	must(t, s.finish(token, "second"))
	_, end := s.end(job.GetJobId())
	same(t, result(t, end), any("second"))
	next := s.submit("work", nil)
	_, _ = s.end(next.GetJobId())
	same(t, received(t, begun), next.GetJobId())
}

func TestNothingIsToldOfAJobThatIsNotTheWorkersAnyMore(t *testing.T) {
	s := start(t)
	told := make(chan error, 1)
	tokens := make(chan string, 1)
	keeps := around("Lease", func(_ context.Context, _, answer any, invoke func() error) error {
		err := invoke()
		for _, leased := range answer.(*pb.LeaseResponse).GetLeasedJobs() {
			tokens <- leased.GetLeaseToken()
		}
		return err
	})
	s.working(func(ctx context.Context, attempt *pacenote.Attempt) (any, error) {
		err := s.finish(<-tokens, "other")
		err = errors.Join(err, attempt.Progress(&pb.Progress{Fraction: new(0.5)}))
		if !errors.Is(context.Cause(ctx), pacenote.ErrLeaseLost) {
			err = errors.New("the context goes on")
		}
		told <- err
		return "mine", nil
	}, pacenote.Worker{Client: s.workers(keeps)})
	events, end := s.end(s.submit("work", nil).GetJobId())
	same(t, result(t, end), any("other"))
	err := received(t, told)
	if !errors.Is(err, pacenote.ErrLeaseLost) || status.Code(err) != codes.FailedPrecondition {
		t.Error(err)
	}
	for _, event := range events {
		if event.GetProgress() != nil {
			t.Error("progress was stored")
		}
	}
}

func TestAnAttemptEndsAsItsHandlerDoes(t *testing.T) {
	s := start(t)
	s.working(func(_ context.Context, attempt *pacenote.Attempt) (any, error) {
		var input, before string
		if err := errors.Join(attempt.Input(&input), attempt.LastCheckpoint(&before)); err != nil {
			return nil, err
		}
		if attempt.Job.GetAttempt() > 1 {
			return []string{"again", before}, nil
		}
		switch input {
		case "snooze":
			return nil, errors.Join(attempt.Checkpoint("so far"), &pacenote.Snooze{Delay: 10 * time.Millisecond})
		case "retry":
			fail := &pacenote.Fail{Reason: "BUSY", Message: "not now", Retryable: true, Delay: 10 * time.Millisecond}
			return nil, fmt.Errorf("wrapped: %w", fail)
		case "fail":
			return nil, &pacenote.Fail{Reason: "NO_SUCH_FILE", Message: "it is not there"}
		case "error":
			return nil, errors.New("no UTF-8: \xff")
		case "panic":
			var nothing []int
			return nothing[len(input)], nil
		case "goexit":
			runtime.Goexit()
		case "no JSON":
			return func() {}, nil
		case "large integer":
			return 1<<53 + 1, nil
		case "too large":
			return strings.Repeat("x", 1<<20), nil
		case "bad reason":
			return nil, &pacenote.Fail{Reason: "no good reason"}
		case "bad text":
			return &pb.Payload{Content: &pb.Payload_Text{Text: "\xff"}}, nil
		case "bad output":
			if code := status.Code(attempt.Output("stdout", "\xff")); code != codes.InvalidArgument {
				return nil, fmt.Errorf("it was answered with %s", code)
			}
			return "fine", attempt.Output("stdout", "better")
		case "bytes":
			return &pb.Payload{Content: &pb.Payload_Data{Data: []byte("\xff")}}, nil
		}
		return nil, nil
	}, pacenote.Worker{Concurrency: 3})
	for input, expected := range map[string]string{
		"snooze":        "STATE_SUCCEEDED 1  : [again so far]",
		"retry":         "STATE_SUCCEEDED 2 BUSY not now: [again ]",
		"fail":          "STATE_FAILED 1 NO_SUCH_FILE it is not there: <nil>",
		"error":         "STATE_SUCCEEDED 2 HANDLER_ERROR no UTF-8: ?: [again ]",
		"panic":         "STATE_SUCCEEDED 2 HANDLER_ERROR runtime error: index out of range [5] with length 0: [again ]",
		"goexit":        "STATE_SUCCEEDED 2 HANDLER_ERROR the handler ended its goroutine: [again ]",
		"no JSON":       "STATE_FAILED 1 RESULT_INVALID json: unsupported type: func()",
		"large integer": "STATE_FAILED 1 RESULT_INVALID the integer 9007199254740993",
		"too large":     "STATE_FAILED 1 RESULT_INVALID ",
		"bad reason":    "STATE_FAILED 1 HANDLER_ERROR ",
		"bad text":      "STATE_FAILED 1 RESULT_INVALID ",
		"bad output":    "STATE_SUCCEEDED 1  : fine",
	} {
		job := s.submitted(&pb.SubmitRequest{
			Type: "work", Input: payload(t, input),
			RetryPolicy: &pb.RetryPolicy{InitialBackoff: durationpb.New(time.Millisecond)},
		})
		events, end := s.end(job.GetJobId())
		failed := end.GetError()
		for _, event := range events {
			if ended := event.GetAttemptEnd(); ended != nil {
				failed = ended.GetError()
			}
		}
		found := fmt.Sprintf("%s %d %s %s: %v", end.GetState(), end.GetAttemptsCharged(), failed.GetReason(),
			failed.GetMessage(), result(t, end))
		if !strings.HasPrefix(found, expected) {
			t.Errorf("%s: found %q instead of %q", input, found, expected)
		}
		if input == "panic" && !strings.Contains(failed.GetDetail(), "worker_test.go") {
			t.Error("the detail is", failed.GetDetail())
		}
	}
	_, end := s.end(s.submit("work", "bytes").GetJobId())
	same(t, end.GetResult().GetData(), []byte("\xff"))
}

func TestADrainWaitsForWhatEndsAndHandsBackTheRest(t *testing.T) {
	s := start(t)
	release, begun, told := make(chan struct{}), make(chan struct{}, 2), make(chan error, 1)
	drain := s.working(func(ctx context.Context, attempt *pacenote.Attempt) (any, error) {
		begun <- struct{}{}
		var input string
		if err := attempt.Input(&input); err != nil || input == "quick" {
			return "done", errors.Join(err, happens(attempt.Draining()))
		}
		<-release // It does not heed its context.
		told <- errors.Join(context.Cause(ctx), attempt.Output("stdout", "too late"))
		return nil, nil
	}, pacenote.Worker{Concurrency: 3, Grace: 500 * time.Millisecond})
	quick, slow := s.submit("work", "quick"), s.submit("work", "slow")
	received(t, begun)
	received(t, begun)
	drain()
	same(t, s.get(quick.GetJobId()).GetState(), pb.Job_STATE_SUCCEEDED)
	handedBack := s.get(slow.GetJobId())
	same(t, fmt.Sprint(handedBack.GetState(), handedBack.GetAttemptsCharged()), "STATE_QUEUED 0")
	close(release)
	if err := received(t, told); !errors.Is(err, pacenote.ErrLeaseLost) {
		t.Error(err)
	}
	same(t, s.get(s.submit("work", "quick").GetJobId()).GetState(), pb.Job_STATE_QUEUED)
}

func TestADrainInTheMiddleOfMuchWorkLeavesNothingHeld(t *testing.T) {
	s := start(t)
	s.makeKnown()
	var batch pb.BatchSubmitRequest
	for range 300 {
		batch.Requests = append(batch.Requests, &pb.SubmitRequest{Type: "work"})
	}
	_, err := s.jobs().BatchSubmit(timely(t), &batch)
	must(t, err)
	for range 5 {
		some := make(chan struct{}, 300)
		drain := s.working(func(context.Context, *pacenote.Attempt) (any, error) {
			some <- struct{}{}
			return nil, nil
		}, pacenote.Worker{Concurrency: 3, Grace: 5 * time.Second})
		for range 10 {
			received(t, some)
		}
		drain()
		same(t, len(s.list(pb.Job_STATE_RUNNING)), 0) // Handed back, or done; and there is more to do.
	}
	waiting := s.list(pb.Job_STATE_QUEUED)
	same(t, len(waiting) > 0, true)
	for _, job := range waiting {
		same(t, job.GetAttemptsCharged(), 0)
	}
}

// The answer to a Lease is on its way when the drain begins: it is waited for a moment, and handed back.
func TestAClaimThatComesWhileDrainingIsHandedBack(t *testing.T) {
	s := start(t)
	claimed, draining := make(chan struct{}, 1), make(chan struct{})
	slow := around("Lease", func(ctx context.Context, _, answer any, invoke func() error) error {
		err := invoke()
		if len(answer.(*pb.LeaseResponse).GetLeasedJobs()) > 0 {
			claimed <- struct{}{}
			_ = happens(draining)
			select {
			case <-time.After(100 * time.Millisecond): // What it takes on its way.
			case <-ctx.Done():
				return status.FromContextError(ctx.Err()).Err()
			}
		}
		return err
	})
	drain := s.working(func(context.Context, *pacenote.Attempt) (any, error) {
		t.Error("a handler has begun")
		return nil, nil
	}, pacenote.Worker{Client: s.workers(slow), Lease: time.Minute, Grace: limit})
	job := s.submit("work", nil)
	received(t, claimed)
	time.AfterFunc(20*time.Millisecond, func() { close(draining) })
	drain()
	handedBack := s.get(job.GetJobId())
	same(t, fmt.Sprint(handedBack.GetState(), handedBack.GetAttemptsCharged()), "STATE_QUEUED 0")
}

func TestADrainDoesNotWaitForAServerThatIsAway(t *testing.T) {
	s := start(t)
	begun := make(chan struct{}, 1)
	drain := s.working(func(ctx context.Context, _ *pacenote.Attempt) (any, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return nil, nil
	}, pacenote.Worker{Lease: time.Minute})
	s.submit("work", nil)
	received(t, begun)
	s.kill()
	began := time.Now()
	drain()
	if took := time.Since(began); took > 7*time.Second {
		t.Error("it took", took)
	}
}

func TestAsManyJobsRunAtOnceAsAWorkerHasRoomFor(t *testing.T) {
	s := start(t)
	s.makeKnown()
	begun, goOn := make(chan struct{}, 9), make(chan struct{}, 9)
	var jobs []*pb.Job
	for range 9 {
		jobs = append(jobs, s.submit("work", nil))
	}
	s.working(func(context.Context, *pacenote.Attempt) (any, error) {
		begun <- struct{}{}
		return nil, happens(goOn)
	}, pacenote.Worker{Concurrency: 3})
	for count := range 9 {
		received(t, begun)
		if count >= 2 {
			same(t, len(s.list(pb.Job_STATE_RUNNING)), 3)
			goOn <- struct{}{}
		}
	}
	goOn <- struct{}{}
	goOn <- struct{}{}
	for _, job := range jobs {
		_, end := s.end(job.GetJobId())
		same(t, fmt.Sprint(end.GetState(), end.GetAttempt()), "STATE_SUCCEEDED 1")
	}
}

// The store is replaced under a worker: what it held is lost, and what it gets then is kept.
func TestLeasesOfAStoreThatIsGoneTakeNoOtherAlong(t *testing.T) {
	s := start(t)
	begun, lost, kept := make(chan string, 2), make(chan error, 1), make(chan error, 1)
	var isBoth atomic.Bool
	withBoth := before("ExtendLeases", func(context.Context, any) error {
		if isBoth.Load() {
			return nil
		}
		return errBroke
	})
	s.working(func(ctx context.Context, attempt *pacenote.Attempt) (any, error) {
		var input string
		_ = attempt.Input(&input) // Looked at below.
		begun <- input
		_ = happens(ctx.Done())
		if input == "old" {
			lost <- context.Cause(ctx)
		} else {
			kept <- context.Cause(ctx)
		}
		return nil, nil
	}, pacenote.Worker{Client: s.workers(withBoth), Concurrency: 2})
	s.submit("work", "old")
	same(t, received(t, begun), "old")
	s.kill()
	stores, err := filepath.Glob(filepath.Join(s.folder, "pacenote.db*"))
	must(t, err)
	for _, path := range stores {
		must(t, os.RemoveAll(path))
	}
	s.start()
	eventually(t, func() bool { return s.knows("work") }) // By the worker, which has come back.
	job := s.submit("work", "new")
	same(t, received(t, begun), "new")
	isBoth.Store(true)
	if err := received(t, lost); !errors.Is(err, pacenote.ErrLeaseLost) {
		t.Error(err)
	}
	s.cancel(job.GetJobId(), "")
	_, end := s.end(job.GetJobId())
	same(t, fmt.Sprint(end.GetState(), end.GetAttempt()), "STATE_CANCELLED 1")
	if err := received(t, kept); !errors.Is(err, pacenote.ErrCancelled) {
		t.Error(err)
	}
}

func TestAWorkerThatIsRefusedSaysSo(t *testing.T) {
	s := start(t)
	worker := pacenote.Worker{Client: s.workers(), Handlers: map[string]pacenote.Handler{"no//name": nil}}
	same(t, refusal(worker.Run(t.Context())), "InvalidArgument INVALID_FIELD")
}

func TestTheExamplesRunAndTheWorkerEndsWithSIGTERM(t *testing.T) {
	s := start(t)
	folder := t.TempDir()
	if told, err := exec.Command("go", "build", "-o", folder, "./examples/...").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, told)
	}
	worker := exec.Command(filepath.Join(folder, "worker"), s.address)
	out, err := worker.StdoutPipe()
	must(t, err)
	must(t, worker.Start())
	t.Cleanup(func() { _ = worker.Process.Kill() })
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	same(t, line, "waiting for jobs of the type greet\n")
	eventually(t, func() bool { return s.knows("greet") })
	told, err := exec.CommandContext(timely(t), filepath.Join(folder, "submit_and_watch"), s.address).Output()
	must(t, err)
	var greetings []string
	lines := bytes.Split(bytes.TrimSpace(told), []byte("\n"))
	for _, line := range lines {
		if bytes.HasPrefix(line, []byte("Hello")) {
			greetings = append(greetings, string(line))
		}
	}
	same(t, greetings, []string{"Hello, Ada!", "Hello, Grace!", "Hello, Edsger!"})
	same(t, string(bytes.Join(lines[len(lines)-2:], []byte("\n"))), "100%\nSTATE_SUCCEEDED map[greeted:3]")
	must(t, worker.Process.Signal(syscall.SIGTERM))
	must(t, worker.Wait())
}
