package election

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// askMajority asks all of the voters at once and returns nil when a majority said yes.
func (n *Node) askMajority(ctx context.Context, names []string,
	ask func(ctx context.Context, name string) error,
) error {
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan error, len(names))
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	for _, name := range names {
		work.Add(1)
		go func() {
			defer work.Done()
			results <- ask(ctx, name)
		}()
	}
	var errs []error
	yes := 0
	for range names {
		if err := <-results; err != nil {
			errs = append(errs, err)
			if len(errs) >= len(names)-len(names)/2 {
				break
			}
			continue
		}
		if yes++; yes > len(names)/2 {
			return nil
		}
	}
	return fmt.Errorf("no majority: %w", errors.Join(errs...))
}

// ask posts a request to a node, again while the node cannot be reached.
func (n *Node) ask(ctx context.Context, name, path string, request any) error {
	for {
		err := fmt.Errorf("ask %s: %w", name, errNoPeer)
		if p := n.peerOf(name); p != nil {
			var a empty
			err = p.call(ctx, path, request, &a)
		}
		if err == nil || errors.Is(err, errRemote) || ctx.Err() != nil {
			return err
		}
		pauseFor(ctx, 50*time.Millisecond)
	}
}
