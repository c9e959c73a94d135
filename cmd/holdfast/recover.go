package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/config"
	"holdfast/election"
)

// RecoverCommand is the subcommand that makes this host's node the only voter of a group whose
// quorum is lost.
type RecoverCommand struct {
	Path string
	// Name overrides the configured name, as in ServeCommand.
	Name string
	// Yes carries it out; without it only what would happen is said.
	Yes bool
	Out io.Writer
}

// errNotRecovered ends a run without --yes.
var errNotRecovered = errors.New("nothing was changed: read the warning, then run it with --yes")

// Run says what is there and what it means, and does it if it is told to.
func (c RecoverCommand) Run(context.Context) error {
	cfg, err := loadConfig(c.Path, c.Name)
	if err != nil {
		return err
	}
	if !cfg.Raft.Enabled {
		return errors.New("this node has no vote (raft.enabled): run it on one that has")
	}
	ec, err := cfg.ElectionConfig()
	if err != nil {
		return err
	}
	if !c.Yes {
		plan, err := election.PlanRecovery(ec)
		if err != nil {
			return err
		}
		c.warn(cfg, plan)
		return errNotRecovered
	}
	plan, err := election.RecoverGroup(ec)
	if err != nil {
		return err
	}
	fmt.Fprintf(c.Out, "%s is the only voter of its group now, as of entry %d of term %d: start it "+
		"with holdfast serve\n", cfg.Name, plan.Index, plan.Term)
	return nil
}

// warn says in plain words what a recovery means.
func (c RecoverCommand) warn(cfg config.Config, plan election.RecoverPlan) {
	others := slices.DeleteFunc(slices.Clone(plan.Voters), func(n string) bool {
		return n == cfg.Name
	})
	primary := "there was no primary"
	if l := plan.Lock; l != nil {
		primary = fmt.Sprintf("the primary was %s, under epoch %d", l.Holder, l.Epoch)
	}
	names := orDash(strings.Join(others, ", "))
	fmt.Fprintf(c.Out, `%[1]s knows the log up to entry %[2]d of term %[3]d; %[4]s.
The voters are %[5]s.

WARNING: this makes %[1]s the only voter, without asking the others (%[6]s).
- Do it only if a majority of the voters is lost for good. As long as one majority can be
  started again, with the directories it has, start that instead: nothing is lost then.
- If the others still run somewhere, cut off from here, there will be two groups, each with
  a primary that takes writes, and what one of them took will be lost.
- What only the others knew of the group is lost: a newer primary, too. Run this without --yes on
  each node that is left, and recover the one with the highest term, then the highest entry.
- Before any other voter starts again, remove its raft directory (raft.dir, here
  %[7]s), not its PostgreSQL data, and see that its group.nodes names
  %[1]s. It then joins by itself; one that is gone is removed with holdfast member remove.
- PostgreSQL is not touched. If the primary is lost and no standby is sure to have every
  commit, holdfast failover --accept-data-loss is a decision of its own, afterwards.
`, cfg.Name, plan.Index, plan.Term, primary, strings.Join(plan.Voters, ", "), names, cfg.Raft.Dir)
}

func newRaftCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "raft",
		Short: "Repair the Raft group when it cannot repair itself",
	}
	needCommand(cmd)
	c := RecoverCommand{}
	rec := &cobra.Command{
		Use:   "recover",
		Short: "Make this host's node the only voter when a majority is lost for good",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Out = cmd.OutOrStdout()
			return c.Run(cmd.Context())
		},
	}
	f := rec.Flags()
	f.StringVarP(&c.Path, "config", "c", defaultConfigPath, "configuration file")
	f.StringVar(&c.Name, "name", "", "this node's name, if the file is shared")
	f.BoolVar(&c.Yes, "yes", false, "do it; without it the warning is printed and nothing changed")
	cmd.AddCommand(rec)
	return cmd
}
