// Package pacenote submits jobs to a Pacenote server, watches them to their end, and does them.
//
// It promises that a submit makes one job, that a watch shows each event once, in order, to the end, and that what
// a worker tells is stored once, over however many broken connections and restarted servers. It does not wrap the
// rest of the API: the generated clients in [pacenote.dev/go/pacenotev1] are good as they are.
//
// Every error of a call keeps its gRPC status: see [status.FromError], which also finds the details
// (google.rpc.ErrorInfo with a stable reason).
package pacenote

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	random "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	pb "pacenote.dev/go/pacenotev1"
)

const (
	// Deadline of one try of a unary call: without one, it waits for a dead network for ever. docs/protocol.md.
	callTimeout = 10 * time.Second
	// The ceiling of the wait between two tries doubles from the one to the other. docs/protocol.md.
	shortestPause, longestPause = 100 * time.Millisecond, 30 * time.Second
)

// What may heal, by the table in docs/protocol.md. All else stays as it is however often one asks.
var transient = []codes.Code{
	codes.Unavailable, codes.ResourceExhausted, codes.DeadlineExceeded, codes.Canceled, codes.Internal, codes.Unknown,
}

// Connect makes a channel to a server, HOST:PORT, with the keepalive and the windows that docs/protocol.md asks
// for, and without TLS. It connects with the first call. Options come after those and so beat them.
func Connect(address string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	alive := keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 10 * time.Second, PermitWithoutStream: true}
	// The channel has a backoff of its own, of 1 s to 2 min: it must not be the longer one.
	again := backoff.Config{BaseDelay: shortestPause, Multiplier: 2, Jitter: 0.2, MaxDelay: 5 * time.Second}
	return grpc.NewClient(address, append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithKeepaliveParams(alive),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: 5 * time.Second}),
		grpc.WithStaticStreamWindowSize(256 << 10),
		grpc.WithStaticConnWindowSize(4 << 20),
	}, options...)...)
}

// Submit makes one job. It is sent again, with backoff, until it is answered or ctx is done: give that a deadline.
//
// Without an idempotency key the request gets one of its own; give it yours, and the submit may be repeated by
// another process. Input is best made with [ToPayload]. The request is not changed.
//
// The error has the status of the last answer, and wraps that of ctx where ctx ended it.
func Submit(ctx context.Context, jobs pb.JobServiceClient, request *pb.SubmitRequest) (*pb.SubmitResponse, error) {
	request = proto.CloneOf(request)
	request.IdempotencyKey = cmp.Or(request.GetIdempotencyKey(), rand.Text())
	answer, err := call(ctx, jobs.Submit, request)
	if err != nil {
		return nil, fmt.Errorf("submit of a job of the type %q: %w", request.GetType(), err)
	}
	return answer, nil
}

// Watch follows a job to its end: every message of its watch, each event once and in order; the last one is a
// snapshot with the result or the error. Where a stream breaks, or is silent for three heartbeats, it resumes.
//
// The request is that of WatchJob: AfterSequence new(int64(0)) is for all that is kept, and nil for a snapshot and
// what comes after it. Store a message's ThroughSequence with what you made of the message, and pass it as
// AfterSequence another time: a crash of yours loses nothing either. Every range over it begins as the request says.
//
// An error comes last, and alone: where asking again does not help (NOT_FOUND, FAILED_PRECONDITION, …), with its
// status, or where ctx is done, wrapping that of ctx. To end a watch, end ctx or leave the loop. The job is never
// touched.
func Watch(
	ctx context.Context, jobs pb.JobServiceClient, request *pb.WatchJobRequest,
) iter.Seq2[*pb.WatchJobResponse, error] {
	return func(yield func(*pb.WatchJobResponse, error) bool) {
		request := proto.CloneOf(request)
		var tries tries
		for {
			err := watchOnce(ctx, jobs, request, func(message *pb.WatchJobResponse) bool {
				tries = 0
				request.AfterSequence = new(message.GetThroughSequence())
				return yield(message, nil)
			})
			if err == nil {
				return
			}
			if err = tries.next(ctx, request, err); err != nil {
				yield(nil, fmt.Errorf("watch of the job %s: %w", request.GetJobId(), err))
				return
			}
		}
	}
}

// Hands the messages of one stream to give. Nil: the job is over and all was given, or give wants no more.
func watchOnce(
	ctx context.Context, jobs pb.JobServiceClient, request *pb.WatchJobRequest, give func(*pb.WatchJobResponse) bool,
) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The default and the bounds are WatchJobRequest's.
	heartbeat := cmp.Or(request.GetHeartbeatInterval().AsDuration(), 15*time.Second)
	silence := 3 * min(max(heartbeat, time.Second), 5*time.Minute)
	timer := time.AfterFunc(silence, cancel)
	defer timer.Stop()
	stream, err := jobs.WatchJob(ctx, request)
	for err == nil {
		var message *pb.WatchJobResponse
		if message, err = stream.Recv(); err != nil {
			break
		}
		timer.Stop() // However long the caller takes, that is no silence.
		// A snapshot of a job that is over may also come after a gap, with more of the log to follow: the one that
		// covers the whole log is the last.
		job := message.GetSnapshot()
		isEnd := job.GetEndTime() != nil && message.GetThroughSequence() >= job.GetLastSequence()
		if !give(message) || isEnd {
			return nil
		}
		timer.Reset(silence)
	}
	if err == io.EOF {
		err = status.Error(codes.Unavailable, "the stream ended before the job did") // A proxy's OK.
	}
	return err
}

// ToPayload makes a payload of a value: JSON as [json.Marshal] has it; of nil none. A *pacenotev1.Payload, such as
// one with text or bytes, stays as it is.
//
// What is not JSON is an error, and so is an integer that would lose digits: numbers travel as doubles, so write
// those beyond 2^53 as strings.
func ToPayload(value any) (*pb.Payload, error) {
	if value == nil {
		return new(pb.Payload), nil
	}
	if payload, ok := value.(*pb.Payload); ok {
		return payload, nil
	}
	text, err := json.Marshal(value)
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	for token, bad := decoder.Token(); bad == nil; token, bad = decoder.Token() {
		number, ok := token.(json.Number)
		double, _ := number.Float64()
		isInteger := ok && !strings.ContainsAny(number.String(), ".eE")
		if isInteger && strconv.FormatFloat(double, 'f', -1, 64) != number.String() {
			err = fmt.Errorf("the integer %s is beyond 2^53 and would lose digits; write it as a string", number)
		}
	}
	if err != nil {
		return nil, err
	}
	plain := new(structpb.Value)
	return &pb.Payload{Content: &pb.Payload_Json{Json: plain}}, plain.UnmarshalJSON(text)
}

// FromPayload stores the JSON value of a payload into a variable, as [json.Unmarshal] does. A payload without
// content changes nothing; one with text or bytes is an error.
func FromPayload(payload *pb.Payload, into any) error {
	if payload.GetContent() == nil {
		return nil
	}
	text, err := payload.GetJson().MarshalJSON()
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// Makes a call that may be repeated until it is answered, refused for good, or ctx is done.
func call[Request proto.Message, Response any](
	ctx context.Context, method func(context.Context, Request, ...grpc.CallOption) (Response, error), request Request,
) (Response, error) {
	var tries tries
	for {
		try, cancel := context.WithTimeout(ctx, callTimeout)
		answer, err := method(try, request)
		cancel()
		if err == nil {
			return answer, nil
		}
		if err = tries.next(ctx, request, err); err != nil {
			return answer, err
		}
	}
}

// How many tries have failed since anything was answered.
type tries int

// Waits for the next try, or says why there is to be none.
func (t *tries) next(ctx context.Context, request proto.Message, err error) error {
	if _, bad := proto.Marshal(request); bad != nil {
		// A string that is not UTF-8. Said as INTERNAL, it would be sent again for ever.
		return status.Error(codes.InvalidArgument, bad.Error())
	}
	if !slices.Contains(transient, status.Code(err)) {
		return err
	}
	select {
	case <-time.After(t.pause(err)):
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return nil
}

// Uniform in 0 to 0.1 s, doubling to 30 s, after what the server asks for.
func (t *tries) pause(err error) (asked time.Duration) {
	ceiling := min(shortestPause<<min(*t, 16), longestPause)
	*t++
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			asked = info.GetRetryDelay().AsDuration()
		}
	}
	return asked + random.N(ceiling)
}
