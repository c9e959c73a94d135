package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"
)

// SwitchoverCommand is the subcommand that moves the primary to another member.
type SwitchoverCommand struct {
	// URL is any node's HTTP interface.
	URL string
	// To is the member that becomes primary; empty lets the group choose.
	To  string
	Out io.Writer
}

// Run asks for the switchover and waits for its end.
func (c SwitchoverCommand) Run(ctx context.Context) error {
	body, err := json.Marshal(switchoverRequest{To: c.To})
	if err != nil {
		return fmt.Errorf("ask for switchover: %w", err)
	}
	var st Status
	err = callHTTP(ctx, http.MethodPost, c.URL+"/v1/switchover", bytes.NewReader(body), &st)
	if err != nil {
		return fmt.Errorf("switchover: %w", err)
	}
	took := int64(0)
	if st.Last != nil {
		took = st.Last.TotalMS
	}
	fmt.Fprintf(c.Out, "primary is %s, epoch %d, timeline %d (%d ms)\n", st.Primary, st.Epoch,
		st.Timeline, took)
	return nil
}

func newSwitchoverCommand() *cobra.Command {
	c := SwitchoverCommand{}
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "switchover",
		Short: "Move the primary to another member without losing a session",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Out = cmd.OutOrStdout()
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return c.Run(ctx)
		},
	}
	cmd.Flags().StringVar(&c.URL, "url", defaultURL, "the HTTP interface of any node")
	cmd.Flags().StringVar(&c.To, "to", "", "the member that becomes primary")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for the end")
	return cmd
}
