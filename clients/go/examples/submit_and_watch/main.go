// Submits a job for the example worker and watches it to its end: go run ./examples/submit_and_watch [HOST:PORT].
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"pacenote.dev/go"
	"pacenote.dev/go/pacenotev1"
)

func main() {
	channel, err := pacenote.Connect(append(os.Args, "127.0.0.1:7430")[1])
	if err != nil {
		log.Fatal(err)
	}
	jobs := pacenotev1.NewJobServiceClient(channel)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()

	input, err := pacenote.ToPayload(map[string]any{"names": []string{"Ada", "Grace", "Edsger"}})
	if err != nil {
		log.Fatal(err)
	}
	timely, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	submitted, err := pacenote.Submit(timely, jobs, &pacenotev1.SubmitRequest{Type: "greet", Input: input})
	if err != nil {
		log.Fatal(err)
	}

	watch := &pacenotev1.WatchJobRequest{JobId: submitted.GetJob().GetJobId(), AfterSequence: new(int64(0))}
	var end *pacenotev1.Job
	for message, err := range pacenote.Watch(ctx, jobs, watch) {
		if err != nil {
			log.Fatal(err)
		}
		for _, event := range message.GetEvents().GetEvents() {
			if output := event.GetOutput(); output != nil {
				fmt.Print(output.GetChunk().GetText())
			} else if progress := event.GetProgress(); progress != nil {
				fmt.Printf("%3.0f%%\n", 100*progress.GetFraction())
			}
		}
		end = message.GetSnapshot() // The last message has one.
	}
	var result map[string]any
	if err := pacenote.FromPayload(end.GetResult(), &result); err != nil {
		log.Fatal(err)
	}
	fmt.Println(end.GetState(), result)
}
