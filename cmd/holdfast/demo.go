package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// DemoCommand is the subcommand that runs three nodes, a load of client sessions and faults on
// this machine, and shows what the sessions notice.
type DemoCommand struct {
	// Binary is the holdfast that the nodes run; empty is the running one.
	Binary string
	// Interval is the time between two faults that hit hard; a switchover, a restart or a cut of
	// connections comes in between. Zero does nothing unless it is told to.
	Interval time.Duration
	// Duration ends the demo; zero runs until it is told to end.
	Duration time.Duration
	// Changes ends the demo after so many changes of its own; zero sets no limit.
	Changes int
	// Report is a file for the result as JSON; empty writes none.
	Report string
	// Sessions is how many client sessions there are; zero makes a cluster without a load.
	Sessions int
	// Setting are PostgreSQL settings beside the demo's own.
	Setting []string
	// Parent is the directory that the demo's own is made in.
	Parent string
	// Keep leaves data and logs behind.
	Keep bool
	// Profile is the group's timing profile.
	Profile string
	// Fence is the group's.
	Fence string
	// Plain prints lines; JSON prints one object a line; neither is the live view.
	Plain, JSON bool
	// Control takes commands as lines from In.
	Control bool
	In      io.Reader
	Out     io.Writer
}

// errDemoWrong is the end of a demo in which something that must not happen happened.
var errDemoWrong = errors.New("the demo went wrong")

// Run runs the demo. Its error is errDemoWrong if an acknowledged commit was lost or doubled, or
// a session was lost or changed.
func (c DemoCommand) Run(ctx context.Context) error {
	if err := c.validate(); err != nil {
		return err
	}
	if err := forgetPGVariables(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	// The second Ctrl-C ends this process at once; the reaper cleans up.
	defer context.AfterFunc(ctx, stop)()
	if c.Duration > 0 {
		c.Interval = min(c.Interval, c.Duration)
	}
	if !c.Plain && !c.JSON && isTerminal(c.Out) {
		return runLive(ctx, c)
	}
	print := printPlain(c.Out)
	if c.JSON {
		print = printJSON(c.Out)
	}
	d := newDemo(c, print)
	return d.run(ctx)
}

// forgetPGVariables takes away what the user has set for databases of his own: PGOPTIONS, PGSERVICE
// and the like would change the sessions of the load, too.
func forgetPGVariables() error {
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "PG") {
			if err := os.Unsetenv(name); err != nil {
				return fmt.Errorf("forget %s: %w", name, err)
			}
		}
	}
	return nil
}

func (c DemoCommand) validate() error {
	switch {
	case c.Sessions < 0 || c.Sessions > 200:
		return fmt.Errorf("--sessions %d: 0 to 200 are allowed", c.Sessions)
	case c.Interval != 0 && c.Interval < 2*time.Second:
		return fmt.Errorf("--interval %v: 0 or at least 2s is needed", c.Interval)
	case c.Duration < 0:
		return fmt.Errorf("--duration %v: it must not be negative", c.Duration)
	case c.Changes < 0:
		return fmt.Errorf("--changes %d: it must not be negative", c.Changes)
	case c.Changes > 0 && c.Interval == 0:
		return errors.New("--changes needs an --interval")
	case c.Plain && c.JSON:
		return errors.New("--plain and --json exclude each other")
	}
	switch c.Fence {
	case "", "lease", "recruit":
	default:
		return fmt.Errorf("--fence %q: lease and recruit are allowed", c.Fence)
	}
	switch c.Profile {
	case "lan", "cloud", "wan":
	default:
		return fmt.Errorf("--profile %q: lan, cloud and wan are allowed", c.Profile)
	}
	return nil
}

// isTerminal tells whether what is written to w is looked at by a person.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil && os.Getenv("TERM") != "dumb"
}

// demoCommands are the commands that the demo takes.
const demoCommands = "postmaster, immediate, node, switchover, restart, freeze, pause, cut, quit"

const demoLong = `Demo starts three nodes with real PostgreSQL servers in a temporary directory,
connects client sessions of different kinds to their proxies, and then kills the primary again and
again in different ways, with switchovers, restarts and cut connections in between. A ledger holds
what the clients were told against what the database has. Everything is removed at the end, also
after Ctrl-C or a crash.

With --json each line is an object with the key "event": start, ready, fault (about to happen),
change (it is over), check (of the ledger), note, and last result. With --control the lines of
the standard input are commands: ` + demoCommands + `.

The exit code is 1 if an acknowledged commit was lost or doubled, or a session was dropped.
Sessions whose own proxy is killed together with its node are counted apart.`

func newDemoCommand() *cobra.Command {
	c := DemoCommand{}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Run three nodes under load here, kill the primary, and show what clients notice",
		Long:  demoLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.In, c.Out = cmd.InOrStdin(), cmd.OutOrStdout()
			return c.Run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.DurationVar(&c.Interval, "interval", 20*time.Second, "time between two kills; 0: none")
	f.IntVar(&c.Changes, "changes", 0, "end after so many changes; 0: no limit")
	f.StringVar(&c.Report, "report", "", "write the result to this file, as JSON")
	f.DurationVar(&c.Duration, "duration", 0, "end after this time; 0: run until told to end")
	f.IntVar(&c.Sessions, "sessions", 60, "number of client sessions")
	f.StringArrayVar(&c.Setting, "setting", nil, "setting of PostgreSQL, name = value")
	f.StringVar(&c.Parent, "dir", "", "make the demo's directory in this one")
	f.BoolVar(&c.Keep, "keep", false, "leave data and logs behind")
	f.StringVar(&c.Profile, "profile", "lan", "timing profile of the group: lan, cloud, wan")
	f.StringVar(&c.Fence, "fence", "lease", "what a failover waits for: lease, recruit")
	f.BoolVar(&c.Plain, "plain", false, "print lines (default if the output is no terminal)")
	f.BoolVar(&c.JSON, "json", false, "print one JSON object a line")
	f.BoolVar(&c.Control, "control", false, "take commands from the standard input")
	return cmd
}

// interrupted tells whether an error only says that the user ended the demo.
func interrupted(ctx context.Context, err error) bool {
	return err != nil && ctx.Err() != nil &&
		(errors.Is(err, context.Canceled) || errors.Is(err, syscall.EINTR))
}
