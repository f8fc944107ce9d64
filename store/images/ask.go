package images

import (
	"context"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/registry"
)

// answerTime is how long no RUN is started because a registry has not said yet whether it would take the image.
const answerTime = 10 * time.Second

// AskPush asks the registries of names whether they would take a push, while whatever the context returned is for goes on. That
// context ends with the first refusal. Answered waits until there are answers, or for so long that one that comes now is not to be expected
// soon. End waits for the questions, gives those up that have no answer, and returns the refusal instead of err if there was one and err is
// not nil.
func AskPush(ctx context.Context, client *registry.Client, names []string) (_ context.Context, answered func(context.Context) error, end func(err error) error) {
	ctx, cancel := context.WithCancel(ctx)
	refusals := make(chan error, len(names))
	var asking sync.WaitGroup
	for _, name := range names {
		asking.Go(func() {
			if err := client.CheckPush(ctx, name); err != nil {
				refusals <- err
				cancel()
			}
		})
	}
	all := make(chan struct{})
	go func() {
		asking.Wait()
		close(all)
	}()
	soon := time.NewTimer(answerTime)
	answered = func(ctx context.Context) error {
		select {
		case <-all:
		case <-soon.C:
			soon.Reset(0) // for whoever waits next
		case <-ctx.Done():
		}
		return context.Cause(ctx)
	}
	return ctx, answered, func(err error) error {
		cancel()
		asking.Wait()
		if err != nil && len(refusals) > 0 {
			return <-refusals
		}
		return err
	}
}
