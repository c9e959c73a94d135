package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"holdfast/config"
)

// defaultConfigPath is read when -c is not given.
const defaultConfigPath = "/etc/holdfast/holdfast.yaml"

// ConfigCheck is the subcommand that reads the configuration as `serve` would and prints what it
// comes to, defaults and environment included and secrets left out.
type ConfigCheck struct {
	Path string
	// Quiet prints nothing but problems and warnings.
	Quiet bool
	Out   io.Writer
	Err   io.Writer
}

// Run checks the file; its error lists every problem.
func (c ConfigCheck) Run(context.Context) error {
	cfg, err := config.Load(c.Path)
	if err != nil {
		return err
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
	checkCmd.Flags().BoolVarP(&check.Quiet, "quiet", "q", false, "print only problems")
	cmd.AddCommand(checkCmd, &cobra.Command{
		Use:   "example",
		Short: "Print a commented configuration with every default",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return ConfigExample{Out: cmd.OutOrStdout()}.Run(cmd.Context())
		},
	})
	return cmd
}
