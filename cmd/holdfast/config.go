package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/config"
	"holdfast/election"
)

// defaultConfigPath is read when -c is not given.
const defaultConfigPath = "/etc/holdfast/holdfast.yaml"

// ConfigCheck is the subcommand that reads the configuration as `serve` would and prints what it
// comes to, defaults and environment included and secrets left out.
type ConfigCheck struct {
	Path string
	// Name overrides the configured name, as that of ServeCommand does.
	Name string
	// IsAlone leaves out the files, programs and account that the configuration names: it is for
	// another host.
	IsAlone bool
	// Quiet prints nothing but problems and warnings.
	Quiet bool
	Out   io.Writer
	Err   io.Writer
}

// Run checks the file; its error lists every problem.
func (c ConfigCheck) Run(context.Context) error {
	cfg, err := loadConfig(c.Path, c.Name)
	if err != nil {
		return err
	}
	if !c.IsAlone {
		if problems := checkSurroundings(cfg, c.Path); len(problems) > 0 {
			return problems
		}
	}
	for _, w := range cfg.Warnings() {
		fmt.Fprintf(c.Err, "warning: %s\n", w)
	}
	if c.Quiet {
		return nil
	}
	if _, err := c.Out.Write(cfg.Redacted().YAML()); err != nil {
		return fmt.Errorf("print configuration: %w", err)
	}
	return nil
}

// loadConfig loads the file for the node of that name, or for the configured one.
func loadConfig(path, name string) (config.Config, error) {
	if name != "" {
		if err := os.Setenv("HOLDFAST_NAME", name); err != nil {
			return config.Config{}, fmt.Errorf("set name: %w", err)
		}
	}
	return config.Load(path)
}

// checkSurroundings looks for what `serve` would refuse to run without, each under its key.
func checkSurroundings(cfg config.Config, path string) config.Problems {
	var problems config.Problems
	add := func(key string, err error) {
		if err == nil {
			return
		}
		for text := range strings.Lines(err.Error()) {
			name := key[strings.LastIndexByte(key, '.')+1:]
			for _, prefix := range []string{key + ": ", name + ": ", name + " ", "secret: "} {
				text = strings.TrimPrefix(strings.TrimSpace(text), prefix)
			}
			problems = append(problems, config.Problem{File: path, Key: key, Text: text})
		}
	}
	if ec, err := cfg.ElectionConfig(); err == nil {
		add("group.tls", ec.CheckFiles())
	}
	if ac, err := cfg.AgentConfig(); err == nil && cfg.Postgres.Enabled {
		found := ac.CheckSurroundings()
		for _, key := range slices.Sorted(maps.Keys(found)) {
			add("postgres."+key, found[key])
		}
	}
	if pc, err := cfg.ProxyConfig(); cfg.Proxy.Enabled {
		add("proxy.lookup_password_file", err)
		found := pc.CheckFiles()
		for _, key := range slices.Sorted(maps.Keys(found)) {
			add("proxy."+key, found[key])
		}
	}
	return problems
}

// ConfigExample is the subcommand that prints the commented example with every default.
type ConfigExample struct {
	Out io.Writer
}

// Run prints the example.
func (c ConfigExample) Run(context.Context) error {
	if _, err := c.Out.Write(config.Example()); err != nil {
		return fmt.Errorf("print example: %w", err)
	}
	return nil
}

// ConfigLookupSQL is the subcommand that prints what makes the look-up role of the proxies.
type ConfigLookupSQL struct {
	Out io.Writer
}

// Run prints the statements.
func (c ConfigLookupSQL) Run(context.Context) error {
	if _, err := io.WriteString(c.Out, election.LookupSQL()); err != nil {
		return fmt.Errorf("print statements: %w", err)
	}
	return nil
}

func newConfigCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check or explain the configuration",
	}
	needCommand(cmd)
	check := ConfigCheck{}
	checkCmd := &cobra.Command{
		Use:   "check",
		Short: "Check a configuration file and print what it comes to",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			check.Out, check.Err = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return check.Run(cmd.Context())
		},
	}
	checkCmd.Flags().StringVarP(&check.Path, "config", "c", defaultConfigPath,
		"configuration file")
	checkCmd.Flags().StringVar(&check.Name, "name", "", "the node's name, if the file is shared")
	checkCmd.Flags().BoolVar(&check.IsAlone, "no-files", false,
		"leave out the files, programs and account that it names, as for another host")
	checkCmd.Flags().BoolVarP(&check.Quiet, "quiet", "q", false, "print only problems")
	cmd.AddCommand(checkCmd, &cobra.Command{
		Use:   "example",
		Short: "Print a commented configuration with every default",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ConfigExample{Out: cmd.OutOrStdout()}.Run(cmd.Context())
		},
	}, &cobra.Command{
		Use:   "lookup-sql",
		Short: "Print, for psql, what makes the proxies' look-up role and its functions",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ConfigLookupSQL{Out: cmd.OutOrStdout()}.Run(cmd.Context())
		},
	})
	return cmd
}
