package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"holdfast/election"
)

// historyOf lists the newest changes of the lock, the newest first.
func historyOf(s *election.State, limit int) []ChangeStatus {
	out := []ChangeStatus{}
	for i := len(s.History) - 1; i >= 0 && len(out) < limit; i-- {
		out = append(out, *changeStatus(&s.History[i]))
	}
	return out
}

// HistoryCommand is the subcommand that tells why the primary changed, and how long it took.
type HistoryCommand struct {
	// URL is any node's HTTP interface.
	URL   string
	Limit int
	// Epoch shows that change alone; 0: all.
	Epoch uint64
	JSON  bool
	Out   io.Writer
}

// Run asks the node and prints what it says.
func (c HistoryCommand) Run(ctx context.Context) error {
	limit := c.Limit
	if c.Epoch != 0 {
		limit = historyAll
	}
	var a historyAnswer
	url := c.URL + "/v1/history?limit=" + strconv.Itoa(limit)
	if err := callHTTP(ctx, http.MethodGet, url, nil, &a); err != nil {
		return err
	}
	if c.Epoch != 0 {
		a.Changes = slices.DeleteFunc(a.Changes, func(s ChangeStatus) bool {
			return s.Epoch != c.Epoch
		})
		if len(a.Changes) == 0 {
			return fmt.Errorf("history: no change to epoch %d is kept", c.Epoch)
		}
	}
	if c.JSON {
		return writeJSON(c.Out, a)
	}
	for i := range a.Changes {
		if err := a.Changes[i].printWhole(c.Out); err != nil {
			return err
		}
	}
	return nil
}

// historyAll is more than is ever kept.
const historyAll = 100000

// printWhole writes a change with all that is known of it.
func (c *ChangeStatus) printWhole(out io.Writer) error {
	planned := ", unplanned"
	switch {
	case c.Planned:
		planned = ", planned"
	case c.Kind == string(election.IntentBootstrap):
		planned = ""
	}
	_, err := fmt.Fprintf(out, "epoch %d  %s  %s%s: %s -> %s  (%d ms%s)\n  cause: %s\n", c.Epoch,
		c.At.Format(time.RFC3339), c.Kind, planned, orDash(c.From), c.To, c.TotalMS, c.Phases(),
		c.Cause)
	for _, e := range slices.Concat(c.Slots, c.Evidence) {
		if err == nil {
			_, err = fmt.Fprintf(out, "    %s\n", e)
		}
	}
	if err != nil {
		return fmt.Errorf("print history: %w", err)
	}
	return nil
}

func newHistoryCommand() *cobra.Command {
	c := HistoryCommand{}
	cmd := &cobra.Command{
		Use:   "history",
		Short: "Tell why and when the primary changed, and how long each phase took",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if c.Limit < 1 {
				return fmt.Errorf("--limit %d is not above zero", c.Limit)
			}
			c.Out = cmd.OutOrStdout()
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			return c.Run(ctx)
		},
	}
	cmd.Flags().StringVar(&c.URL, "url", defaultURL, "the HTTP interface of any node")
	cmd.Flags().IntVar(&c.Limit, "limit", historyDefault, "how many changes, the newest first")
	cmd.Flags().Uint64Var(&c.Epoch, "epoch", 0, "only the change to that epoch")
	cmd.Flags().BoolVar(&c.JSON, "json", false, "print JSON")
	return cmd
}
