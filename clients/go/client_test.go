package pacenote_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"pacenote.dev/go"
	pb "pacenote.dev/go/pacenotev1"
)

func TestAJobIsWatchedFromItsSubmitToItsResult(t *testing.T) {
	s := start(t)
	job := s.submit("sleep", map[string]any{"seconds": 0.5})
	events, end := s.end(job.GetJobId())
	same(t, end.GetState(), pb.Job_STATE_SUCCEEDED)
	same(t, result(t, end), any(map[string]any{"slept_seconds": 0.5}))
	fraction := 0.0
	for _, event := range events {
		if progress := event.GetProgress(); progress != nil {
			if progress.GetFraction() < fraction {
				t.Error("progress went back")
			}
			fraction = progress.GetFraction()
		}
	}
	same(t, fraction, 1)
	// With a snapshot first, and of a job that is over.
	count := 0
	for message, err := range pacenote.Watch(timely(t), s.jobs(), &pb.WatchJobRequest{JobId: job.GetJobId()}) {
		must(t, err)
		same(t, message.GetSnapshot().GetLastSequence(), end.GetLastSequence())
		count++
	}
	same(t, count, 1)
}

func TestAWatchGoesOnAfterTheServerWasKilledAndStartedAgain(t *testing.T) {
	s := start(t)
	job := s.submit("sleep", map[string]any{"seconds": 2})
	seen, restarted := 0, false
	events, end := gathered(t, func(yield func(*pb.WatchJobResponse, error) bool) {
		for message, err := range s.watch(job.GetJobId()) {
			if !yield(message, err) {
				return
			}
			if seen += len(message.GetEvents().GetEvents()); seen >= 5 && !restarted {
				restarted = true
				s.kill()
				s.start()
			}
		}
	})
	same(t, restarted, true)
	same(t, end.GetState(), pb.Job_STATE_SUCCEEDED)
	same(t, end.GetAttempt(), 2)
	for _, event := range events {
		if ended := event.GetAttemptEnd(); ended != nil {
			same(t, ended.GetError().GetReason(), "WORKER_LOST")
		}
	}
}

func TestAWatchThatIsClosedAndBegunAnewAtEveryMessageLosesNothing(t *testing.T) {
	s := start(t)
	jobs, job := s.jobs(), s.submit("sleep", map[string]any{"seconds": 1})
	request := &pb.WatchJobRequest{JobId: job.GetJobId(), AfterSequence: new(int64(0))}
	cuts := 0
	_, end := gathered(t, func(yield func(*pb.WatchJobResponse, error) bool) {
		for {
			next, stop := iter.Pull2(pacenote.Watch(timely(t), jobs, request))
			message, err, _ := next()
			stop()
			cuts++
			request.AfterSequence = new(message.GetThroughSequence())
			if !yield(message, err) || message.GetSnapshot() != nil {
				return
			}
		}
	})
	same(t, end.GetState(), pb.Job_STATE_SUCCEEDED)
	if cuts <= 5 {
		t.Error("only", cuts, "messages")
	}
}

// Breaks each stream after its first messages: what was received then, and not yet delivered, is lost.
type breaks struct {
	grpc.ClientStream
	left *int
	err  error
}

func (b *breaks) RecvMsg(message any) error {
	err := b.ClientStream.RecvMsg(message)
	if *b.left--; *b.left < 0 && err == nil {
		return b.err
	}
	return err
}

// Also an OK that comes before the job is over: a proxy's.
func TestAWatchResumesHoweverItsStreamBreaks(t *testing.T) {
	s := start(t)
	causes := []error{io.EOF}
	for _, code := range []codes.Code{
		codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded, codes.Canceled, codes.Internal, codes.Unknown,
	} {
		causes = append(causes, status.Error(code, "broken"))
	}
	count := 0
	jobs := s.jobs(streams(func(_ context.Context, stream grpc.ClientStream) grpc.ClientStream {
		count++
		return &breaks{stream, new(count % 3), causes[count%len(causes)]}
	}))
	job := s.submit("sleep", map[string]any{"seconds": 1.5})
	request := &pb.WatchJobRequest{JobId: job.GetJobId(), AfterSequence: new(int64(0))}
	_, end := gathered(t, pacenote.Watch(timely(t), jobs, request))
	same(t, end.GetState(), pb.Job_STATE_SUCCEEDED)
	if count < len(causes) {
		t.Error("only", count, "streams")
	}
}

// Gives messages in place of those of the stream.
type tells struct {
	grpc.ClientStream
	left []*pb.WatchJobResponse
}

func (t *tells) RecvMsg(message any) error {
	proto.Merge(message.(*pb.WatchJobResponse), t.left[0])
	t.left = t.left[1:]
	return nil
}

func TestAWatchOfAJobThatIsOverGoesOnAfterAGap(t *testing.T) {
	s := start(t)
	over := &pb.WatchJobResponse_Snapshot{Snapshot: &pb.Job{EndTime: timestamppb.Now(), LastSequence: 9}}
	told := []*pb.WatchJobResponse{
		{ThroughSequence: 4, Content: &pb.WatchJobResponse_Gap{Gap: &pb.EventGap{}}},
		{ThroughSequence: 4, Content: over},
		{ThroughSequence: 9, Content: &pb.WatchJobResponse_Events{Events: &pb.EventBatch{}}},
		{ThroughSequence: 9, Content: over},
	}
	jobs := s.jobs(streams(func(_ context.Context, stream grpc.ClientStream) grpc.ClientStream {
		return &tells{stream, told}
	}))
	count := 0
	for message, err := range pacenote.Watch(timely(t), jobs, &pb.WatchJobRequest{JobId: "any"}) {
		must(t, err)
		same(t, proto.Equal(message, told[count]), true)
		count++
	}
	same(t, count, len(told))
}

// A stopped server says nothing and closes nothing; the watch asks again, and loses nothing.
func TestAWatchTakesAStreamThatIsSilentForDead(t *testing.T) {
	s := start(t)
	s.makeKnown()
	job := s.submit("work", nil)
	opened := make(chan context.Context, 100)
	jobs := s.jobs(streams(func(ctx context.Context, stream grpc.ClientStream) grpc.ClientStream {
		opened <- ctx
		return stream
	}))
	request := &pb.WatchJobRequest{
		JobId: job.GetJobId(), AfterSequence: new(int64(0)), HeartbeatInterval: durationpb.New(time.Second),
	}
	stopped := make(chan func(), 1)
	go func() {
		first := received(t, opened)
		goOn := received(t, stopped)
		defer goOn()
		received(t, first.Done())
		received(t, opened) // It has asked again.
	}()
	isFirst, began := true, time.Now()
	_, end := gathered(t, func(yield func(*pb.WatchJobResponse, error) bool) {
		for message, err := range pacenote.Watch(timely(t), jobs, request) {
			if !yield(message, err) {
				return
			}
			if isFirst {
				isFirst = false
				stopped <- s.stopAndContinue()
				continue
			}
			if silent := time.Since(began); silent < 3*time.Second {
				t.Error("the stream was taken for dead after", silent)
			}
			s.cancel(job.GetJobId(), "")
		}
	})
	same(t, end.GetState(), pb.Job_STATE_CANCELLED)
}

func TestAWatchThatIsReadSlowlyIsNotSilent(t *testing.T) {
	s := start(t)
	s.makeKnown()
	count := 0
	jobs := s.jobs(streams(func(_ context.Context, stream grpc.ClientStream) grpc.ClientStream {
		count++
		return stream
	}))
	job := s.submit("work", nil)
	request := &pb.WatchJobRequest{
		JobId: job.GetJobId(), AfterSequence: new(int64(0)), HeartbeatInterval: durationpb.New(time.Second),
	}
	cancel := sync.OnceFunc(func() {
		time.Sleep(3500 * time.Millisecond) // More than three heartbeats: here it is the time itself that counts.
		s.cancel(job.GetJobId(), "")
	})
	_, _ = gathered(t, func(yield func(*pb.WatchJobResponse, error) bool) {
		for message, err := range pacenote.Watch(timely(t), jobs, request) {
			if cancel(); !yield(message, err) {
				return
			}
		}
	})
	same(t, count, 1)
}

func TestAWatchStopsWhereAskingAgainDoesNotHelp(t *testing.T) {
	s := start(t)
	job := s.submit("sleep", map[string]any{"seconds": 0})
	for expected, request := range map[string]*pb.WatchJobRequest{
		"NotFound JOB_NOT_FOUND":            {JobId: "01987654-0000-7000-8000-000000000000"},
		"FailedPrecondition SEQUENCE_AHEAD": {JobId: job.GetJobId(), AfterSequence: new(int64(99))},
		"InvalidArgument INVALID_FIELD":     {JobId: "no id"},
		"InvalidArgument":                   {JobId: "no UTF-8: \xff"},
	} {
		count := 0
		for message, err := range pacenote.Watch(timely(t), s.jobs(), request) {
			if message != nil {
				t.Error("a message came:", message)
			}
			same(t, refusal(err), expected)
			count++
		}
		same(t, count, 1)
	}
}

func TestAWatchEndsWithItsContextAndGoesOnFromItsCursor(t *testing.T) {
	s := start(t)
	s.makeKnown()
	jobs, job := s.jobs(), s.submit("work", nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	request := &pb.WatchJobRequest{JobId: job.GetJobId(), AfterSequence: new(int64(0))}
	var last error
	var cursor int64
	for message, err := range pacenote.Watch(ctx, jobs, request) {
		if last = err; err == nil {
			cursor = message.GetThroughSequence()
			cancel()
		}
	}
	if !errors.Is(last, context.Canceled) {
		t.Error("it ended with", last)
	}
	s.cancel(job.GetJobId(), "")
	request.AfterSequence = &cursor
	for message, err := range pacenote.Watch(timely(t), jobs, request) {
		must(t, err)
		for _, event := range message.GetEvents().GetEvents() {
			cursor++
			same(t, event.GetSequence(), cursor)
		}
	}
	same(t, s.get(job.GetJobId()).GetLastSequence(), cursor)
}

func TestAKeyThatIsUsedTwiceLeadsToTheSameJob(t *testing.T) {
	s := start(t)
	jobs := s.jobs()
	request := func(seconds int) *pb.SubmitRequest {
		input := payload(t, map[string]any{"seconds": seconds})
		return &pb.SubmitRequest{Type: "sleep", Input: input, IdempotencyKey: "once"}
	}
	first, err := pacenote.Submit(timely(t), jobs, request(0))
	must(t, err)
	again, err := pacenote.Submit(timely(t), jobs, request(0))
	must(t, err)
	same(t, []bool{first.GetDeduplicated(), again.GetDeduplicated()}, []bool{false, true})
	same(t, first.GetJob().GetJobId(), again.GetJob().GetJobId())
	_, err = pacenote.Submit(timely(t), jobs, request(1))
	same(t, refusal(err), "AlreadyExists IDEMPOTENCY_KEY_REUSED")
	_, err = pacenote.Submit(timely(t), jobs, &pb.SubmitRequest{Type: "\xff"})
	same(t, refusal(err), "InvalidArgument")
}

func TestASubmitWhoseAnswerWasLostMakesOneJob(t *testing.T) {
	s := start(t)
	lost := &loses{methods: []string{"Submit"}}
	request := &pb.SubmitRequest{Type: "sleep", Input: payload(t, map[string]any{"seconds": 0})}
	answer, err := pacenote.Submit(timely(t), s.jobs(lost.option()), request)
	must(t, err)
	same(t, answer.GetDeduplicated(), true)
	same(t, lost.counts(), map[string]int{"Submit": 1})
	same(t, len(s.list()), 1)
	same(t, request.GetIdempotencyKey(), "")
}

func TestASubmitWaitsForAServerThatIsAwayAndNotForEver(t *testing.T) {
	s := start(t)
	jobs := s.jobs()
	s.makeKnown()
	s.kill()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := pacenote.Submit(ctx, jobs, &pb.SubmitRequest{Type: "work"})
	if code := status.Code(err); !errors.Is(err, context.DeadlineExceeded) || code != codes.Unavailable {
		t.Error("it ended with", err)
	}
	answered := make(chan error, 1)
	failed := make(chan struct{}, 100)
	watched := s.jobs(before("Submit", func(context.Context, any) error {
		failed <- struct{}{}
		return nil
	}))
	go func() {
		_, err := pacenote.Submit(timely(t), watched, &pb.SubmitRequest{Type: "work"})
		answered <- err
	}()
	received(t, failed)
	received(t, failed) // It was tried in vain.
	s.start()
	must(t, received(t, answered))
	same(t, len(s.list()), 1)
}

func TestPayloadsKeepWhatTheyAreGiven(t *testing.T) {
	type row struct {
		Name  string
		Count int64
	}
	payload, err := pacenote.ToPayload([]row{{"Ada", 1 << 53}, {"Größe", -3}})
	must(t, err)
	var rows []row
	must(t, pacenote.FromPayload(payload, &rows))
	same(t, rows, []row{{"Ada", 1 << 53}, {"Größe", -3}})
	for _, fine := range []any{1e20, 0.1, -0.0, uint64(1 << 53), "9007199254740993", math.MaxFloat64} {
		if _, err := pacenote.ToPayload(fine); err != nil {
			t.Error(fine, err)
		}
	}
	for _, bad := range []any{1<<53 + 1, int64(math.MinInt64 + 1), uint64(math.MaxUint64), math.NaN(), func() {}} {
		if _, err := pacenote.ToPayload(map[string]any{"n": bad}); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
	none, err := pacenote.ToPayload(nil)
	must(t, err)
	must(t, pacenote.FromPayload(none, &rows))
	same(t, len(rows), 2)
	if pacenote.FromPayload(&pb.Payload{Content: &pb.Payload_Text{Text: "x"}}, &rows) == nil {
		t.Error("text was taken for JSON")
	}
}

func TestTheGeneratedCodeIsThatOfTheProtoFiles(t *testing.T) {
	if _, err := os.Stat("../../proto"); err != nil {
		t.Skip("NOT CHECKED: there is no ../../proto")
	}
	if _, err := exec.LookPath("buf"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("buf is missing")
		}
		t.Skip("NOT CHECKED: buf is missing")
	}
	folder := t.TempDir()
	if told, err := exec.Command("buf", "generate", "--output", folder).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, told)
	}
	anew, err := filepath.Glob(filepath.Join(folder, "pacenotev1", "*.go"))
	must(t, err)
	committed, err := filepath.Glob("pacenotev1/*.go")
	must(t, err)
	same(t, len(committed), len(anew))
	for i, path := range anew {
		expected, err := os.ReadFile(path)
		must(t, err)
		found, err := os.ReadFile(committed[i])
		must(t, err)
		if string(found) != string(expected) {
			t.Errorf("%s is not what `buf generate` makes of the proto files", committed[i])
		}
	}
}
