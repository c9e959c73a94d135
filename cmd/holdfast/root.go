package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// run executes one command line and returns the exit code: 0 if it did what was asked, 1 if not.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintf(stderr, "holdfast: %v\n", err)
		return 1
	}
	return 0
}

// newRoot builds the command tree. It is a function and not a variable so that each test has its
// own.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Keeps PostgreSQL sessions alive while the primary changes",
		Args:  cobra.NoArgs,
		// The error is printed once, by run; a usage text below it would hide it.
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(newInitCommand(), newConfigCommand(), newServeCommand(), newStatusCommand(),
		newSwitchoverCommand(), newAdoptCommand(), newVersionCommand(), newDemoCommand(),
		newReaperCommand())
	return root
}
