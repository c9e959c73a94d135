package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"holdfast/config"
	"holdfast/election"
)

// AdoptCommand is the subcommand that prepares a running PostgreSQL for the node of this host: it
// shows what it would change, asks, and changes that and nothing else.
type AdoptCommand struct {
	Path string
	// Name overrides the configured name, as in ServeCommand.
	Name string
	// DryRun only shows the plan; JSON prints it as JSON.
	DryRun, JSON bool
	// Yes does not ask.
	Yes bool
	// Restart allows the server to be restarted at the end.
	Restart bool
	// Admin is the superuser to log in as until the agent's own login works.
	Admin             string
	AdminPasswordFile string
	In                io.Reader
	Out, Err          io.Writer
}

// Run makes the plan, shows it, and applies it if it is told to.
func (c AdoptCommand) Run(ctx context.Context) error {
	d, err := c.adoption()
	if err != nil {
		return err
	}
	defer d.Close()
	plan, err := d.Plan(ctx)
	if err != nil {
		return err
	}
	if err := c.show(plan); err != nil {
		return err
	}
	switch {
	case len(plan.Refusals) > 0:
		return fmt.Errorf("%w: see the reasons above", election.ErrAdoptRefused)
	case c.DryRun:
		return nil
	case plan.IsDone():
		fmt.Fprintln(c.Err, "nothing is left to do now: start `holdfast serve` on every host")
		return nil
	case !c.Yes && !c.confirm(plan):
		return errors.New("nothing was changed")
	}
	if err := d.Apply(ctx, plan); err != nil {
		return err
	}
	fmt.Fprintln(c.Err, "adopted: run it on the other hosts, then start `holdfast serve` on each")
	return nil
}

func (c AdoptCommand) adoption() (*election.Adoption, error) {
	if c.Name != "" {
		if err := os.Setenv("HOLDFAST_NAME", c.Name); err != nil {
			return nil, fmt.Errorf("set name: %w", err)
		}
	}
	cfg, err := config.Load(c.Path)
	if err != nil {
		return nil, err
	}
	if !cfg.Postgres.Enabled {
		return nil, errors.New("adopt: this node has no PostgreSQL (postgres.enabled)")
	}
	agent, err := cfg.AgentConfig()
	if err != nil {
		return nil, err
	}
	ec, err := cfg.ElectionConfig()
	if err != nil {
		return nil, err
	}
	ac := election.AdoptConfig{
		Agent: agent, Members: ec.Nodes, SyncMode: ec.SyncMode, SyncWait: ec.SyncWait, AdminRole: c.Admin,
		Restart: c.Restart,
	}
	if c.AdminPasswordFile != "" {
		b, err := os.ReadFile(c.AdminPasswordFile)
		if err != nil {
			return nil, fmt.Errorf("adopt: --admin-password-file: %w", err)
		}
		ac.AdminPassword = strings.TrimRight(string(b), "\r\n")
	}
	log, err := newLogger(cfg)
	if err != nil {
		return nil, err
	}
	return election.NewAdoption(ac, log.WithOptions(zap.IncreaseLevel(zap.WarnLevel)))
}

func (c AdoptCommand) confirm(p *election.AdoptPlan) bool {
	fmt.Fprintf(c.Err, "change this on %s (%s)? type yes: ", p.Member, p.Role)
	answer, err := bufio.NewReader(io.LimitReader(c.In, 100)).ReadString('\n')
	return err == nil && strings.TrimSpace(answer) == "yes"
}

func (c AdoptCommand) show(p *election.AdoptPlan) error {
	if !c.JSON {
		return printAdoptPlan(c.Out, p)
	}
	enc := json.NewEncoder(c.Out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(p)
}

// adoptParts are the headings of a plan, in the order of time.
var adoptParts = []struct {
	when  election.AdoptWhen
	title string
}{
	{election.AdoptNow, "now, by this command"},
	{election.AdoptTakeover, "by `holdfast serve`, when the group has its first lock"},
	{election.AdoptRestart, "at the server's next start (--restart, or a switchover)"},
}

// printAdoptPlan writes the plan as tables.
func printAdoptPlan(out io.Writer, p *election.AdoptPlan) error {
	fmt.Fprintf(out, "%s: data directory %s\n", p.Member, p.DataDir)
	if p.Role != "" {
		fmt.Fprintf(out, "a %s, PostgreSQL %d.%d, system id %s, pid %d\n", p.Role,
			p.ServerVersion/10000, p.ServerVersion%10000, p.SystemID, p.Pid)
	}
	if p.Upstream != "" {
		fmt.Fprintf(out, "it will follow %s\n", p.Upstream)
	}
	for _, part := range adoptParts {
		w := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
		n := 0
		for _, ch := range p.Changes {
			if ch.When != part.when {
				continue
			}
			if n++; n == 1 {
				fmt.Fprintf(w, "\n%s:\n", part.title)
			}
			text := ch.To
			if ch.From != "" || ch.Kind == "setting" {
				text = fmt.Sprintf("%s -> %s", orQuotes(ch.From), orQuotes(ch.To))
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\n", ch.Kind, ch.Object, text)
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("print plan: %w", err)
		}
	}
	printAdoptList(out, "limits", p.Limits)
	printAdoptList(out, "refused", p.Refusals)
	return nil
}

func printAdoptList(out io.Writer, title string, lines []string) {
	if len(lines) > 0 {
		fmt.Fprintf(out, "\n%s:\n", title)
	}
	for _, l := range lines {
		fmt.Fprintf(out, "  - %s\n", l)
	}
}

func orQuotes(s string) string {
	if s == "" {
		return "''"
	}
	return s
}

func newAdoptCommand() *cobra.Command {
	c := AdoptCommand{}
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "adopt",
		Short: "Take over a running PostgreSQL of this host, without a restart",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.In, c.Out, c.Err = cmd.InOrStdin(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			return c.Run(ctx)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&c.Path, "config", "c", defaultConfigPath, "configuration file")
	f.StringVar(&c.Name, "name", "", "this node's name, if the file is shared")
	f.BoolVar(&c.DryRun, "dry-run", false, "show what would be changed and change nothing")
	f.BoolVar(&c.JSON, "json", false, "print the plan as JSON")
	f.BoolVar(&c.Yes, "yes", false, "do not ask before the plan is applied")
	f.BoolVar(&c.Restart, "restart", false, "restart PostgreSQL at the end if a setting needs it")
	f.StringVar(&c.Admin, "admin", "", "superuser to log in as the first time "+
		"(default postgres.superuser)")
	f.StringVar(&c.AdminPasswordFile, "admin-password-file", "", "its password (default: let in "+
		"by the socket)")
	f.DurationVar(&timeout, "timeout", 10*time.Minute, "how long all of it may take")
	return cmd
}
