// Does jobs of the type greet until it is told to stop: go run ./examples/worker [HOST:PORT].
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"pacenote.dev/go"
	"pacenote.dev/go/pacenotev1"
)

// Greets everybody in names; goes on where an earlier attempt left off.
func greet(ctx context.Context, attempt *pacenote.Attempt) (any, error) {
	var input struct{ Names []string }
	if err := attempt.Input(&input); err != nil {
		return nil, &pacenote.Fail{Reason: "INPUT_INVALID", Message: err.Error()}
	}
	done := 0
	if err := attempt.LastCheckpoint(&done); err != nil {
		return nil, &pacenote.Fail{Reason: "CHECKPOINT_INVALID", Message: err.Error()}
	}
	for done < len(input.Names) {
		if err := attempt.Output("stdout", fmt.Sprintf("Hello, %s!\n", input.Names[done])); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(500 * time.Millisecond): // The work.
		}
		done++
		units := pacenotev1.Progress{
			CompletedUnits: new(int64(done)), TotalUnits: new(int64(len(input.Names))), Unit: "names",
		}
		if err := attempt.Progress(&units); err != nil {
			return nil, err
		}
		if err := attempt.Checkpoint(done); err != nil {
			return nil, err
		}
	}
	return map[string]int{"greeted": done}, nil
}

func main() {
	channel, err := pacenote.Connect(append(os.Args, "127.0.0.1:7430")[1])
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	worker := pacenote.Worker{
		Client:      pacenotev1.NewWorkerServiceClient(channel),
		Handlers:    map[string]pacenote.Handler{"greet": greet},
		Concurrency: 4,
	}
	fmt.Println("waiting for jobs of the type greet")
	if err := worker.Run(ctx); err != nil {
		log.Fatal(err)
	}
}
