package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// SwitchoverCommand is the subcommand that moves the primary to another member.
type SwitchoverCommand struct {
	// URL is any node's HTTP interface.
	URL string
	// To is the member that becomes primary; empty lets the group choose.
	To     string
	DryRun bool
	// AcceptSlotLoss goes on though logical slots are lost with it.
	AcceptSlotLoss bool
	Out            io.Writer
}

// Run asks for the switchover and waits for its end.
func (c SwitchoverCommand) Run(ctx context.Context) error {
	o := operation{name: "switchover", url: c.URL, out: c.Out, dryRun: c.DryRun}
	st, err := o.run(ctx, switchoverRequest{
		To: c.To, DryRun: c.DryRun, AcceptSlotLoss: c.AcceptSlotLoss,
	})
	if err != nil || st == nil {
		return err
	}
	st.printPrimary(c.Out)
	return nil
}

// printPrimary says where the primary is now, and how long the newest change took.
func (s *Status) printPrimary(out io.Writer) {
	took := int64(0)
	if s.Last != nil {
		took = s.Last.TotalMS
	}
	fmt.Fprintf(out, "primary is %s, epoch %d, timeline %d (%d ms)\n", s.Primary, s.Epoch,
		s.Timeline, took)
}

func newSwitchoverCommand() *cobra.Command {
	c := SwitchoverCommand{}
	cmd := &cobra.Command{
		Use:   "switchover",
		Short: "Move the primary to another member without losing a session",
		Args:  cobra.NoArgs,
	}
	runOperation(cmd, &c.URL, &c.DryRun, func(ctx context.Context, out io.Writer, _ []string) error {
		c.Out = out
		return c.Run(ctx)
	})
	cmd.Flags().StringVar(&c.To, "to", "", "the member that becomes primary")
	cmd.Flags().BoolVar(&c.AcceptSlotLoss, "accept-slot-loss", false,
		"go on though logical slots have no complete copy there and are lost")
	return cmd
}
