package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"holdfast/election"
)

// operation asks a node to carry out what an operator wants.
type operation struct {
	name   string // the last part of the path, too
	url    string
	out    io.Writer
	dryRun bool
}

// errNotPossible ends a dry run with an exit code of its own kind: something is missing.
var errNotPossible = errors.New("it would be refused")

// run returns the status after it, nil after a dry run.
func (o operation) run(ctx context.Context, body any) (*Status, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.name, err)
	}
	url := o.url + "/v1/" + o.name
	if o.dryRun {
		var a checksAnswer
		err = callHTTP(ctx, http.MethodPost, url, bytes.NewReader(b), &a)
		if err == nil {
			err = printChecks(o.out, a.Checks)
		}
	} else {
		st := &Status{}
		if err = callHTTP(ctx, http.MethodPost, url, bytes.NewReader(b), st); err == nil {
			return st, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.name, err)
	}
	return nil, nil
}

// printChecks writes each precondition.
func printChecks(out io.Writer, checks []election.Check) error {
	possible := true
	for _, c := range checks {
		if c.Why == "" {
			fmt.Fprintf(out, "ok     %s\n", c.What)
			if c.Note != "" {
				fmt.Fprintf(out, "       NOTE: %s\n", c.Note)
			}
			continue
		}
		possible = false
		fmt.Fprintf(out, "FAILS  %s: %s\n", c.What, c.Why)
	}
	if !possible {
		return errNotPossible
	}
	fmt.Fprintln(out, "nothing was changed: this was a dry run")
	return nil
}

// runOperation gives a command the flags that all operations have.
func runOperation(cmd *cobra.Command, url *string, dryRun *bool,
	run func(ctx context.Context, out io.Writer, args []string) error,
) {
	var timeout time.Duration
	var tokenFile string
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
		defer cancel()
		ctx, err := withToken(ctx, cmd, tokenFile)
		if err != nil {
			return err
		}
		return run(ctx, cmd.OutOrStdout(), args)
	}
	cmd.Flags().StringVar(url, "url", defaultURL, "the HTTP interface of any node")
	tokenFlag(cmd, &tokenFile)
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for the end")
	if dryRun != nil {
		cmd.Flags().BoolVar(dryRun, "dry-run", false,
			"print each precondition and whether it holds, and change nothing")
	}
}

func newRestartCommand() *cobra.Command {
	var url string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "restart NAME",
		Short: "Restart a member's PostgreSQL; of the primary as a pause, not an error",
		Args:  cobra.ExactArgs(1),
	}
	runOperation(cmd, &url, &dryRun, func(ctx context.Context, out io.Writer, args []string) error {
		o := operation{name: "restart", url: url, out: out, dryRun: dryRun}
		st, err := o.run(ctx, restartRequest{Member: args[0], DryRun: dryRun})
		if err != nil || st == nil {
			return err
		}
		fmt.Fprintf(out, "%s was restarted; ", args[0])
		st.printPrimary(out)
		return nil
	})
	return cmd
}

func newReinitCommand() *cobra.Command {
	var url string
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "reinit NAME",
		Short: "Throw a standby's data away and clone it anew from the primary",
		Args:  cobra.ExactArgs(1),
	}
	runOperation(cmd, &url, &dryRun, func(ctx context.Context, out io.Writer, args []string) error {
		o := operation{name: "reinit", url: url, out: out, dryRun: dryRun}
		st, err := o.run(ctx, restartRequest{Member: args[0], DryRun: dryRun})
		if err != nil || st == nil {
			return err
		}
		fmt.Fprintf(out, "%s is cloned anew: `holdfast status` tells when it streams; its old data "+
			"is kept beside the new one until the next clone\n", args[0])
		return nil
	})
	return cmd
}

func newFailoverCommand() *cobra.Command {
	var url string
	var r failoverRequest
	cmd := &cobra.Command{
		Use:   "failover",
		Short: "Promote a member because the primary is lost and the group promotes nobody",
		Args:  cobra.NoArgs,
	}
	runOperation(cmd, &url, &r.DryRun, func(ctx context.Context, out io.Writer, _ []string) error {
		if r.AcceptDataLoss {
			tellLoss(ctx, out, url, r.To)
		}
		o := operation{name: "failover", url: url, out: out, dryRun: r.DryRun}
		st, err := o.run(ctx, r)
		if err != nil || st == nil {
			return err
		}
		st.printPrimary(out)
		return nil
	})
	cmd.Flags().StringVar(&r.To, "to", "", "the member that becomes primary")
	cmd.Flags().BoolVar(&r.AcceptDataLoss, "accept-data-loss", false,
		"promote it though commits that clients were told of may be lost")
	_ = cmd.MarkFlagRequired("to")
	return cmd
}

func newMaintenanceCommand() *cobra.Command {
	var url, reason string
	cmd := &cobra.Command{
		Use:       "maintenance on|off",
		Short:     "Leave promoting and starting of servers to the operator for a while",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"on", "off"},
	}
	runOperation(cmd, &url, nil, func(ctx context.Context, out io.Writer, args []string) error {
		o := operation{name: "maintenance", url: url, out: out}
		st, err := o.run(ctx, maintenanceRequest{On: args[0] == "on", Reason: reason})
		if err != nil {
			return err
		}
		if st.Maintenance == nil {
			fmt.Fprintln(out, "no maintenance: the group decides by itself")
			return nil
		}
		fmt.Fprintf(out, "maintenance since %s: no failover, and no server that was stopped is "+
			"started\n", st.Maintenance.Since.Format(time.RFC3339))
		return nil
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, for others who look at the status")
	return cmd
}
