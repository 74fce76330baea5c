package pacenote_test

import (
	"context"
	"fmt"
	"log"
	"os/signal"
	"syscall"
	"time"

	"pacenote.dev/go"
	"pacenote.dev/go/pacenotev1"
)

// A job is submitted, and its output printed as it comes.
func ExampleWatch() {
	channel, err := pacenote.Connect("127.0.0.1:7430")
	if err != nil {
		log.Fatal(err)
	}
	jobs := pacenotev1.NewJobServiceClient(channel)
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	submitted, err := pacenote.Submit(ctx, jobs, &pacenotev1.SubmitRequest{Type: "report", IdempotencyKey: "2030-01-01"})
	if err != nil {
		log.Fatal(err)
	}
	watch := &pacenotev1.WatchJobRequest{JobId: submitted.GetJob().GetJobId(), AfterSequence: new(int64(0))}
	for message, err := range pacenote.Watch(ctx, jobs, watch) {
		if err != nil {
			log.Fatal(err)
		}
		for _, event := range message.GetEvents().GetEvents() {
			fmt.Print(event.GetOutput().GetChunk().GetText())
		}
		if end := message.GetSnapshot(); end != nil {
			fmt.Println(end.GetState())
		}
	}
}

// A worker that ends with SIGTERM, and hands back what has not finished half a minute later.
func ExampleWorker_Run() {
	channel, err := pacenote.Connect("127.0.0.1:7430")
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	worker := pacenote.Worker{
		Client: pacenotev1.NewWorkerServiceClient(channel),
		Handlers: map[string]pacenote.Handler{
			"report": func(ctx context.Context, attempt *pacenote.Attempt) (any, error) {
				var input struct{ Day time.Time }
				if err := attempt.Input(&input); err != nil {
					return nil, &pacenote.Fail{Reason: "INPUT_INVALID", Message: err.Error()}
				}
				return map[string]int{"rows": input.Day.YearDay()}, nil
			},
		},
		Grace: 30 * time.Second,
	}
	if err := worker.Run(ctx); err != nil {
		log.Fatal(err)
	}
}
