package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
)

// codeConfig is the exit code of a node whose configuration is at fault, as sysexits.h has it:
// trying again changes nothing, and a unit can be told so.
const codeConfig = 78

// codedError is an error with an exit code of its own. Without an error inside, what is to be said
// has been said.
type codedError struct {
	code int
	err  error
}

func (e codedError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e codedError) Unwrap() error { return e.err }

// run executes one command line and returns the exit code: 0 if it did what was asked, 1 or the
// code of the error if not.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	coded := codedError{code: 1, err: err}
	errors.As(err, &coded)
	if coded.err != nil {
		fmt.Fprintf(stderr, "holdfast: %v\n", err)
	}
	return coded.code
}

// newRoot builds the command tree. It is a function and not a variable so that each test has its
// own.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "holdfast",
		Short: "Keeps PostgreSQL sessions alive while the primary changes",
		// The error is printed once, by run; a usage text below it would hide it.
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	needCommand(root)
	root.AddCommand(newInitCommand(), newCertCommand(), newConfigCommand(), newServeCommand(),
		newStatusCommand(), newSwitchoverCommand(), newRestartCommand(), newReinitCommand(),
		newFailoverCommand(), newMaintenanceCommand(), newMembersCommand(), newMemberCommand(),
		newRaftCommand(), newHistoryCommand(), newSessionsCommand(), newAdoptCommand(),
		newVersionCommand(), newDemoCommand(), newReaperCommand())
	return root
}

// needCommand makes a command that only holds others answer with an error when it is run itself:
// cobra would print the help and succeed, and a script with a misspelt word would go on. Unknown
// flags are let through so that the error names the word and not the flag behind it.
func needCommand(cmd *cobra.Command) {
	cmd.Args = cobra.ArbitraryArgs
	cmd.FParseErrWhitelist = cobra.FParseErrWhitelist{UnknownFlags: true}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path := cmd.CommandPath()
		if len(args) == 0 {
			fmt.Fprint(cmd.ErrOrStderr(), cmd.UsageString(), "\n")
			return fmt.Errorf("a command is needed after %q", path)
		}
		// Two letters apart, as cobra itself counts for the root.
		cmd.SuggestionsMinimumDistance = 2
		hint := fmt.Sprintf("`%s --help` lists the commands", path)
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = "did you mean " + strings.Join(near, " or ") + "?"
		}
		return fmt.Errorf("unknown command %q for %q; %s", args[0], path, hint)
	}
}
